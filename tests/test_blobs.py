"""Blobs: one object per disc or ball, apart where they touch, tiled as in the whole image."""

import pickle
import re

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed

from patchworks import tile_process
from patchworks.errors import InputError
from patchworks.fidelity import compare_objects
from patchworks.segmenters import Blobs, blobs, otsu_threshold
from patchworks.segmenters.blobs import laplacian_response, scales
from patchworks.segmenters.steepest_ascent import climb, summits
from tests.cells import make, same_partition

laws = settings(deadline=None, max_examples=20)


def discs(shape, centres, radii, dtype="uint16"):
    axes, radii = np.ogrid[tuple(slice(n) for n in shape)], np.broadcast_to(radii, len(shape))
    image = np.full(shape, 100, dtype)
    for centre in centres:
        parts = zip(axes, centre, radii, strict=True)
        inside = sum([((a - c) / r) ** 2 for a, c, r in parts])
        image[inside <= 1] = 200
    return image


def tiled_as_whole(image, segment, tile_shape, overlap):
    tiled = tile_process(image, segment, tile_shape=tile_shape, overlap=overlap, progress=False)
    whole = segment.prepare(np.asarray(image).ravel())(image)
    return same_partition(whole, tiled.compute())


# --- tiled and whole ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 4.5]), st.sampled_from([0, 0.7]))
def test_tiles_give_the_blobs_of_the_whole_image(seed, diameter, smoothing):
    image = np.random.default_rng(seed).random((75, 60)).astype("float32")
    segment = blobs(diameter, threshold=0.4, smoothing=smoothing)
    assert tiled_as_whole(image, segment, (25, 30), segment.reach + 1)


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 2**32 - 1))
def test_tiles_give_the_blobs_of_a_whole_volume(seed):
    image = np.random.default_rng(seed).integers(0, 255, (24, 40, 36)).astype("uint8")
    segment = blobs([2, 4, 3], threshold=90, contrast=5)
    overlap = [far + 1 for far in segment.reach]
    assert tiled_as_whole(image, segment, (12, 20, 18), overlap)


def test_tiles_give_the_blobs_of_touching_cells():
    image = make((160, 150), pitch=14)
    assert tiled_as_whole(image, blobs(12), (60, 70), 34)


@laws
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.5, 2, 3, 4.25]))
def test_nothing_further_than_the_reach_counts(seed, diameter):
    rng = np.random.default_rng(seed)
    image = rng.random((90, 90))
    segment = blobs(diameter, threshold=0.3)
    far = segment.reach
    other = rng.random((90, 90)) * 9
    inside = (slice(40 - far, 50 + far),) * 2
    other[inside] = image[inside]
    core = (slice(40, 50),) * 2
    assert same_partition(segment(image)[core], segment(other)[core])


# --- what is found ------------------------------------------------------------------------------


@laws
@given(st.data(), st.sampled_from([7, 9, 12]))
def test_each_disc_is_one_object(data, diameter):
    places = [(y, x) for y in range(3) for x in range(3)]
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, unique=True))
    step = 2 * diameter
    centres = [(diameter + step * y, diameter + step * x) for y, x in chosen]
    image = discs((3 * step + 1, 3 * step + 1), centres, diameter / 2)
    labels = blobs(diameter).prepare(image)(image)
    assert labels.max() == len(centres)
    np.testing.assert_array_equal(labels > 0, image > 100)


@pytest.mark.parametrize("gap", [8, 9, 10])
def test_discs_that_touch_are_two_objects(gap):
    image = discs((30, 40), [(15, 14), (15, 14 + gap)], 5)
    assert ndimage.label(image > 100)[1] == 1
    labels = blobs(10, threshold=150)(image)
    assert labels.max() == 2
    assert labels[15, 14] != labels[15, 14 + gap]


def test_flat_voxels_take_a_diameter_per_axis():
    centres = [(6, 20, 20), (6, 20, 34), (13, 20, 20)]  # two touch along x, two along z
    image = discs((20, 40, 54), centres, (3.4, 7, 7))
    labels = blobs([7, 14, 14], threshold=150)(image)
    assert labels.max() == len(centres)
    assert len({labels[centre] for centre in centres}) == len(centres)


def test_a_faint_blob_has_too_little_contrast():
    y, x = np.mgrid[:40, :80]
    bright, faint = [np.exp(-((y - 20) ** 2 + (x - c) ** 2) / 32) for c in (20, 60)]
    image = 100 * bright + 10 * faint
    found = {c: blobs(11.3, threshold=2, contrast=c)(image).max() for c in (0, 4, 6, 45, 55)}
    assert found == {0: 2, 4: 2, 6: 1, 45: 1, 55: 0}, "half the height of a blob that fits"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float32", "float64"])
def test_where_all_voxels_are_equal_there_are_no_objects(dtype):
    for value in (0, 1, 3, 100, 127):
        image = np.full((40, 41), value, dtype)
        assert blobs(5, threshold=-1)(image).max() == 0
        assert blobs(5, smoothing=1).prepare(image)(image).max() == 0


@pytest.mark.parametrize("dtype", ["int16", "uint32", "float16", "float32", "float64"])
def test_the_same_intensities_of_any_dtype_give_the_same_labels(dtype):
    image = np.random.default_rng(5).integers(0, 120, (40, 50)).astype("uint8")
    segment = blobs(6, threshold=50, smoothing=1)
    np.testing.assert_array_equal(segment(image.astype(dtype)), segment(image))


