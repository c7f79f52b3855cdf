from __future__ import annotations

import functools
import pickle
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.filters import threshold_otsu

from patchworks import tile_process
from patchworks.errors import InputError, MissingExtraError
from patchworks.segmenters import (
    Threshold,
    name_of,
    otsu_threshold,
    registry,
    resolve_segmenter,
    threshold,
)
from tests.cells import same_partition
from tests.strategies import binary_images, shapes

laws = settings(deadline=None, max_examples=100)


# --- Otsu's threshold ---------------------------------------------------------------------------


def variance_between(values: np.ndarray, at: float) -> float:
    """Return what Otsu's method maximizes: the variance between the two classes."""
    values = values.astype("float64")
    above = values > at
    if above.all() or not above.any():
        return 0.0
    share = above.mean()
    return share * (1 - share) * (values[above].mean() - values[~above].mean()) ** 2


@laws
@given(hnp.arrays("int16", st.integers(2, 60), elements=st.integers(-99, 99)))
def test_no_threshold_between_integers_separates_them_better(values):
    best = max(variance_between(values, at) for at in np.unique(values))
    assert variance_between(values, otsu_threshold(values)) == pytest.approx(best, rel=1e-9)


@laws
@given(st.integers(0, 2**32 - 1), st.integers(0, 150))
def test_integers_are_split_as_scikit_image_splits_them(seed, distance):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(50, 10, 3000), rng.normal(50 + distance, 15, 1000)])
    values = values.clip(0, 255).astype("uint8")
    ours, theirs = otsu_threshold(values), threshold_otsu(values)
    assert variance_between(values, ours) == pytest.approx(variance_between(values, theirs))


@laws
@given(st.integers(0, 2**32 - 1), st.floats(0, 20), st.floats(1e-3, 1e3))
def test_floats_are_split_between_the_bins_that_scikit_image_finds(seed, distance, scale):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, 3000), rng.normal(distance, 2, 1000)]) * scale
    half_a_bin = np.ptp(values) / 256 / 2
    theirs = threshold_otsu(values, nbins=256) + half_a_bin  # scikit-image names a bin's middle
    ours = otsu_threshold(values, n_bins=256)
    assert variance_between(values, ours) == pytest.approx(
        variance_between(values, theirs), rel=1e-6
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0, 0, 9], 0), ([0, 1, 1, 8, 9, 9], 1), ([-5, -5, 7], -5), ([100, 101], 100)],
)
def test_the_threshold_of_few_integers_is_the_last_value_of_the_lower_class(values, expected):
    assert otsu_threshold(np.array(values)) == expected


NUMBERS = ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


@pytest.mark.parametrize("dtype", NUMBERS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_of_two_values_or_more_some_lie_above_and_some_do_not(dtype, data):
    elements = {"min_value": -(2.0**99), "max_value": 2.0**99} if dtype[0] == "f" else {}
    values = data.draw(hnp.arrays(dtype, st.integers(2, 30), elements=elements, unique=True))
    at = otsu_threshold(values)
    assert (values > at).any()
    assert not (values > at).all()


@pytest.mark.parametrize("dtype", NUMBERS)
def test_of_equal_values_none_lies_above(dtype):
    values = np.full(10, 7, dtype)
    assert otsu_threshold(values) == 7


def test_of_no_values_the_threshold_is_0():
    assert otsu_threshold(np.empty(0, "uint16")) == 0


@pytest.mark.parametrize("dtype, offset", [("uint64", 2**63), ("int64", -(2**63)), ("int8", -128)])
def test_an_offset_moves_otsu_s_threshold_with_it(dtype, offset):
    values = np.random.default_rng(0).integers(0, 120, 1000)
    moved = (values.astype(object) + offset).astype(dtype)
    assert otsu_threshold(moved) == otsu_threshold(values) + offset


def test_what_is_not_finite_does_not_count():
    values = np.array([1, 1, 2, 9, 9, 8, np.nan, np.inf, -np.inf])
    assert otsu_threshold(values) == otsu_threshold(values[:6])


def test_only_what_is_not_finite_counts_as_no_values():
    assert otsu_threshold(np.array([np.nan, np.inf])) == 0


def test_true_is_above_the_threshold_of_a_binary_image():
    values = np.array([True, False, False])
    np.testing.assert_array_equal(values > otsu_threshold(values), values)


@laws
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 100, 60_000, 10**6, 4 * 10**9]))
def test_the_threshold_moves_with_the_offset_of_the_intensities(seed, offset):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.integers(0, 50, 100_000), rng.integers(80, 100, 30_000)])
    moved = (values + offset).astype("uint32")
    assert otsu_threshold(moved) - offset == otsu_threshold(values)


