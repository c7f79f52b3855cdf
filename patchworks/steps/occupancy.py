"""Voxels of a tile → whether there is signal in them."""

from __future__ import annotations

import numpy as np


def is_occupied(voxels: np.ndarray, threshold: float) -> bool:
    """Return whether any voxel that a tile reads, halo included, lies above `threshold`.

    The halo counts: an object may reach into the core with nothing but its dim rim.
    """
    return bool((voxels > threshold).any())