def test_a_binary_image_has_blobs():
    image = discs((20, 30), [(10, 9)], 4) > 150
    np.testing.assert_array_equal(blobs(8).prepare(image)(image), image)


def test_a_background_of_any_height_changes_nothing():
    image = make((60, 70), pitch=14).astype("float64")
    segment = blobs(12, threshold=200)
    np.testing.assert_array_equal(segment(image), blobs(12, threshold=50_200)(image + 50_000))


@pytest.mark.parametrize("diameter", [10, 14])
def test_the_objects_are_those_of_scikit_images_watershed(diameter):
    image = make((200, 210), pitch=14)
    found = blobs(diameter, threshold=200)(image)
    response, least = laplacian_response(image, scales((diameter,) * 2))
    markers, _ = ndimage.label(summits(response) & (response > least), np.ones((3, 3)))
    markers[image <= 200] = 0
    flooded = watershed(-response, markers, connectivity=2, mask=image > 200)
    same = compare_objects(flooded, found)
    assert same.n_found == same.n_true > 100
    assert same.f1 > 0.98


# --- the way up ---------------------------------------------------------------------------------


@laws
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 6))
def test_objects_are_connected_and_no_larger_than_the_way_may_be_long(seed, ndim, limit):
    rng = np.random.default_rng(seed)
    heights = rng.integers(0, 5, (11,) * ndim).astype("float32")  # with many plateaus
    mask = rng.random(heights.shape) < 0.8
    labels = climb(heights, mask, summits(heights), (limit,) * ndim)
    assert not labels[~mask].any()
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        _, n_parts = ndimage.label(labels[box] == index, np.ones((3,) * ndim))
        assert n_parts == 1
        assert max(labels[box].shape) <= 2 * limit + 1


def test_a_plateau_is_one_summit():
    heights = np.array([[0, 1, 2, 2, 1, 0, 1, 3]], "float32")
    labels = climb(heights, heights > 0, summits(heights), (9, 9))
    assert labels.tolist() == [[0, 1, 1, 1, 1, 0, 2, 2]]


# --- parameters ---------------------------------------------------------------------------------


def test_preparing_takes_otsus_threshold_of_the_sample():
    sample = np.array([1, 1, 2, 9, 9, 8])
    assert blobs(4).prepare(sample) == Blobs(4.0, otsu_threshold(sample))
    assert blobs(4, threshold=3).prepare(sample) == blobs(4, threshold=3)


def test_blobs_can_be_sent_to_a_worker():
    segmenter = blobs([2, 4], contrast=3)
    assert pickle.loads(pickle.dumps(segmenter)) == segmenter


def test_the_overlap_it_takes_is_as_documented():
    for diameter in np.arange(1.1, 60, 0.1):
        assert blobs(diameter).reach < 2.5 * diameter + 4
    assert blobs([3, 10, 10]).reach[1] < blobs(10).reach


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"diameter": 0}, "diameter=0"),
        ({"diameter": 1}, "diameter=1"),
        ({"diameter": "10"}, "diameter='10'"),
        ({"diameter": None}, "diameter=None"),
        ({"diameter": [10, None]}, r"diameter=\[10, None\]"),
        ({"diameter": [10, "10"]}, r"diameter=\[10, '10'\]"),
        ({"diameter": []}, r"diameter=\[\]"),
        ({"diameter": True}, "diameter=True"),
        ({"threshold": "a"}, "threshold='a'"),
        ({"contrast": -1}, "contrast=-1"),
        ({"contrast": None}, "contrast=None"),
        ({"smoothing": -1}, "smoothing=-1"),
        ({"smoothing": float("inf")}, "smoothing=inf"),
    ],
)
def test_a_bad_parameter_is_refused_and_named(keywords, named):
    with pytest.raises(InputError, match=f"blobs.*{named}|{named}"):
        blobs(**{"diameter": 10, **keywords})


def test_diameters_of_other_axes_and_several_channels_are_refused_before_any_work():
    with pytest.raises(InputError, match="3 numbers for tiles of 2 axes"):
        tile_process(np.zeros((64, 64), "uint8"), blobs([3, 9, 9]), progress=False)
    channels = zarr.array(np.zeros((2, 32, 32), "uint8"), dimension_names=("c", "y", "x"))
    with pytest.raises(InputError, match="'blobs' segments one channel"):
        tile_process(channels, blobs(9), channel=[0, 1], progress=False)


# --- the overlap --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmenter", "overlap", "said"),
    [
        (blobs(10), None, "Blobs looks 26 voxels far, and tiles overlap by 16.*overlap=27 or"),
        (blobs([8, 10]), (5, 27), r"overlap by 5.*overlap=\[22, 27\] or"),
        (blobs(10), 27, None),
        (blobs([3, 10]), (10, 27), None),
        (blobs(4), None, None),
    ],
)
def test_too_small_an_overlap_is_warned_of_once(segmenter, overlap, said, caplog):
    image = np.zeros((100, 100), "uint8")
    tile_process(image, segmenter, tile_shape=(50, 50), overlap=overlap, progress=False).compute()
    lines = [r.message for r in caplog.records if "voxels far" in r.message]
    assert len(lines) == (said is not None)
    if said:
        assert re.search(said, lines[0]), lines


def test_one_tile_needs_no_overlap(caplog):
    image = np.zeros((30, 30), "uint8")
    tile_process(image, blobs(20), tile_shape=(30, 30), overlap=0, progress=False).compute()
    assert not caplog.records
