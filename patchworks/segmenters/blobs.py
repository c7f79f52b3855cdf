"""`blobs`: bright round objects of about one size, apart even where they touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt

import numpy as np

from patchworks.errors import InputError
from patchworks.run import finite_number
from patchworks.segmenters.otsu import otsu_threshold
from patchworks.segmenters.per_axis import PerAxis, numbers, one_channel, spread
from patchworks.segmenters.reach import TRUNCATE, gaussian_radius, hide_rims
from patchworks.segmenters.steepest_ascent import climb, summits

ROUNDING = 1e-6
"""Share of the intensity below which a response is what rounding made of a constant."""


@dataclass(frozen=True)
class Blobs:
    """Bright round objects of about one size; see `blobs`."""

    diameter: PerAxis
    threshold: float | None = None
    contrast: float = 0.0
    smoothing: float = 0.0

    def at_scale(self, voxel_size: Sequence[float | None], shape: Sequence[int]) -> Blobs:
        """Return itself; raise InputError if tiles of such axes cannot be segmented."""
        one_channel("blobs", voxel_size, shape)
        spread("blobs diameter", self.diameter, len(voxel_size))
        return self

    def prepare(self, sample: np.ndarray) -> Blobs:
        """Return the segmenter with Otsu's threshold of `sample`, if none was given."""
        is_known = self.threshold is not None
        return self if is_known else replace(self, threshold=otsu_threshold(sample))

    @property
    def reach(self) -> int | tuple[int, ...]:
        """How many voxels around a voxel its answer depends on; several: per axis.

        For one diameter as in 2-D, where it looks furthest.
        """
        if not isinstance(self.diameter, tuple):
            return self._reach_of((self.diameter,) * 2)[0]
        return self._reach_of(self.diameter)

    def _reach_of(self, diameters: tuple[float, ...]) -> tuple[int, ...]:
        """Return how far the way to the top of a blob is, and how far the response looks there."""
        seen = self._response_reach(diameters)
        return tuple([ceil(d) + 1 + far for d, far in zip(diameters, seen, strict=True)])

    def _response_reach(self, diameters: tuple[float, ...]) -> tuple[int, ...]:
        mask = gaussian_radius(self.smoothing)
        return tuple([max(mask, gaussian_radius(s) + 1) for s in scales(diameters)])

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Return int32 labels of the blobs."""
        return self.segment_view(tile, ((0, 0),) * tile.ndim)

    def segment_view(self, tile: np.ndarray, margins: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Return the blobs, but for the rim of the halo where the response lacks voxels."""
        diameters = spread("blobs diameter", self.diameter, tile.ndim)
        mask = hide_rims(self._mask(tile), margins, self._response_reach(diameters))
        response, least = laplacian_response(tile, scales(diameters))
        np.maximum(least, self.contrast, out=least)
        is_top = summits(response) & (response > least)
        return climb(response, mask, is_top, tuple([ceil(d) for d in diameters]))

    def _mask(self, tile: np.ndarray) -> np.ndarray:
        from scipy import ndimage

        value = otsu_threshold(tile) if self.threshold is None else self.threshold
        if self.smoothing:
            seen = tile.astype(np.float32)
            tile = ndimage.gaussian_filter(seen, self.smoothing, truncate=TRUNCATE)
        return np.asarray(tile > value)


def scales(diameters: tuple[float, ...]) -> tuple[float, ...]:
    """Return the standard deviations at which a ball of these diameters answers most.

    In d axes a ball of radius r does so at r / sqrt(d).
    """
    return tuple([diameter / 2 / sqrt(len(diameters)) for diameter in diameters])


def laplacian_response(tile: np.ndarray, sigma: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return how much each voxel is the middle of a bright blob, and what rounding may make of it.

    The scale-normalized Laplacian of the smoothed tile, negative. Its differences are those of
    neighbouring voxels: the derivatives of a Gaussian that is cut off do not add up to 0, and
    would answer to the background.

    Parameters
    ----------
    tile : numpy.ndarray
        Real numbers, any axes.
    sigma : tuple of float
        Scale in voxels, per axis.

    Returns
    -------
    numpy.ndarray, numpy.ndarray
        Of the tile's shape, float32, in units of its intensity.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(tile.astype(np.float64), sigma, truncate=TRUNCATE)
    response = np.zeros(tile.shape)
    for axis, scale in enumerate(sigma):
        response += ndimage.correlate1d(smooth, scale**2 * np.array([-1.0, 2.0, -1.0]), axis)
    least = np.abs(smooth, out=smooth) * ROUNDING
    return response.astype(np.float32), least.astype(np.float32)


def blobs(
    diameter: float | Sequence[float],
    *,
    threshold: float | None = None,
    contrast: float = 0.0,
    smoothing: float = 0.0,
) -> Blobs:
    """Return a segmenter of bright round objects of about one size, apart even where they touch.

    An object begins at each maximum of the Laplacian of Gaussian that fits the diameter. From each
    voxel above the threshold the steepest way up leads to one of them, whose object it belongs
    to: the watershed by the drop of water principle. Unlike flooding from markers, which is in
    order of the whole tile, this looks no further than the way, and gives the same in any tile. An
    object ends one diameter from its maximum along each axis, at the latest. So the objects are
    those of the whole image if the overlap is 2.5 diameters and 4 voxels (`reach` says it exactly).

    Parameters
    ----------
    diameter : float or list of float
        Typical diameter of an object in voxels, one number or one per axis where voxels are not
        cubes.
    threshold : float, optional
        Voxels above it are object; by default Otsu's threshold, computed once for the whole image.
    contrast : float
        Maxima that answer less are no objects; in intensities, about half of how much a blob is
        brighter than what is around it. Raise it where noise or texture makes too many.
    smoothing : float
        Gaussian smoothing before comparing with `threshold`, in voxels.

    Returns
    -------
    Blobs
        Tile ``(z, y, x)`` or ``(y, x)``, real numbers → int32 labels.

    Raises
    ------
    InputError
        If a number is none or out of its range.

    References
    ----------
    T. Lindeberg, "Feature detection with automatic scale selection", Int. J. Computer Vision 30(2),
    1998. D. Marr and E. Hildreth, "Theory of edge detection", Proc. R. Soc. Lond. B 207, 1980.
    J. Cousty et al., "Watershed cuts: minimum spanning forests and the drop of water principle",
    IEEE Trans. Pattern Analysis and Machine Intelligence 31(8), 2009.

    Examples
    --------
    >>> y, x = np.mgrid[:20, :40]
    >>> touching = np.maximum(*[np.exp(-((y - 10)**2 + (x - c)**2) / 18) for c in (14, 23)])
    >>> blobs(10, threshold=0.2)(touching)[10, [14, 18, 19, 23]].tolist()
    [1, 1, 2, 2]
    """
    found = numbers("blobs diameter", diameter, above=1)
    value = finite_number("blobs threshold", threshold)
    least = finite_number("blobs contrast", contrast)
    smooth = finite_number("blobs smoothing", smoothing)
    if least is None or least < 0:
        raise InputError(f"blobs contrast={contrast!r}: expected a number >= 0")
    if smooth is None or smooth < 0:
        raise InputError(f"blobs smoothing={smoothing!r}: expected a number of voxels >= 0")
    return Blobs(found, value, least, smooth)
