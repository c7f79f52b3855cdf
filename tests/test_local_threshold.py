"""Local thresholds: what is brighter than the mean around it, tiled as in the whole image."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_local

from patchworks import tile_process
from patchworks.errors import InputError
from patchworks.segmenters import threshold
from tests.cells import same_partition

laws = settings(deadline=None, max_examples=25)
METHODS = ("mean", "gaussian")
NUMBERS = ("uint8", "uint16", "int32", "uint32", "uint64", "float32", "float64")


@laws
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 7, 11]), st.integers(-9, 30))
def test_it_is_scikit_images_local_threshold(seed, window, offset):
    image = np.random.default_rng(seed).integers(0, 200, (30, 37)).astype("float32")
    excess = image - threshold_local(image, window, method="mean", mode="reflect") - offset
    found = threshold(local="mean", window=window, offset=offset)(image) > 0
    sure = np.abs(excess) > 1e-3
    np.testing.assert_array_equal(found[sure], (excess > 0)[sure])


@laws
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 7, 11]))
def test_a_gaussian_mean_differs_from_scikit_images_only_in_where_it_ends(seed, window):
    image = np.random.default_rng(seed).integers(0, 200, (30, 37)).astype("float32")
    theirs = threshold_local(image, window, method="gaussian", mode="reflect")
    ours = threshold(local="gaussian", window=window)._mean_around(image)
    np.testing.assert_allclose(ours, theirs, atol=0.01 * 200)  # at 3 sigma, not at 4


@pytest.mark.parametrize("local", METHODS)
@settings(deadline=None, max_examples=8)
@given(st.sampled_from([0, 1]), st.sampled_from(["auto", "touch"]), st.integers(0, 2**32 - 1))
def test_tiles_give_the_components_of_the_whole_image(local, sigma, stitch, seed):
    image = np.random.default_rng(seed).random((50, 47)).astype("float32")
    segment = threshold(local=local, window=[5, 9], sigma=sigma, offset=0.05)
    overlap = [far + 1 for far in segment.reach]
    tiled = tile_process(
        image, segment, tile_shape=(17, 20), overlap=overlap, stitch=stitch, progress=False
    )
    assert same_partition(segment(image), tiled.compute())


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 2**32 - 1), st.sampled_from(METHODS))
def test_tiles_give_the_components_of_a_whole_volume(seed, local):
    image = np.random.default_rng(seed).integers(0, 999, (12, 25, 23)).astype("uint16")
    segment = threshold(100, local=local, window=[3, 5, 5], offset=150, connectivity=3)
    tiled = tile_process(image, segment, tile_shape=(5, 11, 12), overlap=(2, 3, 3), progress=False)
    assert same_partition(segment(image), tiled.compute())


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("local", METHODS)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_where_all_voxels_are_equal_there_are_no_objects(local, dtype, data):
    largest = 2.0**99 if dtype[0] == "f" else int(np.iinfo(dtype).max)
    kind = st.floats if dtype[0] == "f" else st.integers
    value = data.draw(kind(0, largest))
    image = np.full((9, 40, 41), value, dtype)
    assert threshold(local=local, window=[3, 15, 15])(image).max() == 0
    assert threshold(local=local, window=9, sigma=1)(image).max() == 0


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("local", METHODS)
def test_the_same_intensities_of_any_dtype_give_the_same_labels(local, dtype):
    image = np.random.default_rng(5).integers(0, 120, (40, 50)).astype("uint8")
    segment = threshold(local=local, window=9, offset=3.5)
    np.testing.assert_array_equal(segment(image.astype(dtype)), segment(image))


def test_objects_on_an_uneven_background_are_found_where_a_global_threshold_fails():
    y, x = np.mgrid[:60, :90]
    image = (20 * x).astype("uint16")
    discs = [(20, 10), (40, 45), (20, 80)]
    for cy, cx in discs:
        image[(y - cy) ** 2 + (x - cx) ** 2 <= 16] += 250
    assert threshold(local="mean", window=21, offset=100)(image).max() == len(discs)
    assert threshold().prepare(image)(image).max() != len(discs)


def test_a_value_is_a_floor_beside_the_local_threshold():
    image = np.zeros((9, 30), "uint8")
    image[4, 5], image[4, 20] = 10, 100
    assert threshold(local="mean", window=5, offset=2)(image).max() == 2
    assert threshold(50, local="mean", window=5, offset=2)(image).max() == 1


def test_nothing_of_the_whole_image_is_prepared():
    segment = threshold(local="gaussian")
    assert segment.prepare(np.arange(9)) is segment
    assert pickle.loads(pickle.dumps(segment)) == segment


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"local": "median"}, r"local='median'.*'mean', 'gaussian'"),
        ({"window": 4}, "window=4"),
        ({"window": 1}, "window=1"),
        ({"window": 5.0}, "window=5.0"),
        ({"window": True}, "window=True"),
        ({"window": [5, 4]}, r"window=\[5, 4\]"),
        ({"window": []}, r"window=\[\]"),
        ({"window": "51"}, "window='51'"),
        ({"window": None}, "window=None"),
        ({"offset": None}, "offset=None"),
        ({"offset": float("nan")}, "offset=nan"),
    ],
)
def test_a_bad_parameter_is_refused_and_named(keywords, named):
    with pytest.raises(InputError, match=named):
        threshold(**{"local": "mean", **keywords})


def test_a_window_of_other_axes_is_refused_before_any_work():
    segment = threshold(local="mean", window=[3, 9, 9])
    with pytest.raises(InputError, match="3 numbers for tiles of 2 axes"):
        tile_process(np.zeros((64, 64), "uint8"), segment, tile_shape=(32, 32), progress=False)
    volume = np.zeros((4, 32, 32), "uint8")
    with pytest.raises(InputError, match="3 numbers for tiles of 2 axes"):
        tile_process(volume, segment, tile_shape=(32, 32), slice_wise=True, progress=False)
