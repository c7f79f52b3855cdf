"""`threshold`: connected components of the voxels above a threshold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from scipy import ndimage

from patchworks.errors import InputError
from patchworks.run import finite_number
from patchworks.segmenters.otsu import otsu_threshold

REACH = 4.0
"""Standard deviations at which Gaussian smoothing is cut off."""


@dataclass(frozen=True)
class Threshold:
    """Connected components of the voxels above a threshold; see `threshold`."""

    value: float | None = None
    sigma: float = 0.0
    connectivity: int = 1

    def prepare(self, sample: np.ndarray) -> Threshold:
        """Return the segmenter with Otsu's threshold of `sample`, if none was given."""
        return self if self.value is not None else replace(self, value=otsu_threshold(sample))

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Return int32 labels of the connected components above the threshold."""
        return self.segment_view(tile, ((0, 0),) * tile.ndim)

    @property
    def reach(self) -> int:
        """How many voxels around a voxel its answer depends on."""
        return int(REACH * self.sigma + 0.5)

    def segment_view(self, tile: np.ndarray, margins: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Return the components, but for the rim of the halo where smoothing lacks voxels.

        There the mask is made up of reflected voxels, and a bridge that only exists there would
        make two objects one, in the core too.
        """
        value = otsu_threshold(tile) if self.value is None else self.value
        structure = ndimage.generate_binary_structure(tile.ndim, min(self.connectivity, tile.ndim))
        if self.sigma:
            tile = ndimage.gaussian_filter(tile.astype(np.float32), self.sigma, truncate=REACH)
        mask = tile > value
        for axis, (lower, upper) in enumerate(margins):
            rims = np.moveaxis(mask, axis, 0)
            rims[: min(self.reach, max(0, lower - 1))] = False
            rims[len(rims) - min(self.reach, max(0, upper - 1)) :] = False
        labels, _ = ndimage.label(mask, structure)
        return cast(np.ndarray, labels)


def threshold(
    value: float | None = None, *, sigma: float = 0.0, connectivity: int = 1
) -> Threshold:
    """Return a segmenter that labels the connected components above a threshold.

    Parameters
    ----------
    value : float, optional
        Voxels above it are object; by default Otsu's threshold, computed once for the whole image.
    sigma : float
        Gaussian smoothing before, in voxels. It looks 4 sigma far: give an overlap of more.
    connectivity : int
        How many axes a step between neighbouring voxels of an object may change; 1 for faces only.

    Raises
    ------
    InputError
        If `value` is not a number, `sigma` is negative or `connectivity` is not a positive integer.

    Examples
    --------
    >>> threshold(4)(np.array([[9, 9, 0], [0, 0, 7]])).tolist()
    [[1, 1, 0], [0, 0, 2]]
    """
    number = finite_number("threshold value", value)
    if isinstance(connectivity, bool) or not isinstance(connectivity, int) or connectivity < 1:
        raise InputError(f"threshold connectivity={connectivity!r}: expected an integer >= 1")
    smoothing = finite_number("threshold sigma", sigma)
    if smoothing is None or smoothing < 0:
        raise InputError(f"threshold sigma={sigma!r}: expected a number of voxels >= 0")
    return Threshold(number, smoothing, connectivity)
