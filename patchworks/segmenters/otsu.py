"""Otsu's threshold: the intensity that best splits an image in two classes."""

from __future__ import annotations

import numpy as np


def otsu_threshold(values: np.ndarray, n_bins: int = 256) -> float:
    """Return the threshold that best splits `values` in two classes.

    Parameters
    ----------
    values : numpy.ndarray
        Intensities, any shape.
    n_bins : int
        Bins of the histogram; integers that span fewer values get one bin each.

    Returns
    -------
    float
        Objects are the values *above* it. The value itself where all values are equal.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Systems, Man,
    and Cybernetics 9(1), 1979.

    Examples
    --------
    >>> otsu_threshold(np.array([1, 1, 2, 9, 9, 8]))
    2.0
    """
    finite = np.asarray(values).ravel()
    if finite.dtype.kind == "b":
        finite = finite.astype(np.uint8)
    if finite.dtype.kind == "f":
        finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return 0.0
    low, high = finite.min().item(), finite.max().item()
    if low == high:
        return float(low)
    base = 0
    if finite.dtype.kind in "iu":  # large offsets would cost digits
        base, unsigned = low, finite.astype(f"u{finite.dtype.itemsize}", copy=False)
        finite = unsigned - unsigned.dtype.type(low % 2 ** (8 * finite.dtype.itemsize))
        low, high = 0, high - low
    integers = finite.dtype.kind == "u" and high < n_bins
    edges = np.arange(high + 2) if integers else np.linspace(low, high, n_bins + 1)
    counts, _ = np.histogram(finite, bins=edges)
    centres = edges[:-1] if integers else (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), finite.size
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below / total - sums) ** 2 / (below * (total - below))
    best = int(np.nanargmax(between[:-1]))
    return float(base + (int(centres[best]) if integers else float(edges[best + 1])))
