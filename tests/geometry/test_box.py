from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.errors import InputError
from patchworks.geometry.box import Box
from tests.strategies import boxes, halos, shapes

laws = settings(deadline=None, max_examples=60)


def painted(box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Return a bool image that is True inside the box."""
    image = np.zeros(shape, bool)
    image[box.slices] = True
    return image


@st.composite
def images_with_boxes(draw, n_boxes: int):
    shape = draw(shapes())
    return shape, [draw(boxes(shape)) for _ in range(n_boxes)]


@laws
@given(images_with_boxes(1))
def test_slices_select_as_many_voxels_as_the_size_says(drawn):
    shape, [box] = drawn
    assert painted(box, shape).sum() == box.size


@laws
@given(images_with_boxes(1))
def test_slices_select_an_array_of_the_boxes_shape(drawn):
    shape, [box] = drawn
    assert np.empty(shape)[box.slices].shape == box.shape


@laws
@given(shapes())
def test_the_whole_box_selects_every_voxel(shape):
    assert painted(Box.whole(shape), shape).all()


@laws
@given(images_with_boxes(2))
def test_intersect_holds_exactly_the_common_voxels(drawn):
    shape, [a, b] = drawn
    common = a.intersect(b)
    expected = painted(a, shape) & painted(b, shape)
    found = np.zeros(shape, bool) if common is None else painted(common, shape)
    np.testing.assert_array_equal(found, expected)


@laws
@given(images_with_boxes(2))
def test_intersect_is_none_only_where_no_voxel_is_common(drawn):
    shape, [a, b] = drawn
    assert (a.intersect(b) is None) == (not (painted(a, shape) & painted(b, shape)).any())


@laws
@given(images_with_boxes(2))
def test_intersect_does_not_depend_on_the_order(drawn):
    _, [a, b] = drawn
    assert a.intersect(b) == b.intersect(a)


def test_boxes_that_only_touch_do_not_intersect():
    assert Box((0, 0), (4, 4)).intersect(Box((0, 4), (4, 8))) is None


@laws
@given(images_with_boxes(1), st.data())
def test_grow_adds_the_voxels_within_reach_of_the_halo(drawn, data):
    shape, [box] = drawn
    halo = data.draw(halos(len(shape)))
    grown = painted(box.grow(halo, Box.whole(shape)), shape)
    index = np.indices(shape)
    reached = np.ones(shape, bool)
    for axis, h in enumerate(halo):
        reached &= (index[axis] >= box.start[axis] - h) & (index[axis] < box.stop[axis] + h)
    np.testing.assert_array_equal(grown, reached)


@laws
@given(images_with_boxes(2))
def test_relative_to_finds_the_same_voxels_in_the_part_that_was_read(drawn):
    shape, [a, b] = drawn
    common = a.intersect(b)
    if common is None:
        return
    voxels = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(
        voxels[a.slices][common.relative_to(a.start).slices], voxels[common.slices]
    )


@laws
@given(images_with_boxes(1), st.data())
def test_on_axis_changes_one_axis_only(drawn, data):
    shape, [box] = drawn
    axis = data.draw(st.integers(0, len(shape) - 1))
    changed = box.on_axis(axis, 0, shape[axis])
    expected = list(box.shape)
    expected[axis] = shape[axis]
    assert changed.shape == tuple(expected)
    assert changed.intersect(box) == box


@pytest.mark.parametrize(
    ("start", "stop"), [((0, 3), (4, 2)), ((0,), (4, 4)), ((0, 0), (4,)), ((5,), (4,))]
)
def test_a_box_that_is_none_is_refused_with_its_corners_named(start, stop):
    with pytest.raises(InputError) as refused:
        Box(start, stop)
    assert str(start) in str(refused.value)
    assert str(stop) in str(refused.value)
