"""The order of reading: every tile once, and no more kept than in the order of the indices."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.grid import TileGrid
from patchworks.geometry.reading_order import ReadingOrder
from patchworks.geometry.reuse import chunk_reuse
from tests.geometry.test_reuse import grids


@settings(deadline=None, max_examples=60)
@given(grids(), st.data())
def test_ranks_are_a_permutation_of_the_indices(drawn, data):
    grid, _ = drawn
    axes = data.draw(st.sampled_from([None, *permutations(range(grid.ndim))]))
    bands = data.draw(st.none() | st.tuples(*[st.integers(1, n) for n in grid.dims]))
    order = ReadingOrder(grid, axes, bands)
    ranks = [order.rank(index) for index in range(grid.n_tiles)]
    assert sorted(ranks) == list(range(grid.n_tiles))
    assert [order.index(rank) for rank in ranks] == list(range(grid.n_tiles))
    assert [order.rank(i) for i in order.ordered(range(grid.n_tiles))] == sorted(ranks)


@settings(deadline=None, max_examples=60)
@given(grids(), st.integers(0, 60))
def test_the_order_that_keeps_least_decodes_no_more_than_that_of_the_indices(drawn, n):
    grid, chunks = drawn
    order = ReadingOrder.keeping_least(grid, chunks, n)
    found, plain = [
        chunk_reuse(grid, chunks, n, *how) for how in ((order.axes, order.bands), (None, None))
    ]
    assert found.n_decoded <= 1.01 * plain.n_decoded
    assert found.n_decoded < plain.n_decoded or found.n_waiting <= plain.n_waiting


def test_an_image_of_which_not_even_a_column_can_be_kept_is_read_in_bands():
    grid = TileGrid.regular((128, 16384, 16384), (64, 512, 512), (16, 16, 16))
    chunks, n = (32, 256, 256), 2**28 // 2**22
    order = ReadingOrder.keeping_least(grid, chunks, n)
    found = chunk_reuse(grid, chunks, n, order.axes, order.bands)
    assert found.n_decoded < 1.4 * found.n_chunks
    assert chunk_reuse(grid, chunks, n).n_decoded > 2.5 * found.n_chunks


@pytest.mark.parametrize(
    "shape, slowest",
    [((128, 4096, 8192), 2), ((128, 8192, 4096), 1), ((1024, 2048, 2048), 0)],
)
def test_the_axis_across_which_an_image_is_small_goes_slowest(shape, slowest):
    grid = TileGrid.regular(shape, (64, 512, 512), (16, 16, 16))
    order = ReadingOrder.keeping_least(grid, (32, 256, 256))
    assert (order.axes or (0,))[0] == slowest


def test_slices_keep_their_layers():
    grid = replace(TileGrid.regular((8, 64, 640), (1, 32, 32), (0, 4, 4)), apart=(0,), layer=(0, 4))
    assert ReadingOrder.keeping_least(grid, (4, 32, 32)).axes is None
