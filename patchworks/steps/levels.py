"""A region of level 0 → the levels whose cells lie inside it; a level → the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Protocol

import numpy as np

from patchworks.geometry.box import Box
from patchworks.geometry.planes import blocks_of_planes
from patchworks.geometry.pyramid import PyramidPlan
from patchworks.io.region_chunks import RegionChunks

Pool = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
"""What makes a level from the one above: `pool_labels` or `pool_image`."""

Read = Callable[[Box], np.ndarray]
"""Gives the labels of a box of level 0."""


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


PART = 2**19
"""Voxels of the planes that are gone through at a time: few enough for the processor's cache,
enough that threads seldom hand over the interpreter's lock."""


class LabelLevels(Levels, Protocol):
    """Levels of a label image, whose regions are written plane by plane."""

    @property
    def dtype(self) -> np.dtype:
        """Of the voxels."""

    def write_chunks(self, level: int, filled: RegionChunks, /) -> None:
        """Write the chunks of a region of a level."""


class RegionWriter:
    """Writes regions of labels to level 0 and to the levels whose cells lie inside them.

    Parameters
    ----------
    levels : LabelLevels
        The levels.
    pool : callable
        Makes a level from the one above.
    """

    def __init__(self, levels: LabelLevels, pool: Pool) -> None:
        self.levels = levels
        self.pool = pool
        self.filled = [
            RegionChunks(chunk, levels.dtype)
            for chunk in levels.pyramid.chunks[: levels.pyramid.n_fused]
        ]

    def write(self, region: Box, read: Read, labelled: Box | None = None) -> None:
        """Write a region.

        Parameters
        ----------
        region : Box
            Of level 0.
        read : callable
            Gives the labels of any box of it.
        labelled : Box, optional
            All voxels with labels lie in it; what is empty around it is not gone through.
        """
        pyramid, last = self.levels.pyramid, len(self.filled) - 1
        part = region if labelled is None else pyramid.fused_around(labelled, region)
        for level, filled in enumerate(self.filled):
            chunks = pyramid.whole_chunks(level, part, region)
            filled.begin(chunks, pyramid.cells_of(level, part))
        for box in self._blocks(last, part):
            self._fill(last, box, read)
        for level, filled in enumerate(self.filled):
            self.levels.write_chunks(level, filled)

    def _fill(self, level: int, box: Box, read: Read) -> np.ndarray:
        """Fill a box of level 0, and of the levels down to `level`, whose labels are returned."""
        pyramid = self.levels.pyramid
        if level == 0:
            labels = read(box)
        else:
            parts = [
                self.pool(self._fill(level - 1, part, read), pyramid.factor)
                for part in self._blocks(level - 1, box)
            ]
            labels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-3)
        self.filled[level].put(pyramid.cells_of(level, box), labels)
        return labels

    def _blocks(self, level: int, box: Box) -> Iterator[Box]:
        """Yield the blocks of planes, as boxes of level 0, of which `level` is made in one go."""
        pyramid = self.levels.pyramid
        n_voxels = PART * prod(pyramid.factor) ** level
        return blocks_of_planes(box, n_voxels, pyramid.chunks[0])


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
