"""A sample of the image → the intensity up to which a voxel is background.

Wrong in one direction only: a threshold that is too low leaves tiles to be segmented that hold
nothing, one that is too high would lose objects. So what is not clearly background is signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from patchworks.segmenters import otsu_threshold

RULE = 1
"""Changes when the same sample would give another threshold."""

TWO_CLASSES = 0.8
"""Share of the variance that lies between two classes, from which on there are two. Splitting a
Gaussian in the middle gives 0.64, a uniform distribution 0.75."""

STILL_TWO = 0.7
"""The same where the darker class is split again: when in doubt, it is."""

MOST_SPLITS = 8

MOST = 0.5
"""Share of the voxels that signal has at most: else dark may be what is looked for."""

SAFE = "In doubt, nothing is left out but tiles of zeros"

HOT = 1e-4
"""Share of the voxels, the brightest, that may be hot pixels: they count, but not how bright."""

RARE = 1e-3
"""Share of the voxels that signal has at least: what is rarer may be hot pixels, too."""

CEILING = 7.0
"""Standard deviations of the background's noise above it that noise does not reach."""

FLOOR = 3.5
"""Standard deviations above the background up to which there is nothing but noise to be told."""

CLEAN = 0.1
"""Voxels between these two, per voxel above both, up to which there is a gap between background and
signal. Else there may be objects in it, dimmer than the brightest noise."""

ROUNDING = 1 / sqrt(12)
"""Standard deviation that rounding to integers makes."""


@dataclass(frozen=True)
class Background:
    """What is background.

    Parameters
    ----------
    threshold : float
        Signal lies above it.
    said : str
        How it was found, for the log.
    """

    threshold: float
    said: str


def find_background(sample: np.ndarray) -> Background:
    """Return the intensity up to which a voxel is background.

    Otsu's threshold, lowered twice: the darker class is split again while it is clearly two (dim
    objects between dark background and bright objects are signal), and then to where the noise of
    the darkest class ends; if the darkest objects run into the noise, to where they do. Where the
    sample does not fall into two classes, everything above 0 is signal: an image of noise alone,
    one full of signal, one of one value.

    Parameters
    ----------
    sample : numpy.ndarray
        Voxels from all over the image, flat.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> noise = rng.poisson(100, 10_000)
    >>> find_background(noise.astype("uint16")).threshold
    0.0
    >>> cells = np.where(rng.random(10_000) < 0.1, 900, noise).astype("uint16")
    >>> 140 < find_background(cells).threshold < 200
    True
    """
    dtype = sample.dtype
    if dtype.kind == "b":
        return Background(0.0, "of booleans: signal is what is true")
    values = _finite(sample)
    n_voxels = f"a sample of {values.size} voxels"
    if values.size == 0:
        return Background(_lowest(values, dtype), f"{n_voxels} that are numbers")
    values, otsu, share = _split_without_hot_pixels(values)
    if share >= TWO_CLASSES:
        threshold = _lowered(values, otsu, dtype)
        said = f"{n_voxels}: Otsu's threshold is {otsu:g}; below it, where noise ends"
    else:
        threshold, is_clean = _end_of_noise(values, values, dtype)
        said = f"{n_voxels}: where the noise of the background ends"
        if not is_clean:
            return Background(
                _lowest(values, dtype),
                f"{n_voxels} does not fall into background and signal: {share:.0%} of the variance "
                f"lie between two classes. {SAFE}",
            )
    n_signal = int(np.count_nonzero(values > threshold))
    if not RARE <= n_signal / values.size <= MOST:
        return Background(
            _lowest(values, dtype),
            f"{n_voxels}, {n_signal / values.size:.2%} of them above {threshold:g}: signal is not "
            f"told from {'hot pixels' if n_signal < values.size / 2 else 'background'}. {SAFE}",
        )
    return Background(threshold, said)


def _lowest(values: np.ndarray, dtype: np.dtype) -> float:
    """Return a threshold up to which there is nothing for sure: 0, or the lowest of the dtype."""
    if dtype.kind == "u" or values.size == 0 or values.min() >= 0:
        return 0.0
    return float(np.finfo(dtype).min if dtype.kind == "f" else np.iinfo(dtype).min)


def _finite(sample: np.ndarray) -> np.ndarray:
    """Return the values that are numbers; infinite ones count as the largest of the others."""
    if sample.dtype.kind != "f":
        return sample
    finite = sample[np.isfinite(sample)]
    n_infinite = int(np.count_nonzero(sample == np.inf)) if finite.size else 0
    return np.append(finite, np.full(n_infinite, finite.max())) if n_infinite else finite


def _split_without_hot_pixels(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the values without hot pixels, Otsu's threshold of them, and how well it splits them.

    A brighter class that is too small is one of hot pixels.
    """
    values = _without_hot_pixels(values)
    for _ in range(MOST_SPLITS):
        otsu, share = _split(values)
        if share < TWO_CLASSES or np.count_nonzero(values > otsu) >= RARE * values.size:
            return values, otsu, share
        values = np.minimum(values, values[values <= otsu].max())
    return values, otsu, 0.0


def _without_hot_pixels(values: np.ndarray) -> np.ndarray:
    """Return the values with the brightest few set to the brightest of the others."""
    n_hot = int(np.ceil(HOT * values.size)) if values.size > 1 else 0
    at = values.size - 1 - n_hot
    found: np.ndarray = np.minimum(values, np.partition(values, at)[at])
    return found


def _split(values: np.ndarray) -> tuple[float, float]:
    """Return Otsu's threshold, and the share of the variance that lies between the classes."""
    otsu = otsu_threshold(values)
    above = values > otsu
    n_above = int(np.count_nonzero(above))
    if n_above in (0, values.size):
        return otsu, 0.0
    x = values.astype(np.float64)
    weight = n_above / values.size
    step = x[above].mean() - x[~above].mean()
    total = x.var()
    return otsu, float(weight * (1 - weight) * step**2 / total) if total else 0.0


def _level_and_noise(values: np.ndarray, dtype: np.dtype) -> tuple[float, float]:
    """Return the median of a class and the standard deviation of its darker side.

    The brighter side holds the rims of objects.
    """
    darker, level = map(float, np.percentile(values, (15.87, 50)))
    return level, max(level - darker, ROUNDING if dtype.kind in "iu" else 0.0)


def _end_of_noise(darker: np.ndarray, values: np.ndarray, dtype: np.dtype) -> tuple[float, bool]:
    """Return where the noise of the darker class ends, and whether there is a gap above it."""
    level, noise = _level_and_noise(darker, dtype)
    floor, ceiling = level + FLOOR * noise, level + CEILING * noise
    n_above = int(np.count_nonzero(values > ceiling))
    n_between = int(np.count_nonzero(values > floor)) - n_above
    is_clean = n_between <= CLEAN * n_above
    return (ceiling if is_clean else floor), is_clean


def _lowered(values: np.ndarray, otsu: float, dtype: np.dtype) -> float:
    """Return a threshold below Otsu's that dim objects are above."""
    threshold = otsu
    for _ in range(MOST_SPLITS):
        darker = values[values <= threshold]
        lower, share = _split(darker)
        if share < STILL_TWO or lower >= threshold:
            break
        threshold = lower
    end, _ = _end_of_noise(values[values <= threshold], values, dtype)
    if np.any((values > threshold) & (values <= end)):
        return threshold
    return end
