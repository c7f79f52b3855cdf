"""The tile grid: how cores partition the image, and what each tile reads around its core.

::

    axis:      0        t        2t       3t   n
    cores:     |--------|--------|--------|----|      half-open, no gap, no overlap
    read of 1:       |..|--------|..|                 core plus halo, clipped to the image
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from math import prod
from typing import Any

from patchworks.errors import InputError
from patchworks.geometry.box import Box


def ceil_div(total: int, part: int) -> int:
    """Return how many parts of size `part` it takes to cover `total`.

    Examples
    --------
    >>> ceil_div(10, 4)
    3
    """
    return -(-total // part)


def place_of(index: int, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return the place of an index on a grid, in C order."""
    position = []
    for n in reversed(dims):
        index, at = divmod(index, n)
        position.append(at)
    return tuple(reversed(position))


def index_of(position: Sequence[int], dims: tuple[int, ...]) -> int:
    """Return the index of a place on a grid, in C order."""
    index = 0
    for at, n in zip(position, dims, strict=True):
        index = index * n + at
    return index


@dataclass(frozen=True, slots=True)
class Tile:
    """The unit of computation.

    Parameters
    ----------
    index : int
        Position in the order of the grid; the tile's name everywhere.
    position : tuple of int
        Position on the grid, per axis.
    core : Box
        The voxels the tile owns, in the image.
    read : Box
        The voxels the function sees: core plus halo, clipped to the image.
    apart : tuple of int
        Axes of one voxel that the function does not see.
    """

    index: int
    position: tuple[int, ...]
    core: Box
    read: Box
    apart: tuple[int, ...] = ()

    @property
    def core_in_read(self) -> Box:
        """The core in the coordinates of the array that was read."""
        return self.core.relative_to(self.read.start)

    @property
    def margins(self) -> tuple[tuple[int, int], ...]:
        """Voxels of halo on the lower and the upper side, per axis; 0 where the image ends."""
        lower = [c - r for c, r in zip(self.core.start, self.read.start, strict=True)]
        upper = [r - c for c, r in zip(self.core.stop, self.read.stop, strict=True)]
        return tuple(zip(lower, upper, strict=True))

    def seen(self, per_axis: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the entries of the axes that the function sees, of one entry per axis."""
        return tuple([entry for axis, entry in enumerate(per_axis) if axis not in self.apart])


@dataclass(frozen=True)
class TileGrid:
    """A grid of tiles over an image, regular or not.

    Parameters
    ----------
    edges : tuple of tuple of int
        Per axis the first voxel of every tile and, last, the extent of the image.
    halo : tuple of int
        Voxels read on each side of a core, per axis.
    apart : tuple of int
        Axes on which every tile is one voxel thick, and which the function does not see: time, or
        the slices of a stack that are segmented one by one.
    layer : tuple of int, optional
        An axis, and how many tiles on it come one after the other before the axes after it go on:
        those that read the same chunks. None for C order.

    Raises
    ------
    InputError
        If an axis has no voxels, edges do not increase, a halo is negative, or tiles of an axis
        that is apart are thicker than one voxel.

    Examples
    --------
    >>> grid = TileGrid.regular((10, 8), (4, 8), halo=(1, 0))
    >>> grid.dims, grid.n_tiles
    ((3, 1), 3)
    >>> grid[1].core, grid[1].read
    (Box(start=(4, 0), stop=(8, 8)), Box(start=(3, 0), stop=(9, 8)))

    Slices of which two at a time lie in the same chunks:

    >>> grid = TileGrid.regular((3, 8), (1, 4), halo=(0, 0))
    >>> from dataclasses import replace
    >>> [tile.position for tile in replace(grid, apart=(0,), layer=(0, 2))]
    [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]
    """

    edges: tuple[tuple[int, ...], ...]
    halo: tuple[int, ...]
    apart: tuple[int, ...] = ()
    layer: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.halo) or not self.edges:
            raise InputError(f"halo {self.halo} does not have one entry per axis of the grid")
        for axis, edges in enumerate(self.edges):
            increasing = all(a < b for a, b in pairwise(edges))
            if len(edges) < 2 or edges[0] != 0 or not increasing:
                raise InputError(f"axis {axis}: tile edges {edges[:6]} must increase from 0")
        if any(h < 0 for h in self.halo):
            raise InputError(f"halo {self.halo} must not be negative")
        for axis in self.apart:
            if self.halo[axis] or self.edges[axis] != tuple(range(len(self.edges[axis]))):
                raise InputError(f"axis {axis}: tiles that are apart are one voxel thick")

    @classmethod
    def regular(
        cls, shape: tuple[int, ...], tile_shape: tuple[int, ...], halo: tuple[int, ...]
    ) -> TileGrid:
        """Return the grid of equal tiles; the last of an axis may be smaller."""
        return cls(
            tuple(
                [(*range(0, n, t), n) for n, t in zip(shape, tile_shape, strict=True)],
            ),
            tuple(halo),
        )

    @classmethod
    def from_chunks(cls, chunks: Sequence[Sequence[int]], halo: tuple[int, ...]) -> TileGrid:
        """Return the grid whose tiles are Dask-like `chunks` (extents per axis)."""
        return cls(tuple([(0, *accumulate(c for c in axis if c)) for axis in chunks]), halo)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.edges)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image, in voxels."""
        return tuple([edges[-1] for edges in self.edges])

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of tiles per axis."""
        return tuple([len(edges) - 1 for edges in self.edges])

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return prod(self.dims)

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Extent of the largest tile per axis, in voxels."""
        return tuple(
            [max(b - a for a, b in pairwise(e)) for e in self.edges],
        )

    @property
    def is_regular(self) -> bool:
        """Whether all tiles but the last of an axis have the same extent there."""
        return all(
            edges[i] == i * edges[1] for edges in self.edges for i in range(len(edges) - 1)
        ) and all(edges[-1] - edges[-2] <= edges[1] for edges in self.edges)

    @property
    def n_read_voxels(self) -> int:
        """Voxels that all tiles read together, their halos included."""
        n_read = 1
        for edges, halo in zip(self.edges, self.halo, strict=True):
            n_read *= sum(min(b + halo, edges[-1]) - max(a - halo, 0) for a, b in pairwise(edges))
        return n_read

    def position(self, index: int) -> tuple[int, ...]:
        """Return the place of tile `index` on the grid."""
        if self.layer is None:
            return place_of(index, self.dims)
        axis, n_inner, depth = self._layers
        n = self.dims[axis]
        before, index = divmod(index, n * n_inner)
        start = depth * (index // (depth * n_inner))
        inner, step = divmod(index - start * n_inner, min(depth, n - start))
        outer = place_of(before, self.dims[:axis])
        return (*outer, start + step, *place_of(inner, self.dims[axis + 1 :]))

    def index(self, position: Sequence[int]) -> int:
        """Return the index of the tile at `position`."""
        if self.layer is None:
            return index_of(position, self.dims)
        axis, n_inner, depth = self._layers
        n = self.dims[axis]
        start = depth * (position[axis] // depth)
        inner = index_of(position[axis + 1 :], self.dims[axis + 1 :])
        within = start * n_inner + inner * min(depth, n - start) + position[axis] - start
        return index_of(position[:axis], self.dims[:axis]) * n * n_inner + within

    @property
    def _layers(self) -> tuple[int, int, int]:
        """The axis of the layers, the tiles on the axes after it, and the depth of a layer."""
        axis, depth = self.layer or (0, 1)
        return axis, prod(self.dims[axis + 1 :]), depth

    def next_on(self, axis: int, index: int) -> int | None:
        """Return the tile after tile `index` on an axis, or None at the end."""
        position = list(self.position(index))
        position[axis] += 1
        return self.index(position) if position[axis] < self.dims[axis] else None

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < self.n_tiles:
            raise IndexError(f"tile {index} of a grid of {self.n_tiles}")
        position = self.position(index)
        core = Box(
            tuple([e[p] for e, p in zip(self.edges, position, strict=True)]),
            tuple([e[p + 1] for e, p in zip(self.edges, position, strict=True)]),
        )
        read = core.grow(self.halo, Box.whole(self.shape))
        return Tile(index, position, core, read, self.apart)

    def overlapping(self, box: Box) -> Iterator[Tile]:
        """Yield the tiles whose cores share voxels with `box`."""
        inside = box.intersect(Box.whole(self.shape))
        if inside is None:
            return iter(())
        return (self[self.index(position)] for position in product(*self._spans(inside)))

    def readers_of(self, box: Box) -> Iterator[int]:
        """Yield the indices of the tiles that read voxels of `box`, halo included.

        Examples
        --------
        >>> grid = TileGrid.regular((12,), (4,), halo=(1,))
        >>> list(grid.readers_of(Box((3,), (4,))))
        [0, 1]
        """
        whole = Box.whole(self.shape)
        inside = box.intersect(whole)
        if inside is None:
            return iter(())
        positions = product(*self._spans(inside.grow(self.halo, whole)))
        return (self.index(position) for position in positions)

    def _spans(self, box: Box) -> list[range]:
        """Return per axis which tiles have cores that share voxels with a box of the image."""
        return [
            range(bisect_right(edges, start) - 1, bisect_left(edges, stop))
            for edges, start, stop in zip(self.edges, box.start, box.stop, strict=True)
        ]

    def __len__(self) -> int:
        return self.n_tiles

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(self.n_tiles))
