"""Laws of tiles that are chosen: they fit, line up, leave nobody idle, and grow with memory."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patchworks.errors import MemoryBudgetError
from patchworks.geometry.auto_tile_shape import (
    HALOS_PER_TILE,
    TILES_PER_WORKER,
    Limit,
    TileBudget,
    TileLayout,
    propose_tile_shape,
    sane_spacing,
)
from patchworks.geometry.grid import TileGrid, ceil_div
from patchworks.geometry.tile_shape import DEFAULT_OVERLAP, MAX_VOXELS, MIN_VOXELS, resolve_halo

laws = settings(deadline=None, max_examples=60)


@st.composite
def layouts(draw) -> TileLayout:
    n = draw(st.integers(2, 4))
    per_axis = lambda values: st.tuples(*[values] * n)  # noqa: E731
    shape = draw(per_axis(st.integers(1, 3000) | st.integers(1, 40)))
    chunks = draw(st.none() | per_axis(st.sampled_from([1, 7, 32, 64, 100, 256])))
    factors = draw(per_axis(st.integers(1, 5)))
    chunks = chunks and tuple(min(c, s) for c, s in zip(chunks, shape, strict=True))
    shards = chunks and tuple(c * f for c, f in zip(chunks, factors, strict=True))
    return TileLayout.of(
        shape,
        is_tiled=draw(st.none() | st.just((False,) * (n - 2) + (True, True))),
        halo=draw(st.none() | per_axis(st.integers(0, 20))),
        spacing=draw(st.none() | per_axis(st.floats(0.05, 20))),
        chunks=chunks,
        shards=draw(st.sampled_from([None, shards])),
    )


def budget(n_bytes: int, per_voxel: int = 20, n_workers: int = 1) -> TileBudget:
    limit = Limit(what="memory", n_bytes=n_bytes, bytes_per_voxel=per_voxel)
    return TileBudget(limits=(limit,), n_workers=n_workers)


def proposed(layout: TileLayout, *args, **more) -> tuple[int, ...] | None:
    try:
        return propose_tile_shape(layout, budget(*args, **more)).tile_shape
    except MemoryBudgetError:
        return None


def halo_of(layout: TileLayout, tile: tuple[int, ...]) -> tuple[int, ...]:
    """What a run makes of the same overlap, its own way."""
    grid = TileGrid.regular(layout.shape, tile, (0,) * len(tile))
    if None in layout.halo:
        return resolve_halo(grid, None)
    asked = [h if tiled else 0 for h, tiled in zip(layout.halo, layout.is_tiled, strict=True)]
    return resolve_halo(grid, asked)


exponents = st.integers(12, 36)


@laws
@given(layouts(), exponents, st.integers(1, 64))
def test_tiles_with_their_halos_fit_the_budget(layout, exponent, n_workers):
    tile = proposed(layout, 2**exponent, n_workers=n_workers)
    if tile is None:
        return
    grid = TileGrid.regular(layout.shape, tile, halo_of(layout, tile))
    reads = [
        max(min(b + h, edges[-1]) - max(a - h, 0) for a, b in pairwise(edges))
        for edges, h in zip(grid.edges, grid.halo, strict=True)
    ]
    at_most = prod(reads)
    assert 20 * at_most <= 2**exponent
    assert prod(tile) <= MAX_VOXELS or tile == proposed(layout, 2**60)


@laws
@given(layouts(), exponents, st.integers(1, 64))
def test_tiles_are_inside_the_image_and_one_thick_where_they_do_not_extend(layout, exponent, n):
    tile = proposed(layout, 2**exponent, n_workers=n)
    if tile is not None:
        for t, s, tiled in zip(tile, layout.shape, layout.is_tiled, strict=True):
            assert 1 <= t <= (s if tiled else 1)


@laws
@given(layouts(), exponents)
def test_tiles_hold_whole_chunks_where_one_fits_and_shards_where_one_fits(layout, exponent):
    tile = proposed(layout, 2**exponent)
    if tile is None:
        return
    for axis, t in enumerate(tile):
        chunk, shard = layout.chunks[axis], layout.shards[axis]
        if layout.is_tiled[axis] and t < layout.shape[axis]:
            assert t < chunk or t % (shard if t >= shard else chunk) == 0


@laws
@given(layouts(), exponents, st.integers(1, 64))
@example(TileLayout.of((20, 20), halo=(16, 16)), 15, 1)
def test_more_memory_never_makes_tiles_smaller(layout, exponent, n):
    less = proposed(layout, 2**exponent, n_workers=n)
    more = proposed(layout, 2**exponent * 3 // 2, n_workers=n)
    if less is not None:
        assert more is not None
        assert all(a <= b for a, b in zip(less, more, strict=True))


@laws
@given(layouts(), st.integers(2, 64))
def test_every_worker_has_tiles_unless_they_were_tiny(layout, n_workers):
    tile = proposed(layout, 2**60, n_workers=n_workers)
    enough = layout.n_tiles(tile) >= TILES_PER_WORKER * n_workers
    assert enough or prod(tile) <= max(MIN_VOXELS, prod(smallest(layout)))


def smallest(layout: TileLayout) -> tuple[int, ...]:
    return tuple(layout.extents(axis)[0] for axis in range(len(layout.shape)))


@laws
@given(layouts())
def test_what_does_not_hold_the_smallest_tile_is_refused_and_what_just_does_is_taken(layout):
    tile = smallest(layout)
    needed = 20 * prod(layout.read_shape(tile))
    with pytest.raises(MemoryBudgetError, match=rf"memory: {needed - 1} bytes"):
        propose_tile_shape(layout, budget(needed - 1))
    assert proposed(layout, needed) is not None


def test_voxels_five_times_as_high_as_wide_make_tiles_a_fifth_as_high():
    flat = TileLayout.of((2000, 4000, 4000), spacing=(5.0, 1.0, 1.0), halo=(4, 4, 4))
    z, y, x = proposed(flat, 2**30, per_voxel=64)
    assert 3 < y / z < 7
    assert 0.7 < y / x < 1.5


def test_voxels_of_one_size_make_cubes():
    sides = proposed(TileLayout.of((2000, 2000, 2000)), 2**30, per_voxel=64)
    assert max(sides) < 1.3 * min(sides)


def test_a_halo_that_is_thick_for_flat_tiles_makes_them_higher():
    flat = TileLayout.of((2000, 4000, 4000), spacing=(5.0, 1.0, 1.0), halo=(16, 16, 16))
    z, y, x = proposed(flat, 2**30, per_voxel=64)
    assert HALOS_PER_TILE * 16 <= z < y / 2
    assert y == x


def test_spacing_that_means_nothing_counts_as_one():
    assert sane_spacing((0.0, float("nan"), 3.0)) == (1.0, 1.0, 1.0)
    assert sane_spacing((float("inf"), -1.0)) == (1.0, 1.0)


def test_the_last_tile_is_no_sliver():
    tile = proposed(TileLayout.of((1000, 1000), halo=(0, 0)), 960 * 960 * 20)
    for n, t in zip((1000, 1000), tile, strict=True):
        assert t * ceil_div(n, t) - n < ceil_div(n, t)


def test_the_reason_is_what_a_larger_tile_would_exceed():
    layout = TileLayout.of((4000, 4000, 4000), chunks=(64, 64, 64))
    gpu = Limit(what="the GPU", n_bytes=2**28, bytes_per_voxel=256)
    ram = Limit(what="memory", n_bytes=2**40, bytes_per_voxel=20)
    reason = {
        "the GPU": TileBudget(limits=(ram, gpu)),
        "work for 4000 workers": TileBudget(limits=(ram,), n_workers=4000),
        "the largest that is sensible": TileBudget(limits=(ram,)),
    }
    for expected, given_budget in reason.items():
        assert propose_tile_shape(layout, given_budget).reason == expected
    small = TileLayout.of((40, 40))
    assert propose_tile_shape(small, TileBudget(limits=(ram,))).reason == "the image"


def test_the_default_halo_is_that_of_a_run():
    layout = TileLayout.of((10, 500, 500))
    tile = proposed(layout, 2**22)
    read = layout.read_shape(tile)
    halo = halo_of(layout, tile)
    expected = [min(t + 2 * h, n) for t, h, n in zip(tile, halo, layout.shape, strict=True)]
    assert list(read) == expected
    assert max(halo) == DEFAULT_OVERLAP
