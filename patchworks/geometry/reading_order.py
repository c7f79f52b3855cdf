"""The order in which tiles are read, so that little is kept for those that come later.

A chunk across a seam waits until the tile beyond the seam has its turn: for one tile along the
axis that goes fastest, for a whole layer of tiles along the slowest. So the slowest axis should be
one across which an image is small, and if a layer is still too large to be kept, the image is gone
through in bands::

    y                        rows first: a layer is as wide as the image
    | 0 1 2 3 4 5 ->
    | 6 7 8 9 ...            columns first: it is as high    0 4 8 ...
    |                                                        1 5 9
    |                        in bands of two rows: two high  0 2 4 6 ...
    +---------------- x                                      1 3 5 7

What lies across two bands is decoded for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from math import inf

from patchworks.geometry.grid import TileGrid, ceil_div, index_of, place_of
from patchworks.geometry.reuse import chunk_reuse

WORTH = 0.95
"""Another order than that of the indices decodes, or keeps, less than so much of what that does."""


@dataclass(frozen=True)
class ReadingOrder:
    """Ranks of tiles: which comes before which.

    Parameters
    ----------
    grid : TileGrid
        The tiles.
    axes : tuple of int, optional
        The axes, the slowest first; by default tiles are read in the order of their indices.
    bands : tuple of int, optional
        Per axis the tiles of a band, which is gone through before the next one; by default all.

    Examples
    --------
    >>> order = ReadingOrder(TileGrid.regular((3, 3), (1, 1), (0, 0)), (1, 0), (2, 3))
    >>> [order.index(rank) for rank in range(9)], order.rank(3)
    ([0, 3, 1, 4, 2, 5, 6, 7, 8], 1)
    """

    grid: TileGrid
    axes: tuple[int, ...] | None = None
    bands: tuple[int, ...] | None = None

    @classmethod
    def keeping_least(
        cls, grid: TileGrid, chunks: tuple[int, ...], max_kept: float = inf
    ) -> ReadingOrder:
        """Return the order in which chunks are decoded least often, and the fewest are kept.

        Parameters
        ----------
        grid : TileGrid
            The tiles.
        chunks : tuple of int
            Extents of what is decoded at once.
        max_kept : float
            Of which so many may be kept.
        """
        split = [axis for axis, n in enumerate(grid.dims) if n > 1]
        if grid.layer is not None or len(split) < 2:
            return cls(grid)
        plain = chunk_reuse(grid, chunks, max_kept)
        cost = {}
        for axes, bands in _orders(grid, split):
            found = chunk_reuse(grid, chunks, max_kept, axes, bands)
            cost[axes, bands] = (round(found.n_decoded / plain.n_chunks, 2), found.n_waiting)
        best = min(cost, key=lambda order: (*cost[order], order))
        n_decoded, n_waiting = cost[best]
        is_worth = n_decoded * plain.n_chunks < WORTH * plain.n_decoded
        if is_worth or n_waiting < WORTH * plain.n_waiting:
            return cls(grid, *best)
        return cls(grid)

    @cached_property
    def _order(self) -> list[tuple[int, int]]:
        """The tiles on each axis and those of a band, the slowest axis first."""
        dims, bands = self.grid.dims, self.bands or self.grid.dims
        return [(dims[axis], min(bands[axis], dims[axis])) for axis in self.axes or ()]

    def rank(self, index: int) -> int:
        """Return how many tiles come before a tile."""
        if self.axes is None:
            return index
        position = self.grid.position(index)
        left, rank, at, sizes = self.grid.n_tiles, 0, [], []
        for axis, (n, band) in zip(self.axes, self._order, strict=True):
            start = position[axis] // band * band
            rank += left // n * start
            sizes.append(min(band, n - start))
            left = left // n * sizes[-1]
            at.append(position[axis] - start)
        return rank + index_of(at, tuple(sizes))

    def index(self, rank: int) -> int:
        """Return the tile that comes after so many others."""
        if self.axes is None:
            return rank
        left, starts, sizes = self.grid.n_tiles, [], []
        for n, band in self._order:
            start = rank // (left // n) // band * band
            rank -= left // n * start
            starts.append(start)
            sizes.append(min(band, n - start))
            left = left // n * sizes[-1]
        places = zip(self.axes, starts, place_of(rank, tuple(sizes)), strict=True)
        position = {axis: start + at for axis, start, at in places}
        return self.grid.index([position[axis] for axis in range(self.grid.ndim)])

    def ordered(self, tiles: Iterable[int]) -> list[int]:
        """Return tiles in the order in which they are read."""
        return list(tiles) if self.axes is None else sorted(tiles, key=self.rank)


def _orders(grid: TileGrid, split: list[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield orders of the axes that are cut into tiles, with bands on all but the slowest."""
    single = [axis for axis, n in enumerate(grid.dims) if n == 1]
    for order in permutations(split):
        for cut in product(*[_bands(grid.dims[axis]) for axis in order[1:]]):
            bands = dict(zip(order[1:], cut, strict=True))
            yield (
                (*single, *order),
                tuple([bands.get(axis, n) for axis, n in enumerate(grid.dims)]),
            )


def _bands(n: int) -> list[int]:
    """Return extents of bands: all tiles of an axis, halves, quarters, ..., at least two."""
    parts = [n]
    while parts[-1] > 3:
        parts.append(ceil_div(parts[-1], 2))
    return parts
