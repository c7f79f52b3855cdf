"""How far a segmenter looks: what it cannot know at the rim of a tile, and the overlap it takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from patchworks.geometry.grid import TileGrid
from patchworks.segmenters.segmenter import name_of

logger = logging.getLogger(__name__)

TRUNCATE = 4.0
"""Standard deviations at which Gaussian smoothing is cut off."""


def gaussian_radius(sigma: float) -> int:
    """Return how many voxels around a voxel Gaussian smoothing looks."""
    return int(TRUNCATE * sigma + 0.5)


def hide_rims(
    mask: np.ndarray, margins: Sequence[tuple[int, int]], reach: Sequence[int]
) -> np.ndarray:
    """Leave out of a mask what lies too close to where the tile, not the image, ends.

    There the mask is made up of reflected voxels, and a bridge that only exists there would make
    two objects one, in the core too. Of the halo at least one voxel stays.

    Parameters
    ----------
    mask : numpy.ndarray
        Of a tile; changed in place, and returned.
    margins : sequence of (int, int)
        Voxels of halo per axis, on the lower and the upper side.
    reach : sequence of int
        How far the mask at a voxel depends on others, per axis.
    """
    for axis, ((lower, upper), far) in enumerate(zip(margins, reach, strict=True)):
        rims = np.moveaxis(mask, axis, 0)
        rims[: min(far, max(0, lower - 1))] = False
        rims[len(rims) - min(far, max(0, upper - 1)) :] = False
    return mask


def reach_of(segmenter: Any, n_axes: int) -> tuple[int, ...] | None:
    """Return how far a segmenter says that it looks, per axis of a tile; None if it does not say.

    Parameters
    ----------
    segmenter : callable
        With an attribute `reach`, a number of voxels or one per axis, or without.
    n_axes : int
        Axes of a tile, but for that of several channels.
    """
    said: Any = getattr(segmenter, "reach", None)
    try:
        far = list(said) if np.ndim(said) else [said] * n_axes
        found = tuple([ceil(each) for each in far])
    except (TypeError, ValueError, OverflowError):
        return None
    return found if len(found) == n_axes else None


def warn_if_short(segmenter: Any, grid: TileGrid) -> None:
    """Warn, in one line, where tiles overlap by no more than how far a segmenter looks."""
    axes = [axis for axis in range(grid.ndim) if axis not in grid.apart]
    reach = reach_of(segmenter, len(axes))
    if reach is None:
        return
    far = dict(zip(axes, reach, strict=True))
    short = [a for a in axes if grid.dims[a] > 1 and 0 < far[a] >= grid.halo[a]]
    if short:
        enough = [far.get(a, 0) + 1 for a in range(grid.ndim)]
        logger.warning(
            "%s looks %s voxels far, and tiles overlap by %s: objects at seams can differ from "
            "those of the whole image; give overlap=%s or more",
            name_of(segmenter),
            max([far[a] for a in short]),
            min([grid.halo[a] for a in short]),
            enough[axes[0]] if len(set(reach)) == 1 else enough,
        )
