"""Shapes, chunks and write regions of a pyramid.

Only the last two axes (y, x) are halved; the others stay. A region is the unit of the last pass:
it holds whole chunks of level 0, whole tiles wherever the tile shape allows it, and, for the
first `n_fused` levels, whole chunks of each of those too. So every stored chunk has one writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid, ceil_div

MIN_FUSED_CHUNK = 64
"""Smallest chunk extent, in voxels, for which a level is still written with level 0."""

MAX_THIN_REGION = 2**25
"""Voxels of a region that is made of tiles one voxel thick, unless one tile holds more."""


def target_chunk(ndim: int) -> tuple[int, ...]:
    """Return the chunk extents to aim for: about 1 MB of 2-D and 16 MB of 3-D uint32 labels."""
    if ndim == 2:
        return (512, 512)
    return (1,) * (ndim - 3) + (64, 256, 256)


def _target_apart(grid: TileGrid, time_axis: int | None) -> tuple[int, ...]:
    """Return the chunk extents to aim for where tiles are one voxel thick on some axes.

    A chunk holds one time point, and a region no more slices than fit in memory.
    """
    target = [*target_chunk(grid.ndim - (time_axis is not None))]
    if time_axis is not None:
        target.insert(time_axis, 1)
    per_slice = prod([t for a, t in enumerate(grid.tile_shape) if a not in grid.apart])
    most = max(1, MAX_THIN_REGION // per_slice)
    return tuple([min(t, most) if a in grid.apart else t for a, t in enumerate(target)])


@dataclass(frozen=True)
class PyramidPlan:
    """Every level of an image or label image and the regions that write it.

    Parameters
    ----------
    shapes, chunks : tuple of tuple of int
        Shape and chunk shape per level, in voxels of that level.
    factor : tuple of int
        Voxels of one level that become one voxel of the next, per axis.
    region_shape : tuple of int
        Extent of a region of the first pass, in voxels of level 0.
    n_fused : int
        Levels that the first pass writes; the others are made from the level above.
    shards : tuple of tuple of int, optional
        Shape per level of the stored objects that hold several chunks each.
    scales : tuple of tuple of float, optional
        Voxels of level 0 that one voxel of a level spans, where a file's own levels are kept and
        need not be powers of `factor`.
    """

    shapes: tuple[tuple[int, ...], ...]
    chunks: tuple[tuple[int, ...], ...]
    factor: tuple[int, ...]
    region_shape: tuple[int, ...]
    n_fused: int
    shards: tuple[tuple[int, ...], ...] | None = None
    scales: tuple[tuple[float, ...], ...] | None = None

    @property
    def n_levels(self) -> int:
        """Number of levels, level 0 included."""
        return len(self.shapes)

    def regions(self, level: int = 0) -> TileGrid:
        """Return the regions of the pass that writes `level`, in voxels of that level."""
        ndim = len(self.factor)
        if level < self.n_fused:
            return TileGrid.regular(self.shapes[0], self.region_shape, (0,) * ndim)
        stored = self.chunks[level] if self.shards is None else self.shards[level]
        extents = [
            c * max(1, r // (c * f))
            for c, r, f in zip(stored, self.region_shape, self.factor, strict=True)
        ]
        return TileGrid.regular(self.shapes[level], tuple(extents), (0,) * ndim)

    def cells_of(self, level: int, region: Box) -> Box:
        """Return the box of `level` that a region of level 0 makes."""
        factors = [f**level for f in self.factor]
        return Box(
            tuple([a // f for a, f in zip(region.start, factors, strict=True)]),
            tuple([ceil_div(b, f) for b, f in zip(region.stop, factors, strict=True)]),
        )

    def fused_around(self, part: Box, region: Box) -> Box:
        """Return what of a region has to be gone through for the labels of a part of it.

        On the last two axes the part with whole cells of all fused levels; the region on the rest.
        """
        cells = self.cells_of(self.n_fused - 1, part.within(region))
        factors = [f ** (self.n_fused - 1) for f in self.factor]
        for axis in range(part.ndim - 2, part.ndim):
            start, stop = [edge[axis] * factors[axis] for edge in (cells.start, cells.stop)]
            region = region.on_axis(axis, start, min(stop, region.stop[axis]))
        return region

    def whole_chunks(self, level: int, part: Box, region: Box) -> Box:
        """Return the box of `level` with all of its chunks that a part of a region makes."""
        cells, chunk = self.cells_of(level, part), self.chunks[level]
        return Box(
            tuple([a // c * c for a, c in zip(cells.start, chunk, strict=True)]),
            tuple([ceil_div(b, c) * c for b, c in zip(cells.stop, chunk, strict=True)]),
        ).within(self.cells_of(level, region))

    def voxels_of(self, level: int, region: Box) -> Box:
        """Return the box of the level above that makes a region of `level`."""
        above = self.shapes[level - 1]
        return Box(
            tuple([a * f for a, f in zip(region.start, self.factor, strict=True)]),
            tuple([min(b * f, n) for b, f, n in zip(region.stop, self.factor, above, strict=True)]),
        )

    def reordered(self, order: Sequence[int]) -> PyramidPlan:
        """Return the plan with its axes in another order: axis ``order[i]`` becomes axis i.

        Then y and x need not be last: what is written plane by plane cannot use it.
        """

        def moved(extents: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple([extents[i] for i in order])

        return PyramidPlan(
            tuple(map(moved, self.shapes)),
            tuple(map(moved, self.chunks)),
            moved(self.factor),
            moved(self.region_shape),
            self.n_fused,
            None if self.shards is None else tuple(map(moved, self.shards)),
            None if self.scales is None else tuple(map(moved, self.scales)),
        )

    def scale(self, level: int) -> tuple[float, ...]:
        """Return how many voxels of level 0 one voxel of `level` spans, per axis."""
        if self.scales is not None:
            return self.scales[level]
        return tuple([f**level for f in self.factor])


def level_shapes(
    shape: tuple[int, ...], factor: tuple[int, ...], n_levels: int, stop_at: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a pyramid, rounded up: no voxel is left out at the upper end.

    Parameters
    ----------
    shape : tuple of int
        Of level 0, in voxels.
    factor : tuple of int
        Per axis, from one level to the next.
    n_levels : int
        Levels at most.
    stop_at : int
        No level is added once y and x are down to this many voxels.

    Examples
    --------
    >>> level_shapes((3, 101, 50), (1, 2, 2), 3)
    ((3, 101, 50), (3, 51, 25), (3, 26, 13))
    """
    shapes = [tuple(shape)]
    while len(shapes) < n_levels and max(shapes[-1][-2:]) > stop_at:
        shapes.append(tuple([ceil_div(n, f) for n, f in zip(shapes[-1], factor, strict=True)]))
    return tuple(shapes)


