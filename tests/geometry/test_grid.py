from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.errors import InputError
from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid, ceil_div
from tests.strategies import boxes, chunks_of, grids, shapes, tile_shapes

laws = settings(deadline=None, max_examples=60)


def owners(grid: TileGrid) -> np.ndarray:
    """Return for each voxel the index of the tile that owns it, -1 for none; fails on two."""
    owner = np.full(grid.shape, -1)
    for tile in grid:
        assert (owner[tile.core.slices] == -1).all(), f"tile {tile.index} owns voxels of another"
        owner[tile.core.slices] = tile.index
    return owner


@laws
@given(grids())
def test_cores_partition_the_image(grid):
    assert (owners(grid) >= 0).all()


@laws
@given(grids())
def test_trimming_recovers_the_core(grid):
    image = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    for tile in grid:
        read = image[tile.read.slices]
        np.testing.assert_array_equal(read[tile.core_in_read.slices], image[tile.core.slices])


@laws
@given(grids())
def test_a_tile_reads_its_halo_on_every_side_but_nothing_outside_the_image(grid):
    for tile in grid:
        for axis, (h, n) in enumerate(zip(grid.halo, grid.shape, strict=True)):
            assert tile.read.start[axis] == max(0, tile.core.start[axis] - h)
            assert tile.read.stop[axis] == min(n, tile.core.stop[axis] + h)


@laws
@given(grids(), st.data())
def test_overlapping_yields_exactly_the_tiles_that_share_voxels(grid, data):
    box = data.draw(boxes(grid.shape))
    found = [tile.index for tile in grid.overlapping(box)]
    assert found == np.unique(owners(grid)[box.slices]).tolist()


@pytest.mark.parametrize(
    "box",
    [
        pytest.param(Box((2, 2), (2, 6)), id="no voxels"),
        pytest.param(Box((6, 6), (12, 12)), id="past the upper end"),
        pytest.param(Box((-3, -3), (2, 2)), id="before the lower end"),
        pytest.param(Box((20, 20), (24, 24)), id="outside"),
    ],
)
def test_overlapping_holds_for_boxes_that_are_empty_or_leave_the_image(box):
    grid = TileGrid.regular((8, 8), (4, 4), (0, 0))
    expected = [tile.index for tile in grid if tile.core.intersect(box) is not None]
    assert [tile.index for tile in grid.overlapping(box)] == expected


@laws
@given(grids())
def test_position_and_index_are_inverse(grid):
    assert [grid.index(grid.position(i)) for i in range(grid.n_tiles)] == list(range(len(grid)))


@laws
@given(grids())
def test_tiles_are_numbered_in_c_order(grid):
    positions = [tile.position for tile in grid]
    assert positions == list(np.ndindex(*grid.dims))


@laws
@given(grids())
def test_the_tile_shape_is_the_largest_extent_per_axis(grid):
    assert grid.tile_shape == tuple(np.max([tile.core.shape for tile in grid], axis=0))


@laws
@given(st.data())
def test_a_regular_grid_is_regular(data):
    shape = data.draw(shapes())
    tile_shape = data.draw(tile_shapes(shape))
    assert TileGrid.regular(shape, tile_shape, (0,) * len(shape)).is_regular


@laws
@given(grids())
def test_is_regular_says_whether_equal_tiles_make_the_same_grid(grid):
    first = tuple(edges[1] for edges in grid.edges)
    assert grid.is_regular == (TileGrid.regular(grid.shape, first, grid.halo) == grid)


@laws
@given(st.data())
def test_tiles_from_chunks_have_the_chunks_extents(data):
    chunks = data.draw(chunks_of(data.draw(shapes())))
    grid = TileGrid.from_chunks(chunks, (0,) * len(chunks))
    for tile in grid:
        extents = tuple(c[p] for c, p in zip(chunks, tile.position, strict=True))
        assert tile.core.shape == extents


def test_chunks_without_voxels_make_no_tile():
    grid = TileGrid.from_chunks(((0, 4, 0, 2), (3, 0)), (0, 0))
    assert grid.edges == ((0, 4, 6), (0, 3))


@given(st.integers(0, 10**30), st.integers(1, 10**15))
def test_ceil_div_is_the_fewest_parts_that_cover_the_total(total, part):
    n = ceil_div(total, part)
    assert (n - 1) * part < total <= n * part


@pytest.mark.parametrize("index", [-1, 4, 100])
def test_a_tile_that_is_not_there_raises_index_error_with_its_number(index):
    with pytest.raises(IndexError, match=str(index)):
        TileGrid.regular((8, 8), (4, 4), (0, 0))[index]


@pytest.mark.parametrize(
    ("edges", "halo", "named"),
    [
        (((0, 4), (0, 4)), (1,), "(1,)"),
        ((), (), "()"),
        (((0, 4), (0,)), (0, 0), "(0,)"),
        (((0, 4), (0, 4, 4)), (0, 0), "(0, 4, 4)"),
        (((0, 4), (0, 4, 2)), (0, 0), "(0, 4, 2)"),
        (((1, 4), (0, 4)), (0, 0), "(1, 4)"),
        (((0, 4), (0, 4)), (0, -1), "(0, -1)"),
    ],
)
def test_a_grid_that_is_none_is_refused_with_what_was_given(edges, halo, named):
    with pytest.raises(InputError) as refused:
        TileGrid(edges, halo)
    assert named in str(refused.value)


@laws
@given(st.data())
def test_in_layers_every_tile_has_its_place_and_layers_come_one_after_the_other(data):
    plain = data.draw(grids(max_halo=0))
    axis, depth = data.draw(st.integers(0, plain.ndim - 1)), data.draw(st.integers(1, 4))
    grid = replace(plain, layer=(axis, depth))
    places = [tile.position for tile in grid]
    assert sorted(places) == [tile.position for tile in plain]
    assert [grid.index(place) for place in places] == list(range(grid.n_tiles))
    after = [(*p[:axis], p[axis] // depth, *p[axis + 1 :], p[axis]) for p in places]
    assert after == sorted(after)


def test_tiles_that_are_apart_are_one_voxel_thick():
    TileGrid(((0, 1, 2), (0, 4)), (0, 1), apart=(0,))
    with pytest.raises(InputError, match="one voxel thick"):
        TileGrid(((0, 2), (0, 4)), (0, 1), apart=(0,))
    with pytest.raises(InputError, match="one voxel thick"):
        TileGrid(((0, 1, 2), (0, 4)), (1, 1), apart=(0,))
