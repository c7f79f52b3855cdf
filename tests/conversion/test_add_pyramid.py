"""Levels are added beside an array, and the metadata that name them come last."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.conversion import pyramid as add
from patchworks.errors import (
    InputError,
    SourceNotFoundError,
    TargetExistsError,
    TargetNotWritableError,
)
from patchworks.geometry import image_pyramid
from patchworks.plugins.ome_zarr import add_pyramid
from patchworks.steps.pyramid import pool_image, pool_labels
from tests.conversion.written import (
    arrays,
    axes,
    check_beyond_validators,
    check_pyramid,
    leftovers,
    levels,
    multiscale,
    ome,
    placed,
    units,
)
from tests.stores import contents, ome_zarr

VOXELS = np.random.default_rng(4).integers(0, 60000, (3, 70, 50), dtype="uint16")
LABELS = np.random.default_rng(5).integers(0, 5, (3, 70, 50), dtype="uint32").repeat(1, 0)
QUIET = {"progress": False}


@pytest.fixture(params=["0.4", "0.5"])
def version(request):
    return request.param


def plain(path: Path, voxels=VOXELS, *, name="0", zarr_format=3, **encoding) -> Path:
    """Write an array in a group without metadata."""
    group = zarr.open_group(str(path), mode="a", zarr_format=zarr_format)
    encoding = {"chunks": tuple(min(16, n) for n in voxels.shape), **encoding}
    group.create_array(name, data=voxels, **encoding)
    return path


def unchanged(before: dict, after: dict, but: set[str]) -> bool:
    """Whether all that was there still is as it was, but for the files named."""
    return all(after.get(name) == held for name, held in before.items() if name not in but)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_group_becomes_an_image(tmp_path, zarr_format):
    store = plain(tmp_path / "plain.zarr", zarr_format=zarr_format)
    before = contents(store)
    size = {"z": 2.0, "y": 0.5, "x": 0.5}
    assert add_pyramid(store, n_levels=3, pixel_size=size, **QUIET) == store
    check_pyramid(store, VOXELS, 2)
    check_beyond_validators(store)
    assert axes(store) == "zyx"
    assert units(store) == ["micrometer"] * 3
    assert placed(store)[0] == ([2.0, 0.5, 0.5], [0.0, 0.0, 0.0])
    assert multiscale(store)["name"] == "plain"
    assert unchanged(before, contents(store), {"zarr.json", ".zattrs"})
    assert leftovers(tmp_path) == []


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_array_gets_the_levels_that_pooling_makes(data):
    named = data.draw(st.sampled_from(["yx", "zyx", "tyx", "cyx", "tzyx", "czyx", "tczyx"]))
    shape = tuple([data.draw(st.integers(1, {"y": 30, "x": 30}.get(a, 3))) for a in named])
    chunks = tuple([data.draw(st.integers(1, n)) for n in shape])
    dtype = data.draw(st.sampled_from(["bool", "uint8", ">u2", "int16", "float32"]))
    downscale = data.draw(st.sampled_from([2, 3]))
    zarr_format = data.draw(st.sampled_from([2, 3]))
    encoding = {"chunks": chunks}
    if zarr_format == 3 and data.draw(st.booleans()):
        encoding["shards"] = tuple([c * data.draw(st.integers(1, 3)) for c in chunks])
    voxels = np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)
    small = mock.patch.multiple(image_pyramid, REGION_BYTES=500, MAX_REGION_BYTES=2000)
    with tempfile.TemporaryDirectory() as folder, small:
        store = plain(Path(folder) / "a.zarr", voxels, zarr_format=zarr_format, **encoding)
        add_pyramid(store, axes=named, n_levels=3, downscale=downscale, **QUIET)
        check_pyramid(store, voxels.astype(arrays(store)[0].dtype), downscale)
        check_beyond_validators(store)
        for array in arrays(store):
            assert (array.shards is None) == (arrays(store)[0].shards is None)
            assert array.compressors == arrays(store)[0].compressors


def test_the_dimension_names_say_the_axes(tmp_path):
    voxels = VOXELS[:, None]
    store = plain(tmp_path / "a.zarr", voxels, dimension_names=["c", "z", "y", "x"])
    add_pyramid(store, n_levels=2, **QUIET)
    assert axes(store) == "czyx"
    assert [axis["type"] for axis in multiscale(store)["axes"]] == ["channel", *["space"] * 3]
    assert {array.metadata.dimension_names for array in arrays(store)} == {("c", "z", "y", "x")}


def test_the_store_may_have_any_name(tmp_path):
    store = plain(tmp_path / "a.zarr").rename(tmp_path / "a::b.zarr")
    add_pyramid(store, n_levels=2, **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["a::b.zarr"]
    check_pyramid(store.rename(tmp_path / "a.zarr"), VOXELS, 2)


@pytest.mark.parametrize("names", [None, ["c", None, "y", "x"], ["z", "z", "y", "x"]])
def test_four_axes_without_names_are_asked_for(tmp_path, names):
    store = plain(tmp_path / "a.zarr", VOXELS[:, None], dimension_names=names)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"a.zarr/0: an array of shape .* axes='czyx'"):
        add_pyramid(store, n_levels=2, **QUIET)
    assert contents(tmp_path) == before
    add_pyramid(store, n_levels=2, axes="czyx", **QUIET)
    assert axes(store) == "czyx"


@pytest.mark.parametrize("base", ["raw", "deep/raw"])
def test_the_base_may_have_any_name(tmp_path, base):
    store = plain(tmp_path / "a.zarr", name=base)
    add_pyramid(store, base=base, n_levels=3, **QUIET)
    assert [d["path"] for d in multiscale(store)["datasets"]] == [base, "1", "2"]
    check_pyramid(store, VOXELS, 2)


def test_what_an_image_says_of_itself_stays(tmp_path, version):
    omero = {"channels": [{"color": "FF0000", "label": "a"}]}
    extra = {"mine": [1, 2]} | ({"omero": omero} if version == "0.4" else {})
    store = tmp_path / "a.ome.zarr"
    sized = {"scale": (2.0, 0.5, 0.25), "translation": (10.0, -3.0, 4.0), "unit": "nanometer"}
    ome_zarr(store, [VOXELS], version=version, chunks=(1, 16, 16), attributes=extra, **sized)
    before = contents(store)
    add_pyramid(store, n_levels=4, downscale=3, **QUIET)
    check_pyramid(store, VOXELS, 3)
    assert placed(store)[0] == ([2.0, 0.5, 0.25], [10.0, -3.0, 4.0])
    assert units(store) == ["nanometer"] * 3
    assert multiscale(store)["name"] == "image"
    assert dict(zarr.open_group(store).attrs)["mine"] == [1, 2]
    assert version != "0.4" or ome(store)["omero"] == omero
    assert unchanged(before, contents(store), {"zarr.json", ".zattrs"})


def test_a_transformation_of_the_whole_is_taken_into_the_levels(tmp_path, version):
    store = tmp_path / "a.ome.zarr"
    ome_zarr(store, [VOXELS], version=version, scale=(1.0, 2.0, 2.0), translation=(1.0, 1.0, 1.0))
    group = zarr.open_group(store)
    attributes = dict(group.attrs)
    image = attributes.get("ome", attributes)["multiscales"][0]
    image["coordinateTransformations"] = [{"type": "scale", "scale": [0.5, 0.5, 0.5]}]
    group.attrs.put(attributes)
    add_pyramid(store, n_levels=2, **QUIET)
    assert "coordinateTransformations" not in multiscale(store)
    assert placed(store)[0] == ([0.5, 1.0, 1.0], [0.5, 0.5, 0.5])
    check_pyramid(store, VOXELS, 2)


def test_labels_get_the_most_frequent_label(tmp_path, version):
    store = tmp_path / "labels"
    label = {"image-label": {"source": {"image": "../../"}}}
    ome_zarr(store, [LABELS], version=version)
    group = zarr.open_group(store)
    attributes = dict(group.attrs)
    attributes = (
        {**attributes, **label} if version == "0.4" else {"ome": {**attributes["ome"], **label}}
    )
    group.attrs.put(attributes)
    add_pyramid(store, n_levels=3, **QUIET)
    check_pyramid(store, LABELS, 2, pool_labels)
    assert multiscale(store)["type"] == "mode"
    assert ome(store)["image-label"] == label["image-label"]


def test_shards_of_the_base_are_those_of_the_levels(tmp_path):
    """Else the levels would be as many files as the base was spared."""
    voxels = np.random.default_rng(1).integers(0, 9, (4, 200, 200), dtype="uint8")
    store = plain(tmp_path / "a.zarr", voxels, chunks=(1, 10, 10), shards=(2, 100, 100))
    add_pyramid(store, n_levels=3, **QUIET)
    found = arrays(store)
    assert [array.chunks for array in found] == [(1, 10, 10)] * 3
    assert [array.shards for array in found] == [(2, 100, 100), (2, 100, 100), (2, 50, 50)]
    check_pyramid(store, voxels, 2)


def test_consolidated_metadata_tell_of_the_levels(tmp_path):
    store = plain(tmp_path / "a.zarr", zarr_format=2)
    zarr.consolidate_metadata(str(store), zarr_format=2)
    add_pyramid(store, n_levels=3, **QUIET)
    found = zarr.open_consolidated(str(store))
    assert len(found.attrs["multiscales"][0]["datasets"]) == 3
    assert {"0", "1", "2"} <= set(found.array_keys())
    check_pyramid(store, VOXELS, 2)


def test_one_level_is_metadata_only(tmp_path):
    store = plain(tmp_path / "a.zarr")
    add_pyramid(store, n_levels=1, **QUIET)
    check_pyramid(store, VOXELS, 2)
    assert list(zarr.open_group(store).array_keys()) == ["0"]


def test_levels_are_chosen_by_the_screen(tmp_path):
    store = plain(tmp_path / "a.zarr", np.zeros((1500, 1200), "uint8"), chunks=(512, 512))
    add_pyramid(store, **QUIET)
    assert [array.shape for array in arrays(store)] == [(1500, 1200), (750, 600)]


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_interrupted_it_goes_on_and_shows_nothing_before(tmp_path, failing, version):
    store = tmp_path / "a.ome.zarr"
    ome_zarr(store, [VOXELS], version=version, chunks=(1, 16, 16))
    before = contents(store)
    calls = []

    def pool(voxels, factor):
        calls.append(voxels.shape)
        if len(calls) == failing:
            raise KeyboardInterrupt
        return pool_image(voxels, factor)

    small = mock.patch.multiple(image_pyramid, REGION_BYTES=2**11, MAX_REGION_BYTES=2**13)
    keywords = {"n_levels": 3, "max_workers": 1, **QUIET}
    with small, mock.patch.object(add, "pool_image", pool):
        with pytest.raises(KeyboardInterrupt):
            add_pyramid(store, **keywords)
        assert unchanged(before, contents(store), set())
        assert len(multiscale(store)["datasets"]) == 1
        add_pyramid(store, **keywords)
    total = len(calls)
    check_pyramid(store, VOXELS, 2)
    assert leftovers(tmp_path) == []
    calls.clear()
    failing = 0
    fresh = tmp_path / "fresh" / "a.ome.zarr"
    ome_zarr(fresh, [VOXELS], version=version, chunks=(1, 16, 16))
    with small, mock.patch.object(add, "pool_image", pool):
        add_pyramid(fresh, **keywords)
    assert total == len(calls) + 1  # only what failed was done again
    assert contents(store) == contents(fresh)


@pytest.mark.parametrize("step", range(3))
def test_killed_while_it_ends_it_goes_on(tmp_path, step):
    """Between the last voxel and the metadata nothing may become a dead end."""
    store = plain(tmp_path / "a.zarr")
    broken = [
        mock.patch.object(add, "with_levels", side_effect=KeyboardInterrupt),
        mock.patch.object(add.ConversionStage, "remove", side_effect=KeyboardInterrupt),
        mock.patch.object(add, "open_group", side_effect=KeyboardInterrupt),
    ][step]
    with broken, pytest.raises(KeyboardInterrupt):
        add_pyramid(store, n_levels=3, **QUIET)
    if "multiscales" in ome(store):
        check_pyramid(store, VOXELS, 2)
        return
    add_pyramid(store, n_levels=3, **QUIET)
    check_pyramid(store, VOXELS, 2)
    marks = [dict(array.attrs) for array in arrays(store)]
    assert marks == [{}, {}, {}]
    assert leftovers(tmp_path) == []


def test_a_base_that_changed_meanwhile_is_begun_anew(tmp_path):
    store = plain(tmp_path / "a.zarr")
    with (
        mock.patch.object(add, "pool_image", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        add_pyramid(store, n_levels=3, **QUIET)
    zarr.open_group(store)["0"][0] = 7
    now = np.array(VOXELS)
    now[0] = 7
    add_pyramid(store, n_levels=3, **QUIET)
    check_pyramid(store, now, 2)


def test_what_has_the_name_of_a_level_is_never_replaced(tmp_path):
    store = plain(tmp_path / "a.zarr")
    plain(store, np.ones((3, 4), "uint8"), name="1")
    before = contents(tmp_path)
    with pytest.raises(TargetExistsError, match=r"'1'.*never replaced"):
        add_pyramid(store, n_levels=3, **QUIET)
    assert contents(tmp_path) == before


def test_a_folder_that_has_the_name_of_a_level_is_never_replaced(tmp_path):
    store = plain(tmp_path / "a.zarr")
    (store / "1").mkdir()
    (store / "1" / "notes.txt").write_text("of years")
    before = contents(tmp_path)
    with pytest.raises(TargetExistsError, match="never replaced"):
        add_pyramid(store, n_levels=2, **QUIET)
    assert contents(tmp_path) == before


def test_an_array_that_the_consolidated_metadata_do_not_know_is_never_replaced(tmp_path):
    store = plain(tmp_path / "a.zarr", zarr_format=2)
    zarr.consolidate_metadata(str(store), zarr_format=2)
    group = zarr.open_group(store, use_consolidated=False, zarr_format=2)
    group.create_array("1", data=VOXELS)
    before = contents(tmp_path)
    with pytest.raises(TargetExistsError, match="never replaced"):
        add_pyramid(store, n_levels=2, **QUIET)
    assert contents(tmp_path) == before


def test_a_chunk_that_a_kill_cut_off_is_written_anew(tmp_path):
    store = plain(tmp_path / "a.zarr", chunks=(2, 16, 16))
    with (
        mock.patch.object(add, "with_levels", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        add_pyramid(store, n_levels=3, **QUIET)
    for chunk in (store / "2" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:20])
    stage = next(tmp_path.glob(".*.stage"))
    for mark in (stage / "done").glob("2-*"):
        mark.unlink()
    add_pyramid(store, n_levels=3, **QUIET)
    check_pyramid(store, VOXELS, 2)


def test_a_group_that_has_the_name_of_a_level_is_never_replaced(tmp_path):
    store = plain(tmp_path / "a.zarr")
    zarr.open_group(store).create_group("2").create_array("x", shape=(3,), dtype="u1")
    before = contents(tmp_path)
    with pytest.raises(TargetExistsError, match="never replaced"):
        add_pyramid(store, n_levels=3, **QUIET)
    assert contents(tmp_path) == before


def test_an_image_with_a_pyramid_is_left_as_it_is(tmp_path, version):
    store = tmp_path / "a.ome.zarr"
    ome_zarr(store, [VOXELS, VOXELS[:, ::2, ::2]], version=version)
    before = contents(tmp_path)
    with pytest.raises(TargetExistsError, match="2 levels already"):
        add_pyramid(store, **QUIET)
    assert contents(tmp_path) == before


def no_store(tmp_path):
    return tmp_path / "none.zarr"


def an_array(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=VOXELS)
    return tmp_path / "a.zarr"


def a_group(tmp_path):
    return plain(tmp_path / "a.zarr")


def an_image(tmp_path):
    ome_zarr(tmp_path / "a.zarr", [VOXELS])
    return tmp_path / "a.zarr"


def swapped(tmp_path):
    ome_zarr(tmp_path / "a.zarr", [VOXELS], axes="xyz")
    return tmp_path / "a.zarr"


BAD = [
    (no_store, {}, SourceNotFoundError),
    (an_array, {}, InputError),
    (a_group, {"base": "9"}, SourceNotFoundError),
    (a_group, {"axes": "xyz"}, InputError),
    (a_group, {"axes": "yx"}, InputError),
    (a_group, {"axes": "zzyx"}, InputError),
    (a_group, {"n_levels": 0}, InputError),
    (a_group, {"n_levels": "many"}, InputError),
    (a_group, {"downscale": 1}, InputError),
    (a_group, {"pixel_size": {"y": -1}}, InputError),
    (a_group, {"pixel_size": {"c": 1}}, InputError),
    (a_group, {"max_workers": 0}, InputError),
    (an_image, {"axes": "tyx"}, InputError),
    (an_image, {"base": "1"}, (InputError, SourceNotFoundError)),
    (an_image, {"pixel_size": {"y": 1.0}}, InputError),
    (swapped, {}, InputError),
]


@pytest.mark.parametrize(
    ("make", "bad", "error"), BAD, ids=[f"{b[0].__name__}-{b[1]}" for b in BAD]
)
def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path, make, bad, error):
    store = make(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(error):
        add_pyramid(store, **{**QUIET, **bad})
    assert contents(tmp_path) == before


def test_complex_arrays_have_no_mean(tmp_path):
    store = plain(tmp_path / "a.zarr", VOXELS.astype("complex64"))
    before = contents(tmp_path)
    with pytest.raises(InputError, match="complex64"):
        add_pyramid(store, n_levels=2, **QUIET)
    assert contents(tmp_path) == before


def test_a_full_disk_is_an_error_of_ours(tmp_path):
    store = plain(tmp_path / "a.zarr")
    with (
        mock.patch.object(add, "build_level", side_effect=OSError(28, "No space left on device")),
        pytest.raises(TargetNotWritableError, match="No space left"),
    ):
        add_pyramid(store, n_levels=2, **QUIET)
    add_pyramid(store, n_levels=2, **QUIET)
    assert len(levels(store)) == 2
