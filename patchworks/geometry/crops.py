"""A tile with signal in a part of it, and how much of it the function is handed.

::

    tile:      ~ ~ |. . . . . . . . . . . .| ~ ~      core and halo: what it reads
    signal:                       s s . s
    part:                 |. ~ ~ ~ s s . s ~ ~ ~ ~|   two halos around it, rounded up

A voxel within a halo of signal may belong to an object, and its label depends on the halo around
it; farther away a function that finds nothing where nothing is has nothing to say. A part is a
tile like any other, and lies within what the whole reads. As signal in the halo is at most a halo
away from the core, a part always holds voxels of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile, TileGrid, ceil_div

N_STEPS = 8
"""Extents that parts have on an axis: few, for models are compiled for each shape anew."""

MOST = 3, 4
"""Share of a tile that a part has at most; else the function is handed the tile."""


@dataclass(frozen=True, slots=True)
class CropRule:
    """How tiles of a run are cut down to where their signal is.

    Parameters
    ----------
    halo : tuple of int
        Voxels around it on which a label may depend, per axis. Nothing is cut off on an axis where
        it is 0: nobody said how far the function looks there.
    step : tuple of int
        Extents of parts are multiples of it, unless they are those of the tile.

    Examples
    --------
    >>> grid = TileGrid.regular((64, 128), (64, 64), halo=(0, 8))
    >>> rule = CropRule.of(grid)
    >>> part = rule.part(grid[0], Box((3, 9), (4, 12)))
    >>> part.read, part.core
    (Box(start=(0, 0), stop=(64, 30)), Box(start=(0, 0), stop=(64, 30)))
    >>> tile = grid[0]
    >>> rule.part(tile, Box((3, 9), (4, 40))) is tile
    True
    """

    halo: tuple[int, ...]
    step: tuple[int, ...]

    @classmethod
    def of(cls, grid: TileGrid) -> CropRule:
        """Return the rule for a grid of tiles."""
        axes = zip(grid.tile_shape, grid.halo, grid.shape, strict=True)
        return cls(grid.halo, tuple([ceil_div(min(t + 2 * h, n), N_STEPS) for t, h, n in axes]))

    @property
    def can_cut(self) -> bool:
        """Whether anything can be cut off at all."""
        return any(self.halo)

    def part(self, tile: Tile, signal: Box) -> Tile:
        """Return the part of a tile that the function is handed, or the tile.

        Parameters
        ----------
        tile : Tile
            Of the grid.
        signal : Box
            The least box around the signal in what the tile reads.
        """
        return within(tile, self._rounded(self._around(signal, tile.read), tile.read))

    def reach(self, tile: Tile, bounds: Box) -> Box | None:
        """Return what holds any part that a tile may have, if its signal lies in `bounds`.

        None where that may be the whole tile.
        """
        around = self._around(bounds, tile.read)
        # A smaller box begins no earlier once it is rounded, and ends by less than a step later.
        later = around.placed_at(tuple([step - 1 for step in self.step])).within(tile.read)
        reach = Box(self._rounded(around, tile.read).start, later.stop)
        return reach if _is_little(reach, tile) else None

    def _around(self, signal: Box, read: Box) -> Box:
        """Return two halos more than a box, clipped to what is read."""
        near = signal.grow(tuple([2 * halo for halo in self.halo]), read)
        for axis, halo in enumerate(self.halo):
            if not halo:
                near = near.on_axis(axis, read.start[axis], read.stop[axis])
        return near

    def _rounded(self, box: Box, read: Box) -> Box:
        """Return a box with its extents rounded up to steps, moved so that it lies in `read`."""
        axes = zip(box.shape, self.step, read.shape, strict=True)
        extents = [min(ceil_div(n, step) * step, whole) for n, step, whole in axes]
        ends = zip(box.start, extents, read.stop, strict=True)
        start = tuple([min(a, stop - n) for a, n, stop in ends])
        return Box(start, tuple([a + n for a, n in zip(start, extents, strict=True)]))


def within(tile: Tile, box: Box) -> Tile:
    """Return the part of a tile that reads a box which holds voxels of its core.

    The tile itself where that is hardly less.
    """
    core = tile.core.intersect(box)
    return replace(tile, core=core, read=box) if core and _is_little(box, tile) else tile


def _is_little(box: Box, tile: Tile) -> bool:
    return box.size * MOST[1] <= tile.read.size * MOST[0]