@laws
@given(hnp.arrays("int16", hnp.array_shapes(max_dims=3, max_side=8)), st.randoms())
def test_the_threshold_does_not_depend_on_where_the_voxels_lie(values, random):
    shuffled = values.ravel().tolist()
    random.shuffle(shuffled)
    assert otsu_threshold(np.array(shuffled, "int16")) == otsu_threshold(values)


# --- the built-in segmenter ---------------------------------------------------------------------


@laws
@given(st.data())
def test_threshold_labels_the_connected_components_above_the_value(data):
    foreground = data.draw(binary_images(data.draw(shapes(max_axes=4))))
    connectivity = data.draw(st.integers(1, 5))
    tile = np.where(foreground, 11, 10).astype("uint16")
    structure = ndimage.generate_binary_structure(tile.ndim, min(connectivity, tile.ndim))
    expected, _ = ndimage.label(foreground, structure)
    found = threshold(10, connectivity=connectivity)(tile)
    np.testing.assert_array_equal(found, expected)


def test_voxels_of_exactly_the_value_are_background():
    assert threshold(5)(np.array([[5, 6], [4, 5]])).tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("sigma", [0, 1.5])
def test_threshold_leaves_the_tile_alone(sigma):
    tile = np.arange(48, dtype="uint16").reshape(6, 8)
    tile.setflags(write=False)
    assert threshold(5, sigma=sigma)(tile).shape == tile.shape


def test_preparing_takes_otsus_threshold_of_the_sample():
    sample = np.array([1, 1, 2, 9, 9, 8])
    assert threshold(sigma=2).prepare(sample) == Threshold(otsu_threshold(sample), 2.0, 1)


def test_preparing_leaves_a_value_that_was_given():
    assert threshold(4).prepare(np.arange(100)) == threshold(4)


def test_a_prepared_threshold_labels_a_part_of_an_image_as_it_labels_the_whole():
    image = np.zeros((8, 16), "uint8")
    image[2:4, 2:5], image[2:4, 12:14] = 200, 90
    prepared = threshold().prepare(image)
    np.testing.assert_array_equal(prepared(image[:, 8:]) > 0, prepared(image)[:, 8:] > 0)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1, 1.1, 1.125, 1.9, 2, 2.75])
@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**32 - 1))
def test_labels_of_a_part_are_right_4_sigma_away_from_its_border(sigma, seed):
    image = np.random.default_rng(seed).random((50, 60)).astype("float32")
    segment = threshold(0.5, sigma=sigma)
    whole = segment(image) > 0
    halo = int(np.ceil(4 * sigma))
    part = segment(image[10:40, 12:47]) > 0
    inside = (slice(halo, 30 - halo), slice(halo, 35 - halo))
    np.testing.assert_array_equal(part[inside], whole[10:40, 12:47][inside])


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1, 1.1, 1.125, 1.9, 2, 2.75])
def test_however_bright_a_voxel_is_seen_no_further_than_4_sigma(sigma):
    image = np.zeros((41, 41), "float32")
    image[20, 20] = 1e30
    reached = np.argwhere(threshold(0, sigma=sigma)(image)) - 20
    assert 0 < np.abs(reached).max() <= np.ceil(4 * sigma)


