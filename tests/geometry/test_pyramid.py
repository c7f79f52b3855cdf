from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.image_pyramid import ImageLayout, plan_image_pyramid
from patchworks.geometry.pyramid import (
    PyramidPlan,
    level_shapes,
    plan_pyramid,
    target_chunk,
)

laws = settings(deadline=None, max_examples=150)

EXTENTS = st.one_of(
    st.integers(1, 40),
    st.integers(100, 5000),
    st.sampled_from([64, 256, 512, 768, 1024, 2048, 4096]),
)
"""Extents of images: regions and chunks are hundreds of voxels wide, so small ones never split."""


@st.composite
def large_grids(draw) -> TileGrid:
    ndim = draw(st.integers(2, 5))
    shape = tuple(draw(EXTENTS) for _ in range(ndim))
    tiles = tuple(min(n, draw(EXTENTS)) for n in shape)
    if draw(st.booleans()):
        return TileGrid.regular(shape, tiles, (0,) * ndim)
    first = [draw(st.integers(1, t)) for t in tiles]  # the first tile is smaller than the others
    edges = [(0, *range(a, n, t), n) for a, n, t in zip(first, shape, tiles, strict=True)]
    return TileGrid(tuple(tuple(sorted(set(e))) for e in edges), (0,) * ndim)


@st.composite
def label_plans(draw) -> PyramidPlan:
    levels, downscale = draw(st.integers(1, 7)), draw(st.sampled_from([2, 2, 2, 3, 4]))
    return plan_pyramid(draw(large_grids()), levels, downscale)


@st.composite
def image_plans(draw) -> PyramidPlan:
    ndim = draw(st.integers(2, 5))
    shape = tuple(draw(EXTENTS) for _ in range(ndim))
    chunks = draw(st.none() | st.tuples(*[st.integers(1, 600)] * ndim))
    block = draw(blocks_of(shape))
    layout = ImageLayout(
        chunks=chunks,
        n_levels=draw(st.none() | st.integers(1, 7)),
        downscale=draw(st.integers(2, 4)),
        shard=draw(st.sampled_from([None, False, True])),
    )
    itemsize = draw(st.sampled_from([1, 2, 4, 8]))
    return plan_image_pyramid("tczyx"[-ndim:], shape, itemsize, block, layout)


