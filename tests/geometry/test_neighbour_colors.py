"""Colours of objects in a plane."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from patchworks.geometry.neighbour_colors import neighbour_colors, pixel_colors


@given(arrays.arrays(np.uint64, (12, 12), elements=st.sampled_from([0, 3, 11, 19, 2**60 + 3])))
def test_touching_objects_differ_where_there_are_colours_enough(plane):
    labels = np.unique(plane[plane > 0])
    colors = dict(zip(labels.tolist(), neighbour_colors(plane, labels, 8).tolist(), strict=True))
    assert all(0 <= color < 8 for color in colors.values())
    for one, other in ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])):
        for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
            if a and b and a != b:
                assert colors[a] != colors[b]


def test_more_objects_than_can_be_seen_get_the_colour_of_their_number():
    plane = np.arange(1, 40_001).reshape(200, 200)
    colors = pixel_colors(plane, plane > 7, 8)
    np.testing.assert_array_equal(colors, plane[plane > 7] % 8)
