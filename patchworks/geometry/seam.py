"""Where tiles meet: the planes each tile keeps of a seam, and which tiles share one.

A face with a halo (both tiles read across it) is judged on a *slab*, the two planes on either side
of the seam, as each of the two tiles saw them::

            tile a                  tile b
      ... . . . . p | q ~ ~           core of a . | core of b ~
      ~ ~ . . . . p | q . . ...       slab: planes p and q, seen by both

A face without one is judged on the *facing planes*: p as tile a saw it, q as tile b saw it.
Where several axes have no halo, tiles that meet only along an edge or in a corner have to be
compared too: no tile in between has seen both sides.

On an axis that is *apart* (time; slices that are segmented one by one) there are no seams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile, TileGrid

Side = Literal["lower", "upper"]


@dataclass(frozen=True, slots=True)
class Plane:
    """One side of a tile on one axis: the name of the seam planes kept there."""

    axis: int
    side: Side

    @property
    def key(self) -> str:
        """A short name, stable on disk."""
        return f"{self.axis}{self.side[0]}"


@dataclass(frozen=True, slots=True)
class Contact:
    """Two tiles that meet across a face, along an edge or in a corner.

    Parameters
    ----------
    tile, other : int
        Indices of the two tiles.
    steps : tuple of int
        Per axis -1, 0 or +1: the way from `tile` to `other`. The first that is not 0 is +1.
    """

    tile: int
    other: int
    steps: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes on which the two tiles differ."""
        return tuple([axis for axis, step in enumerate(self.steps) if step])

    @property
    def is_face(self) -> bool:
        """Whether the two tiles share a whole face."""
        return len(self.axes) == 1


@dataclass(frozen=True, slots=True)
class SeamPlan:
    """Which planes a run keeps, and which tiles it compares.

    Parameters
    ----------
    grid : TileGrid
        The tiles.
    slab : tuple of bool
        Per axis whether a seam there is judged on a slab seen by both tiles (needs a halo) or on
        facing planes.
    connectivity : int
        How many axes a step to a neighbouring voxel may change, 1 to the number of axes; decides
        which edge and corner contacts exist.

    Examples
    --------
    >>> grid = TileGrid.regular((4, 4), (2, 2), halo=(0, 0))
    >>> seams = SeamPlan(grid, slab=(False, False), connectivity=2)
    >>> [(c.other, c.steps) for c in seams.contacts(0)]
    [(2, (1, 0)), (1, (0, 1)), (3, (1, 1))]
    """

    grid: TileGrid
    slab: tuple[bool, ...]
    connectivity: int

    @property
    def _axes(self) -> list[int]:
        """The axes that have seams."""
        return [axis for axis in range(self.grid.ndim) if axis not in self.grid.apart]

    def planes(self, tile: Tile) -> Iterator[tuple[Plane, Box]]:
        """Yield every side of `tile` that has a neighbour, with its box in the image."""
        for axis in self._axes:
            n = self.grid.dims[axis]
            if tile.position[axis] > 0:
                yield Plane(axis, "lower"), self._plane_box(tile, axis, "lower")
            if tile.position[axis] < n - 1:
                yield Plane(axis, "upper"), self._plane_box(tile, axis, "upper")

    def _plane_box(self, tile: Tile, axis: int, side: Side) -> Box:
        """Return the seam planes of one side: over all that both tiles can judge there."""
        halo = tuple(
            [h if s else 0 for h, s in zip(self.grid.halo, self.slab, strict=True)],
        )
        extent = tile.core.grow(halo, Box.whole(self.grid.shape))
        seam = tile.core.start[axis] if side == "lower" else tile.core.stop[axis]
        if self.slab[axis]:
            return extent.on_axis(axis, seam - 1, seam + 1)
        return extent.on_axis(axis, *((seam, seam + 1) if side == "lower" else (seam - 1, seam)))

    def contacts(self, index: int) -> Iterator[Contact]:
        """Yield every contact of tile `index` with a tile after it, each contact once."""
        position = self.grid.position(index)
        for steps in self._steps():
            at = [p + s for p, s in zip(position, steps, strict=True)]
            if all(0 <= p < n for p, n in zip(at, self.grid.dims, strict=True)):
                yield Contact(index, self.grid.index(at), steps)

    def _steps(self) -> Iterator[tuple[int, ...]]:
        """Yield the steps to all neighbours that have to be compared, faces first."""
        ndim = self.grid.ndim
        for axis in self._axes:
            yield tuple([int(a == axis) for a in range(ndim)])
        facing = [a for a in self._axes if not self.slab[a] and self.grid.dims[a] > 1]
        for n_axes in range(2, self.connectivity + 1):
            for axes in combinations(facing, n_axes):
                for signs in product((1, -1), repeat=n_axes - 1):
                    step = dict(zip(axes, (1, *signs), strict=True))
                    yield tuple([step.get(a, 0) for a in range(ndim)])
