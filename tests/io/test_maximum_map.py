"""What a map of maxima decides is what the voxels say; what it cannot decide it says so."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.box import Box
from patchworks.geometry.box_grid import BoxGrid
from patchworks.io.maximum_map import MaximumMap, larger_of, maxima_of
from tests.strategies import boxes, generators, shapes

DTYPES = ["uint8", "int16", "int64", "float32", "float64", "bool"]


@st.composite
def images(draw) -> np.ndarray:
    """Sparse images of any dtype, floats with NaN and infinities."""
    shape, rng = draw(shapes(max_axes=4)), draw(generators())
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    low = -20 if dtype.kind in "if" else 0
    values = np.where(rng.random(shape) < 0.1, rng.integers(low, 60, shape), low)
    voxels = values.astype(dtype)
    if dtype.kind == "f":
        voxels[rng.random(shape) < draw(st.sampled_from([0, 0.1, 0.9]))] = np.nan
        voxels[rng.random(shape) < 0.01] = np.inf
    return voxels


@st.composite
def maps(draw, image: np.ndarray) -> MaximumMap:
    """Maps of an image over boxes of any extents, which know some boxes or all."""
    edges = [sorted({0, n, *draw(st.sets(st.integers(0, n), max_size=5))}) for n in image.shape]
    grid = BoxGrid(tuple(map(tuple, edges)), image.shape)
    found = MaximumMap.unknown(grid, image.dtype)
    for part in draw(st.lists(boxes(image.shape), max_size=4)):
        found.learn(part, image[part.slices])
    if draw(st.booleans()):
        found.learn(Box.whole(image.shape), image)
        assert found.is_complete
    return found


@settings(deadline=None)
@given(st.data(), images(), st.sampled_from([-25.5, -1.0, 0.0, 0.5, 30.0, 59.0]))
def test_a_decision_is_what_the_voxels_say(data, image, threshold):
    found, box = data.draw(maps(image)), data.draw(boxes(image.shape))
    expected = bool((image[box.slices] > threshold).any())
    decided = found.is_signal(box, threshold)
    assert decided in (expected, None)
    parts = found.open_parts(box, threshold)
    if decided is None:
        assert any((image[part.slices] > threshold).any() for part in parts) == expected
    if decided is False:
        assert not parts
    covered = np.zeros(image.shape, int)
    for part in parts:
        covered[part.slices] += 1
    assert covered.max() <= 1
    bounds = found.bounds(box, threshold)
    assert (bounds is None) == (not parts)
    if bounds is not None:
        assert bounds.start == tuple(map(min, *[p.start for p in parts], bounds.stop))
        assert bounds.stop == tuple(map(max, *[p.stop for p in parts], bounds.start))
    assert not covered.any() or covered[box.slices].sum() == covered.sum()


@settings(deadline=None)
@given(st.data(), images())
def test_whole_boxes_and_those_without_signal_are_always_decided(data, image):
    found, box = data.draw(maps(image)), data.draw(boxes(image.shape))
    found.learn(Box.whole(image.shape), image)
    whole = found.grid.voxels_of(found.grid.touching(box))
    for threshold in (-1.0, 30.0):
        assert found.is_signal(whole, threshold) is not None


@settings(deadline=None)
@given(st.data(), images())
def test_parts_of_boxes_make_the_maxima_of_whole_ones(data, image):
    """As a conversion makes them, whose regions may cut boxes."""
    whole = data.draw(maps(image))
    whole.learn(Box.whole(image.shape), image)
    at = data.draw(st.integers(0, image.shape[0]))
    found = np.empty_like(whole.maxima)
    known = np.zeros(found.shape, bool)
    for start, stop in ((0, at), (at, image.shape[0])):
        if start == stop:
            continue
        box = Box.whole(image.shape).on_axis(0, start, stop)
        spans, part = whole.grid.touching(box), maxima_of(whole.grid, box, image[box.slices])
        found[spans] = np.where(known[spans], larger_of(found[spans], part), part)
        known[spans] = True
    np.testing.assert_array_equal(found, whole.maxima)


@settings(deadline=None)
@given(st.data(), images())
def test_what_two_maps_have_learned_adds_up(data, image):
    first = data.draw(maps(image))
    second = MaximumMap.unknown(first.grid, image.dtype)
    part = data.draw(boxes(image.shape))
    second.learn(part, image[part.slices])
    both = replace(first, maxima=first.maxima.copy(), known=first.known.copy())
    both.add(second.learned_beside(first.known))
    np.testing.assert_array_equal(both.known, first.known | second.known)
    expected = np.where(first.known, first.maxima, second.maxima)
    np.testing.assert_array_equal(both.maxima[both.known], expected[both.known])
    first.take(second)
    np.testing.assert_array_equal(first.known, both.known)
    np.testing.assert_array_equal(first.maxima[first.known], both.maxima[both.known])
