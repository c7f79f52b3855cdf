"""`threshold`: connected components of the voxels above a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np

from patchworks.errors import InputError
from patchworks.run import finite_number
from patchworks.segmenters.otsu import otsu_threshold
from patchworks.segmenters.per_axis import PerAxis, numbers, one_channel, spread, whole
from patchworks.segmenters.reach import TRUNCATE, gaussian_radius, hide_rims

Local = Literal["mean", "gaussian"]

SIGMAS_OF_WINDOW = 6.0
"""Standard deviations across the window of a Gaussian mean."""


@dataclass(frozen=True)
class Threshold:
    """Connected components of the voxels above a threshold; see `threshold`."""

    value: float | None = None
    sigma: float = 0.0
    connectivity: int = 1
    local: Local | None = None
    window: PerAxis = 51.0
    offset: float = 0.0

    def at_scale(self, voxel_size: Sequence[float | None], shape: Sequence[int]) -> Threshold:
        """Return itself; raise InputError if tiles of such axes cannot be segmented."""
        one_channel("threshold", voxel_size, shape)
        spread("threshold window", self.window, len(voxel_size))
        return self

    def prepare(self, sample: np.ndarray) -> Threshold:
        """Return the segmenter with Otsu's threshold of `sample`, if it is to be global."""
        is_known = self.value is not None or self.local is not None
        return self if is_known else replace(self, value=otsu_threshold(sample))

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Return int32 labels of the connected components above the threshold."""
        return self.segment_view(tile, ((0, 0),) * tile.ndim)

    @property
    def reach(self) -> int | tuple[int, ...]:
        """How many voxels around a voxel its answer depends on; several: per axis."""
        smoothing = gaussian_radius(self.sigma)
        if self.local is None:
            return smoothing
        if isinstance(self.window, tuple):
            return tuple([smoothing + int(width) // 2 for width in self.window])
        return smoothing + int(self.window) // 2

    def segment_view(self, tile: np.ndarray, margins: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Return the components, but for the rim of the halo where a mean lacks voxels."""
        from scipy import ndimage

        reach = self.reach if isinstance(self.reach, tuple) else (self.reach,) * tile.ndim
        structure = ndimage.generate_binary_structure(tile.ndim, min(self.connectivity, tile.ndim))
        mask = hide_rims(self._mask(tile), margins, reach)
        labels, _ = ndimage.label(mask, structure)
        return cast(np.ndarray, labels)

    def _mask(self, tile: np.ndarray) -> np.ndarray:
        from scipy import ndimage

        value = self.value
        if value is None and self.local is None:
            value = otsu_threshold(tile)
        if self.sigma:
            tile = ndimage.gaussian_filter(tile.astype(np.float32), self.sigma, truncate=TRUNCATE)
        mask = np.ones(tile.shape, bool) if value is None else np.asarray(tile > value)
        if self.local is not None:
            tile = tile.astype(np.float32, copy=False)
            mask &= tile - self._mean_around(tile) > self.offset
        return mask

    def _mean_around(self, tile: np.ndarray) -> np.ndarray:
        """Return the mean in the window around each voxel.

        Summed in double precision and rounded: where all voxels are equal, it is just that. Each
        window is summed on its own: running sums would depend on where the tile begins.
        """
        from scipy import ndimage

        widths = [int(w) for w in spread("threshold window", self.window, tile.ndim)]
        if self.local == "gaussian":
            radius = [width // 2 for width in widths]
            sigma = [(width - 1) / SIGMAS_OF_WINDOW for width in widths]
            smooth = ndimage.gaussian_filter(tile, sigma, output=np.float64, radius=radius)
            return cast(np.ndarray, smooth.astype(np.float32))
        mean = tile.astype(np.float64)
        for axis, width in enumerate(widths):
            if width > 1:
                mean = ndimage.correlate1d(mean, np.full(width, 1 / width), axis)
        return mean.astype(np.float32)


def threshold(
    value: float | None = None,
    *,
    sigma: float = 0.0,
    connectivity: int = 1,
    local: Local | None = None,
    window: int | Sequence[int] = 51,
    offset: float = 0.0,
) -> Threshold:
    """Return a segmenter that labels the connected components above a threshold.

    There is no least size of an object: of an object at a seam each tile sees a part, and would
    take it for a small one. Leave out small objects afterwards, from the label image.

    Parameters
    ----------
    value : float, optional
        Voxels above it are object; by default Otsu's threshold, computed once for the whole image.
        With `local` it is a floor that holds beside the local threshold, and by default none.
    sigma : float
        Gaussian smoothing before, in voxels. It looks 4 sigma far: give an overlap of more.
    connectivity : int
        How many axes a step between neighbouring voxels of an object may change; 1 for faces only.
    local : {"mean", "gaussian"}, optional
        For uneven backgrounds: voxels brighter than the mean around them are object, of all voxels
        of the window alike or weighted by a Gaussian. It looks half a window far, and 4 sigma:
        give an overlap of more.
    window : int or list of int
        Width of the window in voxels, odd, one number or one per axis; wider than the objects.
    offset : float
        How much brighter than the mean around it a voxel of an object is.

    Returns
    -------
    Threshold
        Tile ``(z, y, x)`` or ``(y, x)``, real numbers → int32 labels. Local thresholds are compared
        in single precision.

    Raises
    ------
    InputError
        If a number is none or out of its range, or `local` is neither.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Systems, Man,
    and Cybernetics 9(1), 1979.

    Examples
    --------
    >>> threshold(4)(np.array([[9, 9, 0], [0, 0, 7]])).tolist()
    [[1, 1, 0], [0, 0, 2]]
    >>> on_a_slope = np.array([[0, 10, 20, 39, 40, 50, 60, 79, 80]])
    >>> threshold(local="mean", window=[1, 3], offset=2)(on_a_slope).tolist()
    [[0, 0, 0, 1, 0, 0, 0, 2, 0]]
    """
    number = finite_number("threshold value", value)
    if isinstance(connectivity, bool) or not isinstance(connectivity, int) or connectivity < 1:
        raise InputError(f"threshold connectivity={connectivity!r}: expected an integer >= 1")
    smoothing = finite_number("threshold sigma", sigma)
    if smoothing is None or smoothing < 0:
        raise InputError(f"threshold sigma={sigma!r}: expected a number of voxels >= 0")
    if local not in (None, *get_args(Local)):
        raise InputError(f"threshold local={local!r}: expected one of {get_args(Local)} or None")
    brighter = finite_number("threshold offset", offset)
    if brighter is None:
        raise InputError(f"threshold offset={offset!r}: expected a number")
    return Threshold(number, smoothing, connectivity, local, _odd(window), brighter)


def _odd(window: int | Sequence[int]) -> PerAxis:
    name = "threshold window"
    widths = numbers(name, whole(name, window), above=0)
    several = widths if isinstance(widths, tuple) else (widths,)
    if any(width % 2 == 0 for width in several) or max(several) < 3:
        raise InputError(
            f"{name}={window!r}: expected an odd number of voxels from 3, or one per axis, 1 where "
            f"only other axes count"
        )
    return widths
