"""The order in which tiles are read, so that little is kept for those that come later.

A chunk across a seam waits until the tile beyond the seam has its turn: for one tile along the
axis that goes fastest, for a whole layer of tiles along the slowest. So the slowest axis should be
the one across which an image is small::

    y                        rows first: a layer is as wide as the image
    | 0 1 2 3 4 5  ->
    | 6 7 8 9 ...            columns first: it is two tiles high
    +---------------- x      0 2 4 6 8 10
                             1 3 5 7 9 11
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

from patchworks.geometry.grid import TileGrid, index_of, place_of
from patchworks.geometry.reuse import chunk_reuse

WORTH = 0.9
"""Another order than that of the indices keeps less than so much of what that one keeps."""


@dataclass(frozen=True)
class ReadingOrder:
    """Ranks of tiles: which comes before which.

    Parameters
    ----------
    grid : TileGrid
        The tiles.
    axes : tuple of int, optional
        The axes, the slowest first; by default tiles are read in the order of their indices.

    Examples
    --------
    >>> order = ReadingOrder(TileGrid.regular((2, 3), (1, 1), (0, 0)), (1, 0))
    >>> [order.index(rank) for rank in range(6)], order.rank(3)
    ([0, 3, 1, 4, 2, 5], 1)
    """

    grid: TileGrid
    axes: tuple[int, ...] | None = None

    @classmethod
    def keeping_least(cls, grid: TileGrid, chunks: tuple[int, ...]) -> ReadingOrder:
        """Return the order in which the fewest voxels of chunks wait for tiles still to come.

        Parameters
        ----------
        grid : TileGrid
            The tiles.
        chunks : tuple of int
            Extents of what is decoded at once.
        """
        split = [axis for axis, n in enumerate(grid.dims) if n > 1]
        if grid.layer is not None or len(split) < 2:
            return cls(grid)
        single = [axis for axis, n in enumerate(grid.dims) if n == 1]
        kept = {
            order: chunk_reuse(grid, chunks, axes=(*single, *order)).n_waiting
            for order in permutations(split)
        }
        best = min(kept, key=lambda order: (kept[order], order))
        if kept[best] > WORTH * kept[tuple(split)]:
            return cls(grid)
        return cls(grid, (*single, *best))

    @cached_property
    def _dims(self) -> tuple[int, ...]:
        return tuple([self.grid.dims[axis] for axis in self.axes or ()])

    def rank(self, index: int) -> int:
        """Return how many tiles come before a tile."""
        if self.axes is None:
            return index
        position = self.grid.position(index)
        return index_of([position[axis] for axis in self.axes], self._dims)

    def index(self, rank: int) -> int:
        """Return the tile that comes after so many others."""
        if self.axes is None:
            return rank
        at = dict(zip(self.axes, place_of(rank, self._dims), strict=True))
        return self.grid.index([at[axis] for axis in range(self.grid.ndim)])

    def ordered(self, tiles: Iterable[int]) -> list[int]:
        """Return tiles in the order in which they are read."""
        return list(tiles) if self.axes is None else sorted(tiles, key=self.rank)
