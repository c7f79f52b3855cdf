"""A tile cut in two, where the function cannot take it whole.

::

    tile:     ~ ~ |. . . . . . . .| ~ ~
    lower:    ~ ~ |. . . .| ~ ~             core up to the seam, and the halo beyond it
    upper:            ~ ~ |. . . .| ~ ~

A half is a tile like any other, and may be cut again; what it reads lies within what the whole
reads. Its seam is judged like those of the grid: on a slab that both halves saw, or on facing
planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from patchworks.errors import InputError
from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile, TileGrid

THINNEST = 8
"""Voxels that the core of a half has at least along the axis that is cut."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A tile in two halves.

    Parameters
    ----------
    axis, seam : int
        Where it is cut: the first voxel of the upper half.
    lower, upper : Tile
        The halves; they keep the tile's index, and its place on the grid.
    planes : tuple of Box
        What is compared of the lower and of the upper half's view: the same slab, or facing planes.
    is_slab : bool
        Which of the two.
    """

    axis: int
    seam: int
    lower: Tile
    upper: Tile
    planes: tuple[Box, Box]
    is_slab: bool


@dataclass(frozen=True, slots=True)
class CutRule:
    """How tiles of a run are cut.

    Parameters
    ----------
    halo : tuple of int
        Voxels that a half reads beyond a seam, per axis.
    slab : tuple of bool
        Per axis whether a seam is judged on a slab that both halves saw; needs a halo.
    thinnest : int
        Voxels of a half's core, along the axis that is cut, at least; and as many as its halo has,
        for below that a half hardly reads less than the whole.

    Raises
    ------
    InputError
        If the two differ in length, or a slab has no halo.

    Examples
    --------
    >>> tile = TileGrid.regular((64, 40), (64, 40), (0, 0))[0]
    >>> cut = CutRule(halo=(4, 4), slab=(True, True)).cut(tile)
    >>> cut.lower.read, cut.upper.read
    (Box(start=(0, 0), stop=(36, 40)), Box(start=(28, 0), stop=(64, 40)))
    """

    halo: tuple[int, ...]
    slab: tuple[bool, ...]
    thinnest: int = THINNEST

    def __post_init__(self) -> None:
        if len(self.halo) != len(self.slab):
            raise InputError(f"halo {self.halo} and slab {self.slab}: one entry per axis of each")
        if any(s and h < 1 for h, s in zip(self.halo, self.slab, strict=True)):
            raise InputError(f"slab {self.slab} needs a halo on those axes, got {self.halo}")

    def cut(self, tile: Tile) -> Cut | None:
        """Return a tile in two halves, cut along the longest axis of its core that may be cut.

        None where the halves would be thinner than allowed, whatever the axis.
        """
        fitting = [
            axis
            for axis, (n, halo) in enumerate(zip(tile.core.shape, self.halo, strict=True))
            if n // 2 >= max(halo, self.thinnest, 1)
        ]
        if not fitting:
            return None
        axis = max(fitting, key=lambda a: (tile.core.shape[a], -a))
        start, stop = tile.core.start[axis], tile.core.stop[axis]
        seam = (start + stop) // 2
        return Cut(
            axis,
            seam,
            self._half(tile, axis, start, seam),
            self._half(tile, axis, seam, stop),
            self._planes(tile, axis, seam),
            self.slab[axis],
        )

    def _half(self, tile: Tile, axis: int, start: int, stop: int) -> Tile:
        """Return the part of a tile whose core has these bounds; it reads to the tile's own end."""
        core, read, halo = tile.core, tile.read, self.halo[axis]
        is_lower = start == core.start[axis]
        lower = read.start[axis] if is_lower else max(start - halo, read.start[axis])
        upper = min(stop + halo, read.stop[axis]) if is_lower else read.stop[axis]
        return replace(
            tile,
            core=core.on_axis(axis, start, stop),
            read=read.on_axis(axis, lower, upper),
        )

    def _planes(self, tile: Tile, axis: int, seam: int) -> tuple[Box, Box]:
        """Return what is compared: as `SeamPlan` has it, over all that both can judge there."""
        extent = tile.core
        for other, is_slab in enumerate(self.slab):
            if is_slab:
                bounds = tile.read.start[other], tile.read.stop[other]
                extent = extent.on_axis(other, *bounds)
        if self.slab[axis]:
            slab = extent.on_axis(axis, seam - 1, seam + 1)
            return slab, slab
        return extent.on_axis(axis, seam - 1, seam), extent.on_axis(axis, seam, seam + 1)


def cut_halo(grid: TileGrid, overlap: Sequence[int]) -> tuple[int, ...]:
    """Return the halo of halves: that of the grid, or, on an axis with one tile, as asked for.

    Parameters
    ----------
    grid : TileGrid
        The tiles: their halo is 0 on an axis with one tile, for nothing lies beyond.
    overlap : sequence of int
        What was asked for, per axis.

    Examples
    --------
    >>> cut_halo(TileGrid.regular((9, 64), (9, 32), (0, 8)), (16, 8))
    (9, 8)
    """
    axes = zip(grid.dims, grid.halo, overlap, grid.shape, strict=True)
    return tuple([halo if n > 1 else min(asked, extent) for n, halo, asked, extent in axes])
