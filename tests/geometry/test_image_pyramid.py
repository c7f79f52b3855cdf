from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.errors import InputError
from patchworks.geometry.image_pyramid import (
    MANY_FILES,
    MAX_REGION_BYTES,
    REGION_BYTES,
    SCREEN,
    ImageLayout,
    check_layout,
    plan_image_pyramid,
    plan_kept_levels,
)

laws = settings(deadline=None, max_examples=200)

EXTENTS = st.one_of(
    st.integers(1, 40), st.integers(100, 5000), st.sampled_from([64, 512, 2048, 4096])
)
SHAPES = st.tuples(EXTENTS, EXTENTS, EXTENTS)


@laws
@given(SHAPES, st.integers(2, 4))
def test_a_pyramid_ends_with_the_first_level_that_fits_a_screen(shape, downscale):
    plan = plan_image_pyramid("zyx", shape, 2, (1, 1, 1), ImageLayout(downscale=downscale))
    assert max(plan.shapes[-1][-2:]) <= SCREEN
    assert all(max(level[-2:]) > SCREEN for level in plan.shapes[:-1])


@laws
@given(
    SHAPES,
    st.sampled_from([(1, "y", "x"), (1, 1, 1), (1, 8, "x"), (8, 128, 128), (1, 240, 240)]),
    st.sampled_from([None, True]),
)
def test_no_block_of_the_file_is_read_by_two_regions(shape, kind, shard):
    named = dict(zip("zyx", shape, strict=True))
    block = tuple(named[b] if isinstance(b, str) else b for b in kind)
    plan = plan_image_pyramid("zyx", shape, 2, block, ImageLayout(shard=shard))
    for edges, b, n in zip(plan.regions().edges, block, shape, strict=True):
        assert all(edge % b == 0 or edge == n for edge in edges)


def test_blocks_that_no_chunk_fits_make_a_region_as_wide_as_the_image():
    plan = plan_image_pyramid("yx", (6000, 9011), 1, (5003, 5003), ImageLayout())
    assert all(r >= n for r, n in zip(plan.region_shape, plan.shapes[0], strict=True))


@pytest.mark.parametrize("step", [1847, 1843, 5003, 2048, 1388])
@pytest.mark.parametrize("extent", [9000, 50_000, 100_000])
def test_however_odd_the_tiles_of_a_mosaic_are_memory_does_not_grow_with_it(step, extent):
    block = (1, step, step)
    plan = plan_image_pyramid("zyx", (40, extent, extent), 2, block, ImageLayout())
    assert prod(map(min, plan.region_shape, plan.shapes[0])) * 2 <= MAX_REGION_BYTES
    assert 128 <= plan.chunks[0][1] <= 512


@laws
@given(SHAPES, st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_regions_of_a_file_that_can_be_cut_at_will_stay_in_their_budget(shape, itemsize, shard):
    plan = plan_image_pyramid("zyx", shape, itemsize, (1, 1, 1), ImageLayout(shard=shard))
    region = prod(map(min, plan.region_shape, shape)) * itemsize
    assert region <= (MAX_REGION_BYTES if shard else REGION_BYTES)


@laws
@given(SHAPES, st.sampled_from([1, 2, 4]))
def test_stacks_of_planes_stay_in_the_budget_unless_one_plane_is_larger(shape, itemsize):
    plan = plan_image_pyramid("zyx", shape, itemsize, (1, *shape[1:]), ImageLayout())
    region = prod(map(min, plan.region_shape, shape)) * itemsize
    assert region <= max(MAX_REGION_BYTES, prod(shape[1:]) * itemsize)


@laws
@given(SHAPES, st.booleans())
def test_shards_hold_whole_chunks(shape, planes):
    block = (1, *shape[1:]) if planes else (1, 1, 1)
    plan = plan_image_pyramid("zyx", shape, 2, block, ImageLayout(shard=True))
    assert plan.shards is not None
    for shard, chunk in zip(plan.shards, plan.chunks, strict=True):
        assert all(s % c == 0 for s, c in zip(shard, chunk, strict=True))


def test_chunks_share_files_once_there_would_be_too_many():
    few = plan_image_pyramid("zyx", (100, 4096, 4096), 2, (1, 1, 1), ImageLayout(shard=None))
    many = plan_image_pyramid("zyx", (4000, 20_000, 20_000), 2, (1, 1, 1), ImageLayout(shard=None))
    assert few.shards is None
    assert many.shards is not None
    assert many.regions().n_tiles < MANY_FILES
    never = plan_image_pyramid("zyx", (4000, 20_000, 20_000), 2, (1, 1, 1), ImageLayout())
    assert never.shards is None


def test_channels_and_time_points_have_chunks_of_their_own():
    plan = plan_image_pyramid("tczyx", (5, 3, 40, 900, 900), 2, (1, 3, 1, 900, 900), ImageLayout())
    assert plan.chunks[0] == (1, 1, 16, 256, 256)
    assert plan.region_shape[1] >= 3  # the file decodes all channels of a plane at once


def test_planes_have_wider_chunks_than_stacks():
    assert plan_image_pyramid("cyx", (3, 4000, 4000), 1, (1, 1, 1), ImageLayout()).chunks[0] == (
        1,
        512,
        512,
    )


@laws
@given(SHAPES, st.booleans())
def test_levels_of_the_file_are_kept_as_they_are(shape, shard):
    shapes = [shape]
    for _ in range(3):
        shapes.append((shape[0], max(1, shapes[-1][1] // 2), max(1, shapes[-1][2] // 2)))
    plan = plan_kept_levels("zyx", tuple(shapes), 2, (1, 64, 64), ImageLayout(shard=shard))
    assert plan.shapes == tuple(shapes)
    for level, level_shape in enumerate(shapes):
        grid = plan.regions(level)
        stored = (plan.shards or plan.chunks)[level]
        for edges, n, s in zip(grid.edges, level_shape, stored, strict=True):
            assert edges[0] == 0
            assert edges[-1] == n
            assert all(a < b for a, b in pairwise(edges))
            assert all(edge % s == 0 for edge in edges[:-1])


def test_the_scale_of_a_kept_level_is_whole_where_rounding_explains_its_shape():
    shapes = ((51, 635, 673), (51, 317, 336), (51, 159, 168))
    plan = plan_kept_levels("zyx", shapes, 2, (1, 1, 1), ImageLayout())
    assert [plan.scale(level) for level in range(3)] == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    odd = plan_kept_levels("yx", ((1000, 1000), (300, 300)), 2, (1, 1), ImageLayout())
    assert odd.scale(1) == pytest.approx((10 / 3, 10 / 3))


@pytest.mark.parametrize(
    "layout",
    [
        ImageLayout(downscale=1),
        ImageLayout(n_levels=0),
        ImageLayout(chunks=(1, 2)),
        ImageLayout(chunks=(1, 0, 2)),
    ],
)
def test_a_layout_that_cannot_be_is_refused(layout):
    with pytest.raises(InputError, match="expected"):
        check_layout(layout, "zyx")