@st.composite
def blocks_of(draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return what a file may decode at once: anything, single voxels, lines, planes, tiles."""
    return tuple(draw(st.sampled_from([1, n, 128]) | st.integers(1, n + 3)) for n in shape)


plans = st.one_of(label_plans(), image_plans())


def written(plan: PyramidPlan, level: int, axis: int) -> list[tuple[int, int]]:
    """Return where each region that writes `level` begins and ends on one axis of that level.

    Regions are the product of what they are on each axis, so one axis at a time says it all.
    """
    grid = plan.regions(level)
    spans = []
    for at in range(grid.dims[axis]):
        position = [0] * grid.ndim
        position[axis] = at
        region = grid[grid.index(position)].core
        box = plan.cells_of(level, region) if level < plan.n_fused else region
        spans.append((box.start[axis], box.stop[axis]))
    return spans


def each_level_and_axis(plan: PyramidPlan):
    return [(lv, ax) for lv in range(plan.n_levels) for ax in range(len(plan.factor))]


@laws
@given(plans)
def test_regions_of_every_pass_cover_their_level_exactly(plan):
    for level, axis in each_level_and_axis(plan):
        spans = written(plan, level, axis)
        assert spans[0][0] == 0
        assert spans[-1][1] == plan.shapes[level][axis]
        assert all(a[1] == b[0] for a, b in pairwise(spans))


@laws
@given(plans)
def test_every_stored_object_has_exactly_one_writer(plan):
    for level, axis in each_level_and_axis(plan):
        n, chunk = plan.shapes[level][axis], (plan.shards or plan.chunks)[level][axis]
        spans = written(plan, level, axis)
        starts = np.arange(0, n, chunk)[:, None]
        stops = np.minimum(starts + chunk, n)
        firsts, lasts = np.array(spans).T
        assert ((firsts < stops) & (starts < lasts)).sum(1).tolist() == [1] * len(starts)


@laws
@given(plans)
def test_cells_of_fused_levels_lie_inside_their_region(plan):
    grid = plan.regions()
    whole = Box.whole(plan.shapes[0])
    for index in {0, grid.n_tiles // 2, grid.n_tiles - 1}:
        region = grid[index].core
        for level in range(plan.n_fused):
            cells, scale = plan.cells_of(level, region), plan.scale(level)
            made_of = Box(
                tuple(a * s for a, s in zip(cells.start, scale, strict=True)),
                tuple(b * s for b, s in zip(cells.stop, scale, strict=True)),
            )
            assert made_of.intersect(whole) == region


@laws
@given(plans)
def test_regions_of_later_levels_are_made_of_all_voxels_of_the_level_above_once(plan):
    for level in range(plan.n_fused, plan.n_levels):
        grid = plan.regions(level)
        for axis, n in enumerate(plan.shapes[level - 1]):
            spans = []
            for at in range(grid.dims[axis]):
                position = [0] * grid.ndim
                position[axis] = at
                above = plan.voxels_of(level, grid[grid.index(position)].core)
                spans.append((above.start[axis], above.stop[axis]))
            assert spans[0][0] == 0
            assert spans[-1][1] == n
            assert all(a[1] == b[0] for a, b in pairwise(spans))


@laws
@given(plans)
def test_a_level_has_one_voxel_for_every_cell_of_the_level_above(plan):
    for above, below in pairwise(plan.shapes):
        for n, m, f in zip(above, below, plan.factor, strict=True):
            assert (m - 1) * f < n <= m * f


@laws
@given(plans)
def test_only_y_and_x_are_downscaled(plan):
    assert set(plan.factor[:-2]) <= {1}
    assert {shape[:-2] for shape in plan.shapes} == {plan.shapes[0][:-2]}


@laws
@given(plans)
def test_the_scale_of_a_level_is_the_factor_once_per_level(plan):
    scale = (1,) * len(plan.factor)
    for level in range(plan.n_levels):
        assert plan.scale(level) == scale
        scale = tuple(s * f for s, f in zip(scale, plan.factor, strict=True))


@laws
@given(plans)
def test_no_chunk_is_larger_than_its_level(plan):
    for shape, chunk in zip(plan.shapes, plan.chunks, strict=True):
        assert all(1 <= c <= n for c, n in zip(chunk, shape, strict=True))


@laws
@given(label_plans())
def test_no_chunk_of_a_label_image_is_larger_than_the_target(plan):
    target = target_chunk(len(plan.factor))
    for chunk in plan.chunks:
        assert all(c <= t for c, t in zip(chunk, target, strict=True))


@laws
@given(plans)
def test_level_0_is_always_written_by_the_first_pass(plan):
    assert 1 <= plan.n_fused <= plan.n_levels


@laws
@given(large_grids(), st.integers(1, 8))
def test_a_label_image_has_the_levels_asked_for_unless_y_and_x_are_down_to_one_voxel(grid, n):
    plan = plan_pyramid(grid, n, 2)
    assert plan.n_levels <= n
    assert plan.n_levels == n or plan.shapes[-1][-2:] == (1, 1)
    assert all(max(shape[-2:]) > 1 for shape in plan.shapes[:-1])


@pytest.mark.parametrize("tile", [(64, 128, 128), (32, 256, 256), (64, 512, 512), (16, 1024, 512)])
def test_regions_hold_whole_tiles_where_tiles_are_multiples_of_the_chunk_or_parts_of_it(tile):
    grid = TileGrid.regular((256, 4096, 4096), tile, (0, 0, 0))
    regions = plan_pyramid(grid, 5, 2).regions()
    for edges, tile_edges in zip(regions.edges, grid.edges, strict=True):
        assert set(edges) <= set(tile_edges)


@laws
@given(large_grids())
def test_a_region_is_no_larger_than_a_tile_or_a_chunk_wherever_there_are_several_tiles(grid):
    plan = plan_pyramid(grid, 5, 2)
    for axis, n_tiles in enumerate(grid.dims):
        if n_tiles > 1:
            most = max(grid.tile_shape[axis], target_chunk(grid.ndim)[axis])
            assert plan.region_shape[axis] <= most


def test_level_shapes_are_rounded_up():
    assert level_shapes((3, 101, 50), (1, 2, 2), 9)[-3:] == ((3, 4, 2), (3, 2, 1), (3, 1, 1))
