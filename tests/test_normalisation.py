"""Intensities become what a model was trained on, in every tile by the same numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.errors import InputError
from patchworks.normalisation import Normalisation
from tests.strategies import generators

laws = settings(deadline=None, max_examples=50)


def checked(how="percentiles", low=1.0, high=99.8, offset=None, scale=None, **keywords):
    return Normalisation.checked("torch_fn", how, (low, high), (offset, scale), **keywords)


@laws
@given(generators(), st.sampled_from(["percentiles", "mean"]), st.sampled_from([1, 2]))
def test_a_tile_becomes_what_it_is_in_the_whole_image(rng, how, n_channels):
    image = rng.integers(0, 4000, (n_channels, 12, 14)).astype("uint16")
    image = image if n_channels > 1 else image[0]
    sample = image.reshape(n_channels, -1) if n_channels > 1 else image.ravel()
    known = checked(how).of(sample)
    whole = known(image, 2)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(known(image[..., 3:9, :5], 2), whole[..., 3:9, :5])
    for found, channel in zip(
        whole.reshape(n_channels, -1), sample.reshape(n_channels, -1), strict=True
    ):
        if how == "mean":
            assert abs(found.mean()) < 1e-3
            assert found.std() == pytest.approx(1, abs=1e-3)
        else:
            low, high = np.percentile(channel, (1, 99.8))
            np.testing.assert_allclose(found, (channel - low) / (high - low), atol=1e-4)


def test_once_known_it_stays():
    known = checked().of(np.arange(100))
    assert known.of(np.arange(1000)) == known
    assert checked("none").of(np.arange(9)) == checked("none")


def test_given_numbers_are_for_each_channel_or_for_all():
    tile = np.array([[[10, 20]], [[30, 40]]], "uint8")
    assert checked("given", scale=[10])(tile, 2).ravel().tolist() == [1, 2, 3, 4]
    assert checked("given", offset=[10, 30])(tile, 2).ravel().tolist() == [0, 10, 0, 10]
    each = checked("given", offset=[0, 10], scale=[10, 5])
    assert each(tile, 2).ravel().tolist() == [1, 2, 4, 6]
    with pytest.raises(InputError, match="offset has 2 numbers, and the tile 1 channels"):
        each(tile[0], 2)


def test_without_normalisation_voxels_stay_what_they_are():
    tile = np.arange(6, dtype="uint16").reshape(2, 3)
    assert checked("none")(tile, 2) is tile


def test_clipped_values_lie_between_0_and_1():
    found = checked(low=10, high=90, clip=True).of(np.arange(100))(np.arange(100).reshape(4, 25), 2)
    assert (found.min(), found.max()) == (0, 1)


def test_what_is_the_same_everywhere_becomes_0():
    for how in ("percentiles", "mean"):
        assert not checked(how).of(np.full(9, 7))(np.full((3, 3), 7), 2).any()


def test_what_is_not_finite_does_not_count():
    sample = np.r_[np.arange(101.0), np.nan, np.inf]
    assert checked(low=0, high=100).of(sample).scale == (100.0,)
    assert checked().of(np.array([np.nan])).scale == (1.0,)


def test_channels_of_a_colour_image_are_measured_together():
    sample = np.array([[0, 1], [9, 10]])
    known = checked(low=0, high=100, together=True).of(sample)
    assert known.scale == (10.0,)
    assert checked(low=0, high=100).of(sample).scale == (1.0, 1.0)


@pytest.mark.parametrize(
    "keywords, named",
    [
        ({"how": "zscore"}, "normalize='zscore'"),
        ({"low": 50, "high": 50}, "low_percentile=50, high_percentile=50"),
        ({"low": -1}, "low_percentile=-1"),
        ({"high": 101}, "high_percentile=101"),
        ({"high": None}, "high_percentile=None"),
        ({"how": "given"}, "one of them is needed"),
        ({"how": "mean", "offset": [1]}, "belong to normalize='given'"),
        ({"how": "given", "scale": [1, 0]}, "no 0"),
        ({"how": "given", "scale": []}, r"scale=\[\]"),
        ({"how": "given", "offset": ["1"]}, "offset='1'"),
    ],
)
def test_a_bad_parameter_is_refused_and_named(keywords, named):
    with pytest.raises(InputError, match=named):
        checked(**keywords)
