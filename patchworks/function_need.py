"""What a segmentation function takes of memory and time: assumed, or measured by a probe."""

from __future__ import annotations

from dataclasses import dataclass

from patchworks.geometry.tile_shape import WORKING_BYTES_PER_VOXEL

LABEL_BYTES = 4
"""Of a voxel of labels, as most functions return them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionNeed:
    """What one call of a function takes, per voxel that it is given.

    Parameters
    ----------
    bytes_per_voxel : float
        Memory beside the voxels it is given, at its peak; the labels it returns included.
    label_bytes : float
        Of it, the labels.
    fixed_bytes : int
        Memory that a process holds from the first call on, whatever the tile: a model.
    gpu_bytes_per_voxel, gpu_fixed_bytes : float, int
        The same of a GPU's memory.
    seconds_per_voxel : float or None
        Time of a call, if it was measured.
    """

    bytes_per_voxel: float = float(WORKING_BYTES_PER_VOXEL)
    label_bytes: float = float(LABEL_BYTES)
    fixed_bytes: int = 0
    gpu_bytes_per_voxel: float = 0.0
    gpu_fixed_bytes: int = 0
    seconds_per_voxel: float | None = None
