from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patchworks.steps.pyramid import pool_image, pool_labels
from tests.strategies import label_images, shapes

laws = settings(deadline=None, max_examples=80)


def cells(array: np.ndarray, factor: tuple[int, ...]):
    """Yield each cell's place in the pooled array and its voxels, cut off at the upper end."""
    for at in np.ndindex(*[-(-n // f) for n, f in zip(array.shape, factor, strict=True)]):
        yield at, array[tuple(slice(p * f, (p + 1) * f) for p, f in zip(at, factor, strict=True))]


def most_frequent(cell: np.ndarray) -> int:
    """Return the mode; of those that tie the largest id, so that background (0) loses ties."""
    count = Counter(cell.ravel().tolist())
    return max(count, key=lambda label: (count[label], label))


def factors(ndim: int, largest: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(1, largest)] * ndim)


@st.composite
def labels_and_factor(draw) -> tuple[np.ndarray, tuple[int, ...]]:
    shape = draw(shapes())
    dtype = draw(st.sampled_from(["uint8", "uint16", "uint32", "uint64"]))
    max_id = draw(st.sampled_from([1, 2, 5, 200]))
    return draw(label_images(shape, max_id=max_id, dtype=dtype)), draw(factors(len(shape)))


@settings(deadline=None, max_examples=200)
@given(labels_and_factor())
def test_a_cell_becomes_its_most_frequent_label(drawn):
    labels, factor = drawn
    pooled = pool_labels(labels, factor)
    for at, cell in cells(labels, factor):
        assert pooled[at] == most_frequent(cell)


@laws
@given(labels_and_factor())
def test_pooled_labels_have_the_extents_divided_and_rounded_up(drawn):
    labels, factor = drawn
    shape = tuple(-(-n // f) for n, f in zip(labels.shape, factor, strict=True))
    assert pool_labels(labels, factor).shape == shape


@laws
@given(labels_and_factor())
def test_pooled_labels_keep_their_dtype(drawn):
    assert pool_labels(*drawn).dtype == drawn[0].dtype


@laws
@given(labels_and_factor())
def test_no_cell_gets_a_label_that_was_not_in_it(drawn):
    labels, factor = drawn
    pooled = pool_labels(labels, factor)
    for at, cell in cells(labels, factor):
        assert pooled[at] in cell


@laws
@given(labels_and_factor())
def test_pooling_leaves_its_input_alone(drawn):
    labels, factor = drawn
    before = labels.copy()
    pool_labels(labels, factor)
    np.testing.assert_array_equal(labels, before)


@laws
@given(labels_and_factor())
def test_a_factor_of_one_changes_nothing(drawn):
    labels, _ = drawn
    np.testing.assert_array_equal(pool_labels(labels, (1,) * labels.ndim), labels)


@laws
@given(labels_and_factor(), st.data())
def test_pooling_a_region_that_holds_whole_cells_is_that_region_of_the_pooled(drawn, data):
    labels, factor = drawn
    pooled = pool_labels(labels, factor)
    starts = [data.draw(st.integers(0, n - 1)) for n in pooled.shape]
    region = tuple(slice(a * f, None) for a, f in zip(starts, factor, strict=True))
    expected = pooled[tuple(slice(a, None) for a in starts)]
    np.testing.assert_array_equal(pool_labels(labels[region], factor), expected)


@pytest.mark.parametrize(
    ("cell", "winner"),
    [
        pytest.param([[0, 0], [3, 3]], 3, id="background loses a tie"),
        pytest.param([[7, 3], [3, 7]], 7, id="the larger id wins a tie"),
        pytest.param([[0, 3], [7, 0]], 0, id="two objects of one voxel lose to background"),
        pytest.param([[0, 1], [2, 3]], 3, id="all tie"),
        pytest.param([[5, 5], [5, 0]], 5, id="a majority"),
    ],
)
def test_ties(cell, winner):
    assert pool_labels(np.array(cell, "uint32"), (2, 2)).tolist() == [[winner]]


def test_an_object_that_fills_half_of_each_cell_stays():
    stripes = np.tile(np.array([[0, 9]], "uint32"), (6, 3))
    assert (pool_labels(stripes, (2, 2)) == 9).all()


def test_a_cut_off_cell_counts_the_voxels_it_has():
    labels = np.array([[0, 0, 4], [0, 0, 0]], "uint8")
    assert pool_labels(labels, (2, 2)).tolist() == [[0, 4]]


def test_huge_ids_are_not_rounded():
    ids = np.array([[2**63 + 1, 2**63 + 3], [2**63 + 3, 2**64 - 1]], "uint64")
    assert int(pool_labels(ids, (2, 2))[0, 0]) == 2**63 + 3


@pytest.mark.parametrize("factor", [(64, 64), (1, 64), (64, 3)])
def test_the_largest_factors_that_a_run_allows_count_right(factor):
    labels = np.ones((64, 64), "uint8")
    labels[::2] = 2
    labels[0, :] = 1
    pooled = pool_labels(labels, factor)
    for at, cell in cells(labels, factor):
        assert pooled[at] == most_frequent(cell)


# --- images -------------------------------------------------------------------------------------

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32"]


@st.composite
def images_and_factor(draw, dtypes) -> tuple[np.ndarray, tuple[int, ...]]:
    shape = draw(shapes(max_axes=4))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if dtype.kind == "f":
        voxels = rng.normal(0, 1000, shape)
    else:
        limits = np.iinfo(dtype)
        voxels = rng.integers(limits.min, limits.max, shape, endpoint=True)
    return voxels.astype(dtype), draw(factors(len(shape)))


@laws
@given(images_and_factor(INTEGERS))
def test_a_cell_of_integers_becomes_its_mean_rounded_to_the_nearest(drawn):
    voxels, factor = drawn
    pooled = pool_image(voxels, factor)
    for at, cell in cells(voxels, factor):
        mean = sum(cell.ravel().tolist()) / cell.size
        assert abs(int(pooled[at]) - mean) <= 0.5 + 1e-6


@laws
@given(images_and_factor(["float32", "float64"]))
def test_a_cell_of_floats_becomes_its_mean(drawn):
    voxels, factor = drawn
    pooled = pool_image(voxels, factor)
    for at, cell in cells(voxels, factor):
        assert pooled[at] == pytest.approx(cell.astype("f8").mean(), rel=1e-5, abs=1e-3)


@laws
@given(images_and_factor([*INTEGERS, "float32", "float64"]))
def test_a_pooled_image_keeps_its_dtype_and_has_the_extents_divided(drawn):
    voxels, factor = drawn
    pooled = pool_image(voxels, factor)
    assert pooled.dtype == voxels.dtype
    assert pooled.shape == tuple(-(-n // f) for n, f in zip(voxels.shape, factor, strict=True))


@laws
@given(images_and_factor(INTEGERS))
def test_a_pooled_image_stays_within_the_intensities_of_each_cell(drawn):
    voxels, factor = drawn
    pooled = pool_image(voxels, factor)
    for at, cell in cells(voxels, factor):
        assert cell.min() <= pooled[at] <= cell.max()


@pytest.mark.parametrize("dtype", [*INTEGERS, "uint64", "int64"])
@pytest.mark.parametrize("end", ["min", "max"])
def test_an_even_image_keeps_its_intensity_at_the_limits_of_its_dtype(dtype, end):
    even = np.full((3, 4), getattr(np.iinfo(dtype), end), dtype)
    assert (pool_image(even, (2, 2)) == even[0, 0]).all()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [([[1, 0], [0, 0]], False), ([[1, 1], [1, 0]], True), ([[0, 0], [0, 0]], False)],
)
def test_a_cell_of_a_binary_image_becomes_what_most_of_its_voxels_are(cell, expected):
    assert pool_image(np.array(cell, bool), (2, 2)).tolist() == [[expected]]


@settings(deadline=None, max_examples=40)
@given(hnp.arrays("float32", (4, 6), elements=st.just(1.5) | st.just(float("nan"))))
def test_only_cells_that_hold_a_nan_become_nan(voxels):
    pooled = pool_image(voxels, (2, 2))
    for at, cell in cells(voxels, (2, 2)):
        assert np.isnan(pooled[at]) == np.isnan(cell).any()
