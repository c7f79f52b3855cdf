"""What is background: never an object, whatever the hot pixels, the noise, and the bright ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.segmenters import otsu_threshold
from patchworks.steps.background import find_background

N = 2**17


def noise(seed: int = 0, level: float = 100, sigma: float = 10) -> np.ndarray:
    return np.random.default_rng(seed).normal(level, sigma, N)


def with_cells(background: np.ndarray, share: float, level: float, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(N) < share, rng.normal(level, level / 10, N), background)


def with_hot_pixels(values: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.random.default_rng(2).random(N) < share, 65535, values)


def threshold_of(values: np.ndarray, dtype="uint16") -> float:
    if np.dtype(dtype).kind == "u":
        values = values.clip(0, np.iinfo(dtype).max)
    return find_background(values.astype(dtype)).threshold


@pytest.mark.parametrize("hot", [0, 1e-5, 1e-4, 5e-4])
def test_cells_on_noise_are_told_from_it_with_hot_pixels_and_without(hot):
    found = threshold_of(with_hot_pixels(with_cells(noise(), 0.05, 900), hot))
    assert 150 < found < 400


@pytest.mark.parametrize("hot", [0, 1e-5, 1e-4, 5e-4])
@pytest.mark.parametrize("level", [100, 3000])
def test_where_all_is_noise_or_all_is_signal_everything_above_0_is_signal(level, hot):
    assert threshold_of(with_hot_pixels(noise(level=level), hot)) == 0
    tissue = np.random.default_rng(0).lognormal(7, 0.5, N)
    assert threshold_of(with_hot_pixels(tissue, hot)) == 0


@pytest.mark.parametrize("value", [0, 1, 7, 65535])
def test_an_image_of_one_value(value):
    assert threshold_of(np.full(N, value)) == 0


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_dim_cells_between_bright_ones_are_signal(share):
    values = with_cells(with_cells(noise(), 0.05, 3000), share, 300, seed=3)
    assert otsu_threshold(values) > 300, "they would be lost"
    assert threshold_of(values) < 220


def test_few_bright_voxels_may_be_hot_pixels():
    assert threshold_of(with_cells(noise(), 5e-4, 5000)) == 0


def test_where_most_is_bright_dark_may_be_what_is_looked_for():
    assert threshold_of(with_cells(noise(level=60), 0.7, 240), "uint8") == 0


def test_objects_that_run_into_the_noise_lower_the_threshold_to_it():
    rng = np.random.default_rng(4)
    faint = np.where(rng.random(N) < 0.02, rng.normal(150, 10, N), noise())
    assert threshold_of(with_cells(faint, 0.05, 3000)) < 140


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_an_image_with_negative_voxels_in_doubt_has_no_background(dtype):
    values = noise(level=0).astype(dtype)
    assert (values > find_background(values).threshold).all()


def test_voxels_that_are_no_numbers_count_for_nothing():
    values = with_cells(noise(), 0.05, 900).astype("float32")
    expected = find_background(values).threshold
    values[::100] = np.nan
    values[0] = np.inf
    assert find_background(values).threshold == pytest.approx(expected, rel=0.02)
    assert find_background(np.full(9, np.nan)).threshold == 0
    assert find_background(np.zeros(0, "f4")).threshold == 0


def test_it_says_what_was_found_and_in_how_many_voxels():
    assert f"{N} voxels: Otsu" in find_background(with_cells(noise(), 0.05, 900)).said
    assert "In doubt" in find_background(noise()).said


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["?", "u1", "i2", "u2", "f2", "f4"]), st.data())
def test_it_is_never_above_otsus_threshold_of_what_is_not_hot(seed, dtype, data):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, data.draw(st.integers(1, 120)), data.draw(st.integers(1, 300)))
    found = find_background(values.astype(dtype)).threshold
    assert np.isfinite(found)
    assert found <= max(0, values.astype(dtype).max())
