from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.errors import InputError
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.tile_shape import (
    DEFAULT_OVERLAP,
    MAX_VOXELS,
    MIN_EXTENT,
    MIN_VOXELS,
    check_tile_shape,
    default_tile_shape,
    halve_until,
    resolve_grid,
    resolve_halo,
)

laws = settings(deadline=None, max_examples=150)

SHAPE = (40, 64, 64)
U2 = np.dtype("uint16")


def grid_of(shape=SHAPE, dtype=U2, **given):
    keywords = {"tile_shape": None, "overlap": None, "chunks": None, "storage_chunks": None}
    return resolve_grid(shape, dtype, **{**keywords, **given})


@pytest.mark.parametrize(
    "tile_shape",
    [
        pytest.param((16, 32), id="too short"),
        pytest.param((1, 16, 32, 32), id="too long"),
        pytest.param((), id="empty"),
        pytest.param((0, 32, 32), id="zero"),
        pytest.param((16, -32, 32), id="negative"),
        pytest.param((16, 32.0, 32), id="float"),
        pytest.param((16, True, 32), id="bool"),
        pytest.param((16, np.True_, 32), id="numpy bool"),
        pytest.param((16, "32", 32), id="str inside"),
        pytest.param((16, None, 32), id="None inside"),
        pytest.param("16", id="str"),
        pytest.param("AUTO", id="str in capitals"),
        pytest.param(32, id="one integer"),
        pytest.param(32.5, id="one float"),
        pytest.param(True, id="one bool"),
        pytest.param({16, 32, 40}, id="a set, which has no order"),
    ],
)
def test_a_bad_tile_shape_is_refused_and_named(tile_shape):
    with pytest.raises(InputError) as refused:
        grid_of(tile_shape=tile_shape)
    assert f"tile_shape={tile_shape!r}" in str(refused.value)


@pytest.mark.parametrize("returned", [(16, 32), (0, 32, 32), (16, 32.0, 32), None, 32, "auto"])
def test_a_rule_that_returns_a_bad_tile_shape_is_refused_and_its_answer_named(returned):
    with pytest.raises(InputError) as refused:
        grid_of(tile_shape=lambda shape, dtype: returned)
    assert repr(returned) in str(refused.value)


def test_a_tile_shape_of_wrong_length_is_told_the_shape_of_the_image():
    with pytest.raises(InputError, match=r"expected 3 integers.*\(40, 64, 64\)"):
        grid_of(tile_shape=(16, 32))


@pytest.mark.parametrize(
    "overlap",
    [
        pytest.param(-1, id="negative"),
        pytest.param(1.0, id="float"),
        pytest.param(float("nan"), id="nan"),
        pytest.param(True, id="bool"),
        pytest.param("4", id="str"),
        pytest.param((4, 4), id="too short"),
        pytest.param((4, 4, 4, 4), id="too long"),
        pytest.param((), id="empty"),
        pytest.param((4, -4, 4), id="negative inside"),
        pytest.param((4, 4.0, 4), id="float inside"),
        pytest.param((4, True, 4), id="bool inside"),
        pytest.param((4, None, 4), id="None inside"),
        pytest.param("444", id="str of the right length"),
        pytest.param(np.float32(4), id="numpy float"),
        pytest.param(np.True_, id="numpy bool"),
        pytest.param(4j, id="complex"),
        pytest.param(object, id="something else"),
        pytest.param({4, 5, 6}, id="a set, which has no order"),
    ],
)
def test_a_bad_overlap_is_refused_and_named(overlap):
    with pytest.raises(InputError) as refused:
        grid_of(tile_shape=(16, 32, 32), overlap=overlap)
    assert f"overlap={overlap!r}" in str(refused.value)


@pytest.mark.parametrize("overlap", [17, (17, 0, 0)])
def test_an_overlap_that_exceeds_the_tile_is_refused_and_the_axis_named(overlap):
    with pytest.raises(InputError, match="17 voxels on axis 0 exceed the tile, which is 16"):
        grid_of(tile_shape=(16, 32, 32), overlap=overlap)


def test_an_overlap_as_large_as_the_tile_is_taken():
    assert grid_of(tile_shape=(16, 32, 32), overlap=16).halo == (16, 16, 16)


@pytest.mark.parametrize(
    "overlap", [3, np.int64(3), np.uint8(3), (3, 3, 3), [3, 3, 3], np.array([3, 3, 3])]
)
def test_integers_of_any_kind_are_an_overlap(overlap):
    assert grid_of(tile_shape=(16, 32, 32), overlap=overlap).halo == (3, 3, 3)


@pytest.mark.parametrize("tile_shape", [(16, 32, 32), [16, 32, 32], np.array([16, 32, 32])])
def test_integers_of_any_kind_are_a_tile_shape(tile_shape):
    assert grid_of(tile_shape=tile_shape).tile_shape == (16, 32, 32)


