"""The boxes of a maximum map: a partition that goes well with chunks, and is small."""

from itertools import pairwise
from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patchworks.geometry.box_grid import BOX_VOXELS, plan_boxes
from tests.strategies import boxes, shapes


@st.composite
def planned(draw, longest: int = 700):
    n_axes = draw(st.integers(2, 5))
    shape = tuple(draw(st.integers(1, longest)) for _ in range(n_axes))
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    return shape, chunks, plan_boxes(shape, chunks)


@given(planned())
def test_boxes_are_parts_of_a_chunk_or_whole_chunks(found):
    shape, chunks, grid = found
    for n, chunk, cell, edges in zip(shape, chunks, grid.cell, grid.edges, strict=True):
        assert (edges[0], edges[-1]) == (0, n)
        assert cell % chunk == 0 or cell == n
        assert set(range(0, n, cell)) <= set(edges)
        for a, b in pairwise(edges):
            assert a < b
            assert a // chunk == (b - 1) // chunk or (a % chunk == 0 and (b % chunk == 0 or b == n))


@given(planned())
def test_a_map_is_a_small_part_of_any_image(found):
    shape, _, grid = found
    extents = [max(b - a for a, b in pairwise(edges)) for edges in grid.edges]
    assert prod(extents) >= min(BOX_VOXELS, prod(shape))


@given(st.data())
def test_boxes_that_touch_and_boxes_inside_are_those_that_do(data):
    shape = data.draw(shapes(max_axes=3))
    edges = tuple(
        tuple(sorted({0, n, *data.draw(st.sets(st.integers(0, n), max_size=4))})) for n in shape
    )
    grid = plan_boxes(shape, shape)
    grid = type(grid)(edges, shape)
    box = data.draw(boxes(shape))
    touching = np.zeros(grid.boxes.dims, bool)
    touching[grid.touching(box)] = True
    inside = np.zeros(grid.boxes.dims, bool)
    inside[grid.inside(box)] = True
    for tile in grid.boxes:
        common = tile.core.intersect(box)
        assert touching[tile.position] == (common is not None)
        assert inside[tile.position] == (common == tile.core)


@given(st.data(), st.sampled_from([1, 2, 8]))
def test_units_hold_whole_cells(data, itemsize):
    shape, _, grid = data.draw(planned(longest=90))
    units = grid.units(itemsize)
    assert units.shape == shape
    for edges, cell in zip(units.edges, grid.cell, strict=True):
        assert all(edge % cell == 0 for edge in edges[:-1])


def test_axes_before_the_last_three_are_not_mixed():
    grid = plan_boxes((2, 3, 100, 500, 500), (1, 1, 10, 500, 500))
    assert grid.boxes.dims[:2] == (2, 3)
