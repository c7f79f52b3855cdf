"""What a network says of each voxel becomes objects, in each of the ways that have a name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, special

from patchworks.errors import InputError, SegmenterError
from patchworks.probabilities import PostProcessing, maxima_apart, numbered, without_small
from tests.cells import same_partition
from tests.strategies import binary_images, generators, label_images, shapes

laws = settings(deadline=None, max_examples=50)


def whole(ndim):
    return ((0, 0),) * ndim


def components(mask, connectivity=1):
    structure = ndimage.generate_binary_structure(mask.ndim, min(connectivity, mask.ndim))
    return ndimage.label(mask, structure)[0]


@st.composite
def probabilities(draw, n_channels=1):
    """Smooth maps between 0 and 1, with ties: like those of networks that are sure."""
    shape = draw(st.sampled_from([(23, 31), (9, 14, 17)]))
    noise = draw(generators()).normal(size=(n_channels, *shape))
    smooth = np.stack([ndimage.gaussian_filter(each, 1.5) for each in noise])
    return special.expit(smooth * 30).astype("float32")


# --- threshold ----------------------------------------------------------------------------------


@laws
@given(st.data(), st.integers(1, 4))
def test_threshold_gives_the_components_above_it(data, connectivity):
    mask = data.draw(binary_images(data.draw(shapes(max_axes=4))))
    found = PostProcessing(threshold=0.3, connectivity=connectivity)(
        np.where(mask, 0.31, 0.3)[None], whole(mask.ndim)
    )
    np.testing.assert_array_equal(found, components(mask, connectivity))


@laws
@given(probabilities(n_channels=3))
def test_activations_are_those_of_scipy(output):
    logits = special.logit(output.clip(1e-6, 1 - 1e-6))
    sigmoid = PostProcessing(activation="sigmoid", threshold=0.5, foreground=(1,))
    assert same_partition(sigmoid(logits, whole(output.ndim - 1)), components(logits[1] > 0))
    softmax = PostProcessing(activation="softmax", threshold=0.6, foreground=(0, 2))
    expected = special.softmax(logits, axis=0)[[0, 2]].sum(axis=0) > 0.6
    np.testing.assert_array_equal(softmax(logits, whole(output.ndim - 1)) > 0, expected)


# --- seeds --------------------------------------------------------------------------------------


@laws
@given(probabilities(n_channels=2), st.sampled_from([None, 1, 3]), st.booleans())
def test_watershed_makes_every_seed_one_object_within_the_foreground(output, distance, has_seeds):
    rule = PostProcessing(
        how="watershed",
        threshold=0.5,
        seed_threshold=0.9,
        seed_distance=distance,
        seeds=1 if has_seeds else None,
    )
    found = rule(output, whole(output.ndim - 1))
    foreground, marks = output[0] > 0.5, output[int(has_seeds)] > 0.9
    seeds = marks & foreground
    assert not found[~foreground].any()
    assert found[seeds].all()
    reached = np.unique(components(foreground)[seeds])
    np.testing.assert_array_equal(found > 0, np.isin(components(foreground), reached) & foreground)
    if distance is None:
        parts = components(seeds)
        pairs = np.unique(np.stack([parts[seeds], found[seeds]]), axis=1)
        assert len(pairs[0]) == parts.max() == len(np.unique(pairs[1])) == found.max()


def test_a_boundary_channel_parts_what_touches():
    foreground, boundary = np.full((2, 12, 21), 0.95), np.zeros((12, 21))
    boundary[:, 10] = 0.9
    output = np.stack([foreground[0], boundary])
    apart = PostProcessing(how="watershed", seed_threshold=0.8, boundary=1)(output, whole(2))
    assert len(np.unique(apart[:, :10])) == len(np.unique(apart[:, 11:])) == 1
    assert apart[0, 0] != apart[0, 20]
    assert apart.all()  # the boundary is foreground too
    joined = PostProcessing(how="watershed", seed_threshold=0.8)(output, whole(2))
    assert joined.max() == 1


def test_classes_that_exclude_each_other_are_added_up_to_the_foreground():
    scores = np.zeros((3, 10, 21))  # background, inside, boundary
    scores[1, 1:9, 1:20], scores[2, 1:9, 10] = 9, 19
    scores[0, 0], scores[0, 9], scores[0, :, 0], scores[0, :, 20] = 9, 9, 9, 9
    found = PostProcessing(
        how="watershed", activation="softmax", foreground=(1, 2), boundary=2, seed_threshold=0.7
    )(scores, whole(2))
    np.testing.assert_array_equal(found > 0, np.pad(np.ones((8, 19), bool), 1))
    assert found.max() == 2


@laws
@given(st.data(), st.integers(1, 4), st.sampled_from([1.0, 3.0]))
def test_distance_transform_cuts_the_components_and_nothing_else(data, distance, anisotropy):
    mask = data.draw(binary_images(data.draw(shapes(max_axes=3))))
    rule = PostProcessing(how="distance transform", seed_distance=distance, anisotropy=anisotropy)
    found = rule(mask[None].astype("float32"), whole(mask.ndim))
    np.testing.assert_array_equal(found > 0, mask)
    parts, n_parts = ndimage.label(mask)
    pairs = np.unique(np.stack([parts[mask], found[mask]]), axis=1)
    assert len(pairs[0]) == len(np.unique(pairs[1]))  # no object in two components
    assert len(pairs[0]) >= n_parts


def test_distance_transform_parts_disks_that_touch_and_keeps_a_small_one_beside_them():
    y, x = np.mgrid[:40, :70]
    disks = [(y - 20) ** 2 + (x - at) ** 2 < 14**2 for at in (20, 44)]
    mask = disks[0] | disks[1]
    mask[36:38, 32:34] = True  # nearer to their middles than the distance between seeds
    found = PostProcessing(how="distance transform", seed_distance=20)(mask[None] * 1.0, whole(2))
    assert found.max() == 3
    assert (found[disks[0]] == found[20, 20]).mean() > 0.94
    assert (found[disks[1]] == found[20, 44]).mean() > 0.94
    assert len(np.unique(found[36:38, 32:34])) == 1
    touching = PostProcessing(how="threshold")(mask[None] * 1.0, whole(2))
    assert touching.max() == 2


def test_distances_count_slices_as_thick_as_they_are():
    mask = np.zeros((3, 16, 30))
    mask[:, 2:14, 2:28] = 1
    rule = PostProcessing(how="distance transform", seed_distance=30, anisotropy=10)
    assert rule(mask[None], whole(3)).max() == 1


def test_the_image_says_how_thick_slices_are_unless_the_user_does():
    rule = PostProcessing(how="distance transform")
    assert rule.at_scale((2.0, 0.5, 0.5)).anisotropy == 4
    assert PostProcessing(anisotropy=3.0).at_scale((2.0, 0.5, 0.5)).anisotropy == 3
    for unknown in ((0.5, 0.5), (None, 0.5, 0.5), (2.0, None, 0.5)):
        assert rule.at_scale(unknown) == rule


@laws
@given(st.sampled_from([(1, 1), (9, 1), (7, 8), (3, 4, 5)]))
def test_where_there_is_no_background_all_is_one_object(shape):
    found = PostProcessing(how="distance transform")(np.ones((1, *shape)), whole(len(shape)))
    assert (found == 1).all()


@laws
@given(probabilities(), st.integers(1, 5))
def test_no_maximum_has_a_higher_one_near_it(output, distance):
    height, mask = output[0], output[0] > 0.2
    apart = (distance,) * height.ndim
    seeds = maxima_apart(height, mask, apart)
    window = [2 * distance + 1] * height.ndim
    peaks = mask & (height == ndimage.maximum_filter(height, window, mode="nearest"))
    pieces = components(mask)
    alone = mask & ~np.isin(pieces, pieces[peaks])
    np.testing.assert_array_equal(seeds > 0, peaks | alone)
    pairs = np.unique(np.stack([pieces[seeds > 0], seeds[seeds > 0]]), axis=1)
    assert len(pairs[0]) == len(np.unique(pairs[1]))  # no seed in two pieces
    assert len(np.unique(pairs[0])) == pieces.max()  # no piece without


# --- the same everywhere ------------------------------------------------------------------------


@laws
@given(
    probabilities(n_channels=2),
    st.sampled_from(["threshold", "watershed", "distance transform"]),
    st.integers(0, 2**32 - 1),
)
def test_the_last_digits_decide_nothing(output, how, seed):
    """A tile's sums are added up in another order than those of the whole image."""
    rule = PostProcessing(how=how, seed_threshold=0.8, seed_distance=None)
    noise = np.random.default_rng(seed).uniform(-1e-6, 1e-6, output.shape)
    steps = np.round(output * 64) / 64 + 1 / 1024  # away from what is rounded and compared
    found = [rule(steps + each, whole(output.ndim - 1)) for each in (0, 0, noise)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


# --- small objects ------------------------------------------------------------------------------


@laws
@given(st.data(), st.integers(0, 30))
def test_objects_are_as_large_as_asked_for_unless_the_rim_hides_a_part(data, min_size):
    labels = data.draw(label_images(data.draw(shapes(max_axes=3))))
    margins = tuple(
        data.draw(st.tuples(*[st.tuples(*[st.sampled_from([0, 2])] * 2)] * labels.ndim))
    )
    found = without_small(labels, min_size, margins)
    for each in np.unique(labels[labels > 0]):
        places = np.argwhere(labels == each)
        at_rim = any(
            (lower and places[:, axis].min() == 0)
            or (upper and places[:, axis].max() == labels.shape[axis] - 1)
            for axis, (lower, upper) in enumerate(margins)
        )
        stays = len(places) >= min_size or at_rim
        assert len(np.unique(found[labels == each])) == 1
        assert (found[tuple(places[0])] > 0) == stays


def test_labels_of_any_size_are_told_apart():
    labels = np.array([[0, 10**12, 10**12, 0, 7]])
    found = without_small(labels, 2, whole(2))
    assert (found > 0).tolist() == [[False, True, True, False, False]]
    found = without_small(labels[:, 1:3], 2, whole(2))
    assert (found > 0).all()


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
def test_labels_of_the_network_are_the_labels(dtype):
    output = np.array([[[0, 1, 1], [2, 2, 0]]], dtype)
    found = PostProcessing(how="labels")(output, whole(2))
    np.testing.assert_array_equal(found, output[0])
    assert found.dtype.kind in "iu"


def test_probabilities_are_no_labels():
    with pytest.raises(SegmenterError, match="float32 and no whole numbers; expected labels"):
        PostProcessing(how="labels")(np.full((1, 2, 2), 0.5, "float32"), whole(2))


# --- what is wrong ------------------------------------------------------------------------------


def test_values_that_are_no_numbers_are_refused():
    output = np.zeros((1, 3, 3))
    output[0, 1, 1] = np.nan
    with pytest.raises(SegmenterError, match="NaN"):
        PostProcessing()(output, whole(2))


@pytest.mark.parametrize(
    "keywords, named",
    [({"foreground": (2,)}, "foreground channel 2"), ({"boundary": 1}, "boundary channel 1")],
)
def test_a_channel_that_is_not_there_is_named(keywords, named):
    with pytest.raises(SegmenterError, match=f"1 channels of .*{named}"):
        PostProcessing(how="watershed", **keywords)(np.zeros((1, 3, 3)), whole(2))


@pytest.mark.parametrize(
    "keywords, named",
    [
        ({"how": "magic"}, "postprocess='magic'"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"threshold": None}, "threshold=None"),
        ({"threshold": "1"}, "threshold='1'"),
        ({"seed_threshold": float("nan")}, "seed_threshold=nan"),
        ({"seed_distance": 0}, "seed_distance=0"),
        ({"min_size": -1}, "min_size=-1"),
        ({"min_size": 1.5}, "min_size=1.5"),
        ({"connectivity": 0}, "connectivity=0"),
        ({"anisotropy": 0}, "anisotropy=0"),
        ({"foreground": ()}, "foreground_channels"),
        ({"foreground": (-1,)}, "channel of the output=-1"),
        ({"boundary": -1}, "channel of the output=-1"),
        ({"seeds": "1"}, "channel of the output='1'"),
    ],
)
def test_a_bad_parameter_is_refused_and_named(keywords, named):
    with pytest.raises(InputError, match=named):
        PostProcessing(**keywords)


@pytest.mark.parametrize("given_, found", [(None, (0,)), (2, (2,)), ([1, 2], (1, 2))])
def test_channels_are_named_one_by_one_or_together(given_, found):
    assert numbered(given_) == found