def test_extents_and_halos_of_a_grid_are_plain_integers():
    grid = grid_of(tile_shape=np.array([16, 32, 32]), overlap=np.array([3, 3, 3]))
    assert {type(n) for n in (*grid.tile_shape, *grid.halo)} == {int}


def test_a_tile_larger_than_the_image_is_the_image():
    assert grid_of(tile_shape=(100, 32, 1000)).tile_shape == (40, 32, 64)


def test_a_rule_gets_the_shape_and_the_dtype_of_the_image():
    asked = []
    grid_of(tile_shape=lambda *given: asked.append(given) or (16, 32, 32))
    assert asked == [(SHAPE, U2)]


def test_the_chunks_of_a_dask_array_are_its_tiles():
    chunks = ((10, 30), (64,), (1, 60, 3))
    grid = grid_of(chunks=chunks)
    assert grid == TileGrid.from_chunks(chunks, grid.halo)


def test_a_tile_shape_goes_before_the_chunks_of_a_dask_array():
    assert grid_of(chunks=((40,), (64,), (64,)), tile_shape=(16, 32, 32)).dims == (3, 2, 2)


@laws
@given(st.data())
def test_the_default_halo_is_16_or_what_the_tile_allows_where_there_is_a_seam(data):
    shape = data.draw(st.tuples(*[st.integers(1, 90)] * data.draw(st.integers(2, 5))))
    tiles = tuple(data.draw(st.integers(1, n)) for n in shape)
    halo = resolve_halo(TileGrid.regular(shape, tiles, (0,) * len(shape)), None)
    for n, t, h in zip(shape, tiles, halo, strict=True):
        assert h == (min(DEFAULT_OVERLAP, t) if 1 < t < n else 0)


@laws
@given(st.data())
def test_a_given_halo_is_kept_where_there_is_a_seam_and_left_out_elsewhere(data):
    shape = data.draw(st.tuples(*[st.integers(1, 90)] * data.draw(st.integers(2, 5))))
    tiles = tuple(data.draw(st.integers(1, n)) for n in shape)
    given_halo = tuple(data.draw(st.integers(0, t)) for t in tiles)
    halo = resolve_halo(TileGrid.regular(shape, tiles, (0,) * len(shape)), given_halo)
    assert halo == tuple(
        h if t < n else 0 for h, t, n in zip(given_halo, tiles, shape, strict=True)
    )


def test_one_overlap_for_all_axes_leaves_out_axes_whose_tiles_are_one_voxel_thick():
    assert grid_of(tile_shape=(1, 32, 32), overlap=8).halo == (0, 8, 8)


def test_a_huge_overlap_is_no_error_on_an_axis_with_one_tile():
    assert grid_of(tile_shape=(40, 32, 32), overlap=(100, 8, 8)).halo == (0, 8, 8)


@st.composite
def stores(draw):
    """Shape and chunk shape of stored images."""
    ndim = draw(st.integers(2, 4))
    shape = tuple(draw(st.integers(1, 10_000)) for _ in range(ndim))
    chunks = tuple(draw(st.integers(1, min(n, 2048))) for n in shape)
    return shape, chunks


@laws
@given(stores(), st.booleans())
def test_a_default_tile_lies_within_the_image_and_is_not_huge(store, has_chunks):
    shape, chunks = store
    tile = default_tile_shape(shape, chunks if has_chunks else None)
    assert all(1 <= t <= n for t, n in zip(tile, shape, strict=True))
    assert prod(tile) <= MAX_VOXELS


@laws
@given(stores())
def test_a_default_tile_holds_whole_chunks_unless_they_are_huge(store):
    shape, chunks = store
    if prod(max(c, MIN_EXTENT) for c in chunks) * 2 ** len(shape) > MAX_VOXELS:
        return
    for t, c, n in zip(default_tile_shape(shape, chunks), chunks, shape, strict=True):
        assert t == n or t % c == 0


@laws
@given(stores())
def test_a_default_tile_is_not_tiny_unless_the_image_is(store):
    shape, chunks = store
    tile = default_tile_shape(shape, chunks)
    assert prod(tile) >= min(prod(shape), MIN_VOXELS)


@laws
@given(st.data())
def test_halving_stops_as_soon_as_the_tile_fits(data):
    tile = data.draw(st.tuples(*[st.integers(1, 5000)] * data.draw(st.integers(2, 5))))
    most = data.draw(st.integers(1, 2**30))
    halved = halve_until(tile, most)
    assert prod(halved) <= most
    assert halved == tile or prod(halved) * 4 > most


def test_automatic_tiles_need_a_machine_and_are_none_of_geometry():
    with pytest.raises(InputError, match="'auto'"):
        grid_of(tile_shape="auto")


def test_a_bad_tile_shape_is_named_as_the_caller_names_it():
    with pytest.raises(InputError, match=r"^blocks=\(0, 1\)"):
        check_tile_shape((0, 1), (4, 4), "blocks")
