"""A segmenter for patchworks: what is brighter than its surroundings."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

SIGMA = 2.0
"""Of the Gaussian smoothing, in voxels; it looks four times as far."""


@dataclass(frozen=True)
class TopHat:
    """Connected components of what an opening with a box takes away from the smoothed tile."""

    brighter_by: float
    size: int
    objects: Literal["bright", "dark"]

    @property
    def reach(self) -> int:
        """How many voxels around a voxel its answer depends on; patchworks warns of less."""
        return round(4 * SIGMA) + 2 * (self.size // 2)

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Return labels of the tile's shape: integers, 0 for background."""
        smooth = ndimage.gaussian_filter(tile.astype(np.float32), SIGMA, truncate=4)
        top_hat = ndimage.white_tophat if self.objects == "bright" else ndimage.black_tophat
        labels, _ = ndimage.label(top_hat(smooth, self.size) > self.brighter_by)
        return labels


def example(
    brighter_by: float = 30.0,
    *,
    size: int = 61,
    objects: Literal["bright", "dark"] = "bright",
) -> TopHat:
    """Return a segmenter of objects that differ from what is around them, on any background.

    Parameters
    ----------
    brighter_by : float
        How much a voxel of an object differs from the background around it.
    size : int
        Width of a box in voxels that no object can hold.
    objects : {"bright", "dark"}
        Whether objects are brighter or darker than the background.
    """
    if size < 2:
        raise ValueError(f"size={size}: expected 2 voxels or more")
    return TopHat(brighter_by, size, objects)
