"""One level → the next: labels by the most frequent of each cell, images by the mean."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np

from patchworks.geometry.grid import ceil_div


def pool_labels(labels: np.ndarray, factor: tuple[int, ...]) -> np.ndarray:
    """Return labels with each cell of `factor` voxels replaced by its most frequent label.

    Ties go to the object, and between objects to the larger id, so that an object that fills half
    of its cells stays. Cells at the upper end may be cut off; they count the voxels they have.

    Parameters
    ----------
    labels : numpy.ndarray
        Unsigned integers.
    factor : tuple of int
        Voxels of a cell, per axis.

    Returns
    -------
    numpy.ndarray
        Same dtype, extents divided by `factor` and rounded up.

    Examples
    --------
    >>> pool_labels(np.array([[1, 1, 0, 7], [1, 2, 7, 0], [3, 0, 0, 0]], "uint8"), (2, 2))
    array([[1, 7],
           [3, 0]], dtype=uint8)
    """
    segments = [_segments(n, f) for n, f in zip(labels.shape, factor, strict=True)]
    shape = [ceil_div(n, f) for n, f in zip(labels.shape, factor, strict=True)]
    out = np.empty(shape, labels.dtype)
    for parts in product(*segments):
        source, target, cell = zip(*parts, strict=True)
        out[target] = _pool_whole_cells(labels[source], cell)
    return out


def _segments(extent: int, factor: int) -> list[tuple[slice, slice, int]]:
    """Split an axis into whole cells and the cut-off one: (voxels, cells, voxels per cell)."""
    n_whole = extent // factor
    whole, rest = n_whole * factor, extent - n_whole * factor
    segments = [(slice(0, whole), slice(0, n_whole), factor)] if n_whole else []
    if rest:
        segments.append((slice(whole, extent), slice(n_whole, n_whole + 1), rest))
    return segments


def _pool_whole_cells(labels: np.ndarray, cell: tuple[int, ...]) -> np.ndarray:
    """Return the mode of every cell of an array that holds whole cells only."""
    planar = cell[-2:] == (2, 2) and set(cell[:-2]) <= {1} and labels.dtype.itemsize in WIDER
    if planar and (labels.ndim == 2 or labels.size <= PART):
        return _pool_pairs(np.ascontiguousarray(labels))
    if cell[0] == 1 and labels.ndim > 2:  # plane by plane: each fits the processor's cache
        return np.stack([_pool_whole_cells(plane, cell[1:]) for plane in labels])
    layers = [
        np.ascontiguousarray(
            labels[tuple([slice(o, None, f) for o, f in zip(offset, cell, strict=True)])]
        )
        for offset in product(*[range(f) for f in cell])
    ]
    out = layers[0].copy()
    mixed = np.zeros(out.shape, bool)
    for layer in layers[1:]:
        mixed |= layer != layers[0]
    where = np.flatnonzero(mixed)
    if where.size:
        cells = [layer.ravel()[where] for layer in layers]
        out.ravel()[where] = _mode(np.stack(cells))
    return out


PART = 2**19
"""Voxels of planes that are looked at in one go: they fit the processor's cache."""

WIDER: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint16),
    2: np.dtype(np.uint32),
    4: np.dtype(np.uint64),
}
"""By its bytes, what holds two labels side by side."""