def plan_pyramid(
    grid: TileGrid, n_levels: int, downscale: int, time_axis: int | None = None
) -> PyramidPlan:
    """Choose chunks and regions for a label image made of the tiles of `grid`.

    Parameters
    ----------
    grid : TileGrid
        The tiles whose labels are merged.
    n_levels : int
        Levels asked for, level 0 included; fewer where y and x are down to one voxel before.
    downscale : int
        Factor in y and x from one level to the next.
    time_axis : int, optional
        An axis of which a chunk holds one voxel.

    Examples
    --------
    >>> grid = TileGrid.regular((128, 2048, 2048), (64, 512, 512), (16, 16, 16))
    >>> plan = plan_pyramid(grid, n_levels=5, downscale=2)
    >>> plan.chunks[0], plan.chunks[3], plan.n_fused, plan.region_shape
    ((64, 256, 256), (64, 64, 64), 4, (64, 512, 512))
    """
    ndim = grid.ndim
    factor = (1,) * (ndim - 2) + (downscale, downscale)
    shapes = level_shapes(grid.shape, factor, n_levels)
    targets = _target_apart(grid, time_axis) if grid.apart else target_chunk(ndim)
    axes = [
        _chunk_and_region(edges, target) for edges, target in zip(grid.edges, targets, strict=True)
    ]
    chunk, region = tuple([c for c, _ in axes]), tuple([r for _, r in axes])
    chunks = fused_chunks(chunk, region, factor, shapes)
    n_fused = len(chunks)
    chunks += [
        tuple([min(c, n) for c, n in zip(chunk, shape, strict=True)]) for shape in shapes[n_fused:]
    ]
    return PyramidPlan(shapes, tuple(chunks), factor, region, n_fused)


def _chunk_and_region(edges: tuple[int, ...], target: int) -> tuple[int, int]:
    """Return chunk and region extent on one axis: aligned with the tiles wherever that can be."""
    n, tile = edges[-1], max(b - a for a, b in pairwise(edges))
    target = min(target, n)
    if len(edges) == 2:
        return target, target * ceil_div(n, target)
    regular = all(edges[i] == i * edges[1] for i in range(len(edges) - 1)) and tile == edges[1]
    if regular and tile < target:
        chunk = tile * (target // tile)
        return chunk, chunk
    if regular:
        chunk = max(d for d in range(1, target + 1) if tile % d == 0)
        if chunk * 4 >= target:
            return chunk, tile
    return target, target * max(1, tile // target)


def fused_chunks(
    chunk: tuple[int, ...],
    region: tuple[int, ...],
    factor: tuple[int, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> list[tuple[int, ...]]:
    """Return the chunks of level 0 and of the levels of which regions hold whole chunks.

    Parameters
    ----------
    chunk : tuple of int
        Chunk of level 0.
    region : tuple of int
        Extent of a region, in voxels of level 0.
    factor : tuple of int
        Per axis, from one level to the next.
    shapes : tuple of tuple of int
        Shapes of all levels.
    """
    chunks = [chunk]
    while len(chunks) < len(shapes):
        fused = _fused_chunk(chunks, region, factor, shapes)
        if fused is None:
            break
        chunks.append(fused)
    return chunks


def _fused_chunk(
    chunks: list[tuple[int, ...]],
    region: tuple[int, ...],
    factor: tuple[int, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> tuple[int, ...] | None:
    """Return the chunk of the next level if regions hold whole chunks of it, else None."""
    level = len(chunks)
    chosen = []
    for axis, f in enumerate(factor):
        n, extent, last = shapes[level][axis], region[axis], chunks[-1][axis]
        if extent >= shapes[0][axis]:
            chosen.append(min(last, n))
        elif f == 1:
            chosen.append(last)
        elif extent % f**level:
            return None
        else:
            inside = extent // f**level
            chunk = max(d for d in range(1, min(last, inside) + 1) if inside % d == 0)
            if chunk < min(MIN_FUSED_CHUNK, last):
                return None
            chosen.append(chunk)
    return tuple(chosen)
