"""A tile cut in two, again and again: what the pieces own, read and compare."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.errors import InputError
from patchworks.geometry.grid import Tile, TileGrid
from patchworks.geometry.halves import Cut, CutRule, cut_halo
from tests.strategies import grids, halos

laws = settings(deadline=None, max_examples=100)


@st.composite
def cuttings(draw) -> tuple[Tile, CutRule]:
    """A tile of a grid and how it is cut: with the grid's halo, or one asked for."""
    grid = draw(grids(max_axes=4))
    tile = grid[draw(st.integers(0, grid.n_tiles - 1))]
    halo = cut_halo(grid, draw(halos(grid.ndim)))
    slab = tuple(h > 0 and draw(st.booleans()) for h in halo)
    return tile, CutRule(halo, slab, thinnest=draw(st.integers(1, 4)))


def all_cuts(tile: Tile, rule: CutRule) -> list[tuple[Tile, Cut]]:
    """Every cut down to the floor, with what is cut."""
    cut = rule.cut(tile)
    if cut is None:
        return []
    return [(tile, cut), *all_cuts(cut.lower, rule), *all_cuts(cut.upper, rule)]


@laws
@given(cuttings())
def test_halves_partition_the_core_and_read_within_what_the_tile_reads(cutting):
    for tile, cut in all_cuts(*cutting):
        halves = cut.lower, cut.upper
        assert [half.index for half in halves] == [tile.index] * 2
        start, stop = tile.core.start[cut.axis], tile.core.stop[cut.axis]
        assert cut.lower.core == tile.core.on_axis(cut.axis, start, cut.seam)
        assert cut.upper.core == tile.core.on_axis(cut.axis, cut.seam, stop)
        assert abs(cut.lower.core.size - cut.upper.core.size) * (stop - start) <= tile.core.size
        for half in halves:
            assert half.read.intersect(tile.read) == half.read
            assert half.core.intersect(half.read) == half.core


@laws
@given(cuttings())
def test_a_half_reads_its_halo_beyond_the_seam_and_to_the_ends_of_the_tile(cutting):
    _, rule = cutting
    for tile, cut in all_cuts(*cutting):
        halo, axis = rule.halo[cut.axis], cut.axis
        outside, beyond = cut.lower.margins[axis]
        assert outside == tile.margins[axis][0]
        assert beyond == min(halo, tile.read.stop[axis] - cut.seam)
        beyond, outside = cut.upper.margins[axis]
        assert outside == tile.margins[axis][1]
        assert beyond == min(halo, cut.seam - tile.read.start[axis])
        for other in set(range(tile.core.ndim)) - {axis}:
            assert cut.lower.margins[other] == cut.upper.margins[other] == tile.margins[other]


@laws
@given(cuttings())
def test_a_cut_is_across_the_longest_axis_that_leaves_no_half_too_thin(cutting):
    _, rule = cutting

    def fits(tile, axis):
        return tile.core.shape[axis] // 2 >= max(rule.halo[axis], rule.thinnest)

    for tile, cut in all_cuts(*cutting):
        fitting = [axis for axis in range(tile.core.ndim) if fits(tile, axis)]
        assert cut.axis in fitting
        assert tile.core.shape[cut.axis] == max(tile.core.shape[axis] for axis in fitting)
        for half in (cut.lower, cut.upper):
            if rule.cut(half) is None:
                assert not any(fits(half, axis) for axis in range(tile.core.ndim))


@laws
@given(cuttings())
def test_both_halves_saw_what_is_compared(cutting):
    for tile, cut in all_cuts(*cutting):
        lower, upper = cut.planes
        assert lower.intersect(cut.lower.read) == lower
        assert upper.intersect(cut.upper.read) == upper
        assert lower.shape == upper.shape
        if cut.is_slab:
            assert lower == upper
            assert (lower.start[cut.axis], lower.stop[cut.axis]) == (cut.seam - 1, cut.seam + 1)
        else:
            assert lower.stop[cut.axis] == upper.start[cut.axis] == cut.seam
        face = tile.core.on_axis(cut.axis, lower.start[cut.axis], lower.stop[cut.axis])
        assert face.intersect(lower) == face, "over the whole face"


def test_a_tile_that_is_thin_on_every_axis_is_not_cut():
    tile = TileGrid.regular((15, 31, 1), (15, 31, 1), (0, 0, 0))[0]
    assert CutRule((0, 16, 0), (False, True, False)).cut(tile) is None


@pytest.mark.parametrize("halo, slab", [((1,), (True, True)), ((0, 1), (True, True))])
def test_a_rule_without_sense_is_refused(halo, slab):
    with pytest.raises(InputError, match="slab"):
        CutRule(halo, slab)