def test_a_threshold_can_be_sent_to_a_worker():
    segmenter = threshold(4, sigma=1, connectivity=2)
    assert pickle.loads(pickle.dumps(segmenter)) == segmenter


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"value": "4"}, "value='4'"),
        ({"value": True}, "value=True"),
        ({"value": float("nan")}, "value=nan"),
        ({"value": float("inf")}, "value=inf"),
        ({"value": [4]}, r"value=\[4\]"),
        ({"value": 1j}, "value=1j"),
        ({"sigma": -1}, "sigma=-1"),
        ({"sigma": None}, "sigma=None"),
        ({"sigma": "1"}, "sigma='1'"),
        ({"sigma": float("nan")}, "sigma=nan"),
        ({"sigma": (1, 1)}, r"sigma=\(1, 1\)"),
        ({"connectivity": 0}, "connectivity=0"),
        ({"connectivity": 1.0}, "connectivity=1.0"),
        ({"connectivity": True}, "connectivity=True"),
        ({"connectivity": None}, "connectivity=None"),
    ],
)
def test_a_bad_parameter_of_threshold_is_refused_and_named(keywords, named):
    with pytest.raises(InputError, match=named):
        threshold(**keywords)


@pytest.mark.parametrize("value", [4, 4.5, np.uint16(4), np.float32(4.5), -3])
def test_numbers_of_any_kind_are_a_value(value):
    assert threshold(value).value == float(value)


# --- naming a segmenter -------------------------------------------------------------------------


def label_all(tile):
    return np.ones(tile.shape, int)


class Labeller:
    def __init__(self, label=1):
        self.label = label

    def __call__(self, tile):
        return np.full(tile.shape, self.label)

    def method(self, tile):
        return self(tile)


class Namespace:
    inner = Labeller(5)


NOT_CALLABLE = 17


def factory_of_nothing():
    return None


@pytest.mark.parametrize("fn", [label_all, Labeller(), Labeller().method, len, threshold(4)])
def test_a_callable_is_its_own_segmenter(fn):
    assert resolve_segmenter(fn) is fn


@pytest.mark.parametrize(
    "spec", ["threshold", {"name": "threshold"}, f"{Threshold.__module__}:Threshold"]
)
def test_threshold_is_known_by_its_name(spec):
    found = resolve_segmenter(spec)
    assert found == threshold() or found is Threshold


def test_parameters_beside_the_name_are_the_factorys():
    found = resolve_segmenter({"name": "threshold", "value": 4, "sigma": 2})
    assert found == threshold(4, sigma=2)


def test_resolving_leaves_the_given_mapping_alone():
    spec = {"name": "threshold", "value": 4}
    resolve_segmenter(spec)
    assert spec == {"name": "threshold", "value": 4}


def test_a_function_is_found_by_its_import_path():
    assert resolve_segmenter("tests.test_segmenters:label_all").__qualname__ == "label_all"


def test_an_attribute_of_an_attribute_is_found_by_its_import_path():
    assert resolve_segmenter("tests.test_segmenters:Namespace.inner").label == 5


def test_an_import_with_keywords_calls_the_factory():
    spec = {"import": "tests.test_segmenters:Labeller", "kwargs": {"label": 3}}
    assert resolve_segmenter(spec)(np.zeros((1, 2))).tolist() == [[3, 3]]


def test_an_import_without_keywords_is_the_function_itself():
    spec = {"import": "tests.test_segmenters:label_all"}
    assert resolve_segmenter(spec).__qualname__ == "label_all"


def test_an_import_with_empty_keywords_calls_the_factory():
    spec = {"import": "tests.test_segmenters:Labeller", "kwargs": {}}
    assert resolve_segmenter(spec).label == 1


