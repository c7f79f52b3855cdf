"""Laws of cutting tiles down to their signal: all that may be labelled is seen as in the tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.box import Box
from patchworks.geometry.crops import MOST, N_STEPS, CropRule, within
from patchworks.geometry.grid import Tile, TileGrid

laws = settings(deadline=None, max_examples=200)


@st.composite
def tiles_with_signal(draw) -> tuple[TileGrid, Tile, Box]:
    """A tile of up to four axes, many of them long enough to be cut, and where its signal is."""
    ndim = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 120)) for _ in range(ndim))
    tile_shape = tuple(draw(st.integers(1, n)) for n in shape)
    halo = tuple(draw(st.integers(0, 4)) for _ in range(ndim))
    grid = TileGrid.regular(shape, tile_shape, halo)
    tile = grid[draw(st.integers(0, grid.n_tiles - 1))]
    return grid, tile, draw(small_boxes(tile.read))


@st.composite
def small_boxes(draw, inside: Box) -> Box:
    """Boxes of some voxels, anywhere in another."""
    start = [draw(st.integers(a, b - 1)) for a, b in zip(inside.start, inside.stop, strict=True)]
    extents = [draw(st.integers(1, 40)) for _ in start]
    ends = zip(start, extents, inside.stop, strict=True)
    return Box(tuple(start), tuple([min(a + n, stop) for a, n, stop in ends]))


@laws
@given(tiles_with_signal())
def test_a_part_holds_two_halos_around_the_signal_and_lies_in_what_the_tile_reads(drawn):
    grid, tile, signal = drawn
    part = CropRule.of(grid).part(tile, signal)
    assert tile.read.holds(part.read)
    assert part.read.holds(signal.grow(tuple([2 * h for h in grid.halo]), tile.read))
    for axis, halo in enumerate(grid.halo):
        if halo == 0:
            assert part.read.shape[axis] == tile.read.shape[axis]


@laws
@given(tiles_with_signal())
def test_a_part_has_voxels_of_the_core_even_for_signal_in_the_halo_alone(drawn):
    grid, tile, signal = drawn
    part = CropRule.of(grid).part(tile, signal)
    assert part.core == tile.core.intersect(part.read)
    assert part.core.size > 0
    assert (part.index, part.position, part.apart) == (tile.index, tile.position, tile.apart)


@laws
@given(tiles_with_signal())
def test_a_part_saves_a_quarter_or_is_the_tile_and_comes_in_few_shapes(drawn):
    grid, tile, signal = drawn
    rule = CropRule.of(grid)
    part = rule.part(tile, signal)
    if part is tile:
        return
    assert part.read.size * MOST[1] <= tile.read.size * MOST[0]
    for n, step, whole in zip(part.read.shape, rule.step, tile.read.shape, strict=True):
        assert n == whole or (n % step == 0 and n // step <= N_STEPS)


@laws
@given(tiles_with_signal(), st.data())
def test_what_is_known_to_be_within_reach_holds_the_part(drawn, data):
    """The part does not depend on how much of the tile was read, which depends on a map."""
    grid, tile, signal = drawn
    rule = CropRule.of(grid)
    bounds = signal.grow(tuple(data.draw(st.integers(0, 30)) for _ in grid.halo), tile.read)
    reach = rule.reach(tile, bounds)
    if reach is not None:
        part = rule.part(tile, signal)
        assert reach.holds(part.read)
        assert part is not tile
        assert within(tile, reach).read == reach


def test_nothing_is_cut_where_the_function_may_look_anywhere():
    grid = TileGrid.regular((40, 40), (40, 40), halo=(0, 0))
    rule, tile = CropRule.of(grid), grid[0]
    assert not rule.can_cut
    assert rule.part(tile, Box((3, 3), (4, 4))) is tile


@pytest.mark.parametrize("n_tiles", [1, 3])
def test_a_grid_has_few_shapes_of_parts(n_tiles):
    """However many places signal can be in."""
    grid = TileGrid.regular((n_tiles * 64, 300), (64, 100), halo=(8 if n_tiles > 1 else 0, 8))
    rule, rng, shapes = CropRule.of(grid), np.random.default_rng(0), set()
    for _ in range(2000):
        tile = grid[int(rng.integers(grid.n_tiles))]
        first = tuple(rng.integers(tile.read.start, tile.read.stop).tolist())
        signal = Box(first, first).grow((int(rng.integers(1, 60)),) * 2, tile.read)
        shapes.add(rule.part(tile, signal).read.shape)
    assert 3 < len(shapes) < (N_STEPS + 2) ** sum(h > 0 for h in grid.halo)