def _pool_pairs(labels: np.ndarray) -> np.ndarray:
    """Return the mode of every 2x2 cell of planes; two labels side by side are one integer.

    Where the upper pair equals the lower, as nearly everywhere, the larger of the two labels is
    the mode; only the other cells are looked at one by one.
    """
    dtype, wider = labels.dtype, WIDER[labels.dtype.itemsize]
    *n_planes, n_rows, n = labels.shape
    rows = labels.reshape(-1, n)  # of an even number per plane
    out: np.ndarray = np.maximum(rows[::2, ::2], rows[::2, 1::2])
    pairs = rows.view(wider)
    where = np.flatnonzero(pairs[::2] != pairs[1::2])
    if where.size:
        half = n // 2
        at = where + where // half * half  # the same cell's upper pair, counted over all rows
        flat = pairs.ravel()
        upper, lower = [flat.take(i).view(dtype).reshape(-1, 2) for i in (at, at + half)]
        out.ravel()[where] = _mode_of_pairs(upper, lower)
    return out.reshape(*n_planes, n_rows // 2, n // 2)


def _mode_of_pairs(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return the most frequent of four values, the largest of those that tie.

    A sorting network: minima and maxima of whole arrays are several times faster than a sort.

    Parameters
    ----------
    upper, lower : numpy.ndarray
        Two of the values each, ``(n, 2)``.
    """
    low, high = np.minimum(upper, lower), np.maximum(upper, lower)
    first, inner_1 = np.minimum(low[:, 0], low[:, 1]), np.maximum(low[:, 0], low[:, 1])
    inner_2, last = np.minimum(high[:, 0], high[:, 1]), np.maximum(high[:, 0], high[:, 1])
    second, third = np.minimum(inner_1, inner_2), np.maximum(inner_1, inner_2)
    best: np.ndarray = np.where(second == third, second, np.where(first == second, first, last))
    return np.where(third == last, last, best)


def _mode(cells: np.ndarray) -> np.ndarray:
    """Return the most frequent value of each column; the largest of those that tie."""
    ordered = np.sort(cells, axis=0)
    best: np.ndarray = ordered[0].copy()
    best_count = np.ones(len(best), np.int16)
    count = np.ones(len(best), np.int16)
    for row, above in pairwise(ordered):
        count = np.where(above == row, count + 1, 1).astype(np.int16)
        better = count >= best_count  # later rows are larger: a tie goes to them
        best = np.where(better, above, best)
        best_count = np.maximum(best_count, count)
    return best


def pool_image(voxels: np.ndarray, factor: tuple[int, ...]) -> np.ndarray:
    """Return an image with each cell of `factor` voxels replaced by its mean.

    Integers are rounded to the nearest. Cells at the upper end may be cut off; they average the
    voxels they have.

    Examples
    --------
    >>> pool_image(np.array([[1, 3, 10], [5, 7, 20]], "uint8"), (2, 2))
    array([[ 4, 15]], dtype=uint8)
    """
    kind, wide = voxels.dtype.kind, voxels.dtype.itemsize == 8
    if voxels.dtype in FAST and factor[-2:] == (2, 2) and set(factor[:-2]) <= {1}:
        return _mean_of_four(voxels)
    if kind in "iu" and wide:  # beyond what float64 can tell apart
        return _means_of_64_bits(voxels, factor)
    means: np.ndarray = _means(voxels.astype(np.float64), factor)
    if kind == "b":
        return means > 0.5
    return (np.rint(means) if kind in "iu" else means).astype(voxels.dtype)


FAST = (np.dtype(np.uint8), np.dtype(np.uint16))
"""What most cameras write; sums of four fit a wider integer."""


def _mean_of_four(voxels: np.ndarray) -> np.ndarray:
    """Return the mean of every 2x2 cell of y and x, in integers: ties go to the even number.

    Plane by plane, so that what is added fits the processor's cache; a row or column that is left
    over counts twice, which does not change its mean.
    """
    ny, nx = voxels.shape[-2:]
    out = np.empty((*voxels.shape[:-2], ceil_div(ny, 2), ceil_div(nx, 2)), voxels.dtype)
    planes, means = voxels.reshape(-1, ny, nx), out.reshape(-1, *out.shape[-2:])
    wide = np.uint16 if voxels.dtype.itemsize == 1 else np.uint32
    rows = max(2, 2**18 // max(1, nx) // 2 * 2)
    for plane, mean in zip(planes, means, strict=True):
        for top in range(0, ny, rows):
            part = plane[top : top + rows]
            upper, lower = part[::2], part[1::2]
            pairs: Any = upper.astype(wide)
            pairs[: len(lower)] += lower
            if len(lower) < len(upper):
                pairs[-1] += upper[-1]
            sums: Any = pairs[:, ::2].copy()
            sums[:, : nx // 2] += pairs[:, 1::2]
            if nx % 2:
                sums[:, -1] += pairs[:, -1]
            odd = (sums >> 2) & 1
            odd += 1
            sums += odd
            sums >>= 2
            mean[top // 2 : top // 2 + len(sums)] = sums
    return out


def _means_of_64_bits(voxels: np.ndarray, factor: tuple[int, ...]) -> np.ndarray:
    """Return the mean of every cell, exactly: the upper and the lower 32 bits are summed apart."""
    high, low = (voxels >> 32).astype(np.int64), (voxels & 0xFFFFFFFF).astype(np.int64)
    counts = np.ones((1,) * voxels.ndim, np.int64)
    for axis, f in enumerate(factor):
        starts = np.arange(0, voxels.shape[axis], f)
        high, low = [np.add.reduceat(part, starts, axis) for part in (high, low)]
        shape = [-1 if a == axis else 1 for a in range(voxels.ndim)]
        counts = counts * np.diff([*starts, voxels.shape[axis]]).reshape(shape)
    upper, rest = np.divmod(high, counts)
    lower, rest = np.divmod((rest << 32) + low, counts)
    lower += (2 * rest > counts) | ((2 * rest == counts) & (lower & 1 == 1))
    total: np.ndarray = (upper.astype(voxels.dtype) << 32) + lower.astype(voxels.dtype)
    return total


def _means(values: np.ndarray, factor: tuple[int, ...]) -> np.ndarray:
    """Return the mean of every cell, one axis after the other."""
    for axis, f in enumerate(factor):
        if f > 1:
            starts = np.arange(0, values.shape[axis], f)
            counts = np.diff([*starts, values.shape[axis]])
            shape = [-1 if a == axis else 1 for a in range(values.ndim)]
            values = np.add.reduceat(values, starts, axis) / counts.reshape(shape)
    return values
