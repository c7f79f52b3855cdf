"""A region of level 0 → the levels whose cells lie inside it; a level → the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from patchworks.geometry.box import Box
from patchworks.geometry.pyramid import PyramidPlan

Pool = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
"""What makes a level from the one above: `pool_labels` or `pool_image`."""


class Levels(Protocol):
    """Levels that are being written: those of an image or of a label image."""

    @property
    def pyramid(self) -> PyramidPlan:
        """Their shapes, chunks and regions."""

    def write(self, level: int, box: Box, voxels: np.ndarray, /) -> None:
        """Write the voxels of a box of a level."""

    def read(self, level: int, box: Box, /) -> np.ndarray:
        """Return the voxels of a box of a level."""


def write_region(levels: Levels, region: Box, voxels: np.ndarray, pool: Pool) -> None:
    """Write a region to level 0 and to the levels whose cells lie inside it."""
    levels.write(0, region, voxels)
    for level in range(1, levels.pyramid.n_fused):
        voxels = pool(voxels, levels.pyramid.factor)
        levels.write(level, levels.pyramid.cells_of(level, region), voxels)


def build_region(levels: Levels, level: int, region: Box, pool: Pool) -> None:
    """Write a region of a level that is made from the level above."""
    above = levels.read(level - 1, levels.pyramid.voxels_of(level, region))
    if above.any():  # what is empty has no file
        levels.write(level, region, pool(above, levels.pyramid.factor))


def build_level(levels: Levels, level: int, regions: Sequence[int], pool: Pool) -> int:
    """Write regions of a level that is made from the level above; returns how many."""
    grid = levels.pyramid.regions(level)
    for index in regions:
        build_region(levels, level, grid[index].core, pool)
    return len(regions)