def test_a_segmenter_registered_by_another_package_is_known_by_its_name(monkeypatch):
    point = SimpleNamespace(name="theirs", load=lambda: Labeller)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert resolve_segmenter({"name": "theirs", "label": 8}).label == 8


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        pytest.param("no such", "'no such'", id="unknown name"),
        pytest.param("", "''", id="empty name"),
        pytest.param({}, "None", id="nothing in the mapping"),
        pytest.param({"name": "no such"}, "'no such'", id="unknown name in a mapping"),
        pytest.param({"name": ["threshold"]}, r"\['threshold'\]", id="a name that is no string"),
        pytest.param({"name": "threshold", "vlaue": 4}, "vlaue", id="unknown parameter"),
        pytest.param({"name": "threshold", "value": "4"}, "value='4'", id="bad parameter"),
        pytest.param("no_such_package:fn", "no_such_package", id="no such module"),
        pytest.param("tests.test_segmenters:no_such", "no_such", id="no such function"),
        pytest.param("tests.test_segmenters:", "tests.test_segmenters:", id="no function named"),
        pytest.param(":label_all", ":label_all", id="no module named"),
        pytest.param(".relative:fn", ".relative:fn", id="relative import"),
        pytest.param("tests.test_segmenters:NOT_CALLABLE", "17", id="an import not callable"),
        pytest.param({"import": 5}, "5", id="an import path that is no string"),
        pytest.param({"import": "math:sin", "x": 1, 2: 2}, "math:sin", id="other entries"),
        pytest.param(
            {"import": "tests.test_segmenters:Labeller", "kwargs": {"size": 1}},
            "size",
            id="unknown keyword",
        ),
        pytest.param(
            {"import": "tests.test_segmenters:Labeller", "kwargs": 5}, "5", id="bad keywords"
        ),
        pytest.param(
            {"import": "tests.test_segmenters:factory_of_nothing", "kwargs": {}},
            "NoneType",
            id="a factory of nothing",
        ),
        pytest.param(None, "None", id="None"),
        pytest.param(17, "17", id="a number"),
        pytest.param(["threshold"], "threshold", id="a list"),
    ],
)
def test_a_bad_segmenter_is_refused_and_named(spec, named):
    with pytest.raises(InputError, match=named):
        resolve_segmenter(spec)


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(InputError, match=r"did you mean 'threshold'.*'blobs'.*'threshold'"):
        resolve_segmenter("treshold")


def missing_extra():
    raise MissingExtraError("theirs needs the package theirs: pip install 'theirs[all]'")


def no_such_value(size=1):
    raise ValueError(f"size={size}: expected 2")


@pytest.mark.parametrize(
    ("factory", "kind", "said"),
    [
        ("missing_extra", MissingExtraError, "pip install 'theirs"),
        ("no_such_value", InputError, "segmenter 'theirs': size=1: expected 2"),
        ("NOT_CALLABLE", InputError, "'theirs' of the package .* is a int; expected a function"),
        ("no_such", InputError, "'theirs' .* cannot be imported .*AttributeError"),
    ],
)
def test_what_is_wrong_with_another_package_is_said(monkeypatch, factory, kind, said):
    point = EntryPoint("theirs", f"tests.test_segmenters:{factory}", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(kind, match=said):
        resolve_segmenter("theirs")


def test_nobody_else_can_take_the_name_of_a_built_in(monkeypatch):
    points = [EntryPoint(name, "math:sin", registry.GROUP) for name in ("threshold", "blobs", "a")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert list(registry.known_segmenters()) == ["threshold", "blobs", "a"]
    assert resolve_segmenter("threshold") == threshold()


def test_the_names_of_this_package_are_those_that_it_registers():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    registered = project["project"]["entry-points"][registry.GROUP]
    known = registry.known_segmenters()
    for name in registry.BUILT_IN:
        assert registered[name] == known[name].value


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (label_all, "label_all"),
        (functools.partial(label_all), "label_all"),
        (Labeller(), "Labeller"),
        (functools.partial(Labeller()), "Labeller"),
        (Labeller().method, "Labeller.method"),
        (threshold(4), "Threshold"),
        (np.sin, "sin"),
    ],
)
def test_a_function_is_called_by_its_name(fn, name):
    assert name_of(fn) == name


def test_an_overlap_of_more_than_the_reach_makes_smoothing_exact():
    # Two bright bars, and between them a thin bridge that is too dim once smoothed: it ends exactly
    # where the upper tile stops reading, and there the border makes it look twice as wide.
    image = np.zeros((64, 40), "float32")
    image[:, 8:14] = image[:, 20:26] = 1
    overlap = 5
    image[32 + overlap - 1, 14:20] = 1
    segment = threshold(0.5, sigma=1)
    assert segment(image).max() == 2
    tiled = tile_process(image, segment, tile_shape=(32, 40), overlap=overlap, progress=False)
    assert tiled.max().compute() == 2


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1, 1.5]))
def test_smoothed_components_are_those_of_the_whole_image(seed, sigma):
    image = np.random.default_rng(seed).random((50, 47)).astype("float32")
    segment = threshold(0.5, sigma=sigma)
    tiled = tile_process(
        image, segment, tile_shape=(17, 20), overlap=segment.reach + 1, progress=False
    )
    assert same_partition(segment(image), tiled.compute())
