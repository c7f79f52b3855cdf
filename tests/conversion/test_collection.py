"""All images of a source → one store, and single images of it by index or name."""

from __future__ import annotations

from pathlib import Path
from unittest import mock
from xml.etree import ElementTree as ET

import dask.array as da
import numpy as np
import pytest
import zarr

from patchworks.conversion import regions
from patchworks.errors import InputError, SourceNotFoundError, TargetExistsError
from patchworks.plugins.ome_zarr import to_ome_zarr
from patchworks.readers.ome_zarr import ZarrReader
from tests.conversion.written import (
    check_beyond_validators,
    check_pyramid,
    leftovers,
    multiscale,
    ome,
)
from tests.stores import contents, ome_zarr

RNG = np.random.default_rng(2)
SCANS = {
    "overview": ("yx", RNG.integers(0, 255, (40, 60), dtype="uint8")),
    "Scan 1": ("czyx", RNG.integers(0, 4000, (2, 3, 50, 30), dtype="uint16")),
    "Scan 2": ("zyx", RNG.normal(size=(4, 33, 21)).astype("float32")),
}
QUIET = {"progress": False, "n_levels": 2}
PREFIX = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def collection(
    path: Path, *, version: str = "0.5", paths=("0", "1", "2"), names=None, listed: bool = True
) -> Path:
    """Write images in one store, as bioformats2raw does."""
    zarr_format = 2 if version == "0.4" else 3
    said = {"bioformats2raw.layout": 3}
    group = zarr.open_group(
        path,
        mode="w",
        zarr_format=zarr_format,
        attributes=said if version == "0.4" else {"ome": {"version": version, **said}},
    )
    series = {"series": list(paths)}
    if listed:
        said = series if version == "0.4" else {"ome": {"version": version, **series}}
        group.create_group("OME", attributes=said)
    for place, name, (axes, voxels) in zip(paths, names or SCANS, SCANS.values(), strict=True):
        ome_zarr(path / place, [voxels], axes=axes, version=version, scale=(0.5,) * voxels.ndim)
        image = zarr.open_group(path / place)
        attributes = dict(image.attrs)
        attributes.get("ome", attributes)["multiscales"][0]["name"] = name
        image.attrs.put(attributes)
    return path


@pytest.fixture(params=["0.4", "0.5"])
def version(request):
    return request.param


@pytest.fixture
def source(tmp_path, version):
    return collection(tmp_path / "source.zarr", version=version)


def check_collection(target: Path, scans=SCANS) -> None:
    assert ome(target)["bioformats2raw.layout"] == 3
    assert ome(target / "OME")["series"] == [str(i) for i in range(len(scans))]
    for index, (name, (axes, voxels)) in enumerate(scans.items()):
        place = target / str(index)
        check_pyramid(place, voxels, 2)
        check_beyond_validators(place)
        assert multiscale(place)["name"] == name
        assert "".join([axis["name"] for axis in multiscale(place)["axes"]]) == axes


@pytest.mark.parametrize("to", ["0.4", "0.5"])
def test_all_images_become_a_collection(source, tmp_path, to):
    target = tmp_path / "all.ome.zarr"
    assert to_ome_zarr(source, target, scene="all", ngff_version=to, **QUIET) == target
    check_collection(target)
    assert zarr.open_group(target).metadata.zarr_format == {"0.4": 2, "0.5": 3}[to]
    assert leftovers(tmp_path) == []
    assert leftovers(target) == []


def test_a_collection_is_described_in_ome_xml(source, tmp_path):
    target = tmp_path / "all.ome.zarr"
    to_ome_zarr(source, target, scene="all", **QUIET)
    content = (target / "OME" / "METADATA.ome.xml").read_bytes()
    images = ET.fromstring(content).findall(f"{PREFIX}Image")
    assert [image.get("Name") for image in images] == list(SCANS)
    assert [image.get("ID") for image in images] == ["Image:0", "Image:1", "Image:2"]
    for image, (axes, voxels) in zip(images, SCANS.values(), strict=True):
        pixels = image.find(f"{PREFIX}Pixels")
        shape = dict(zip(axes, voxels.shape, strict=True))
        assert [int(pixels.get(f"Size{a}")) for a in "TCZYX"] == [shape.get(a, 1) for a in "tczyx"]
        assert pixels.get("PhysicalSizeX") == "0.5"
        assert pixels.get("PhysicalSizeXUnit") == "µm"
        assert len(pixels.findall(f"{PREFIX}Channel")) == shape.get("c", 1)
    ome_types = pytest.importorskip("ome_types")
    read = ome_types.from_xml(content)
    assert [image.pixels.type.value for image in read.images] == ["uint8", "uint16", "float"]


def test_what_ome_xml_has_no_word_for_is_left_undescribed(tmp_path):
    target = tmp_path / "all.ome.zarr"
    to_ome_zarr(np.ones((9, 9), "int64"), target, scene="all", **QUIET)
    assert not (target / "OME" / "METADATA.ome.xml").exists()
    assert ome(target / "OME")["series"] == ["0"]


@pytest.mark.parametrize("scene", [0, 1, 2, np.int64(1), *SCANS])
def test_one_image_is_taken_by_index_or_name(source, tmp_path, scene):
    target = tmp_path / "one.ome.zarr"
    to_ome_zarr(source, target, scene=scene, **QUIET)
    name = scene if isinstance(scene, str) else list(SCANS)[scene]
    check_pyramid(target, SCANS[name][1], 2)
    assert multiscale(target)["name"] == name


@pytest.mark.parametrize("scene", ["Scan", "scan 1", "", 3, -1, True, 1.0, None, "All"])
def test_a_scene_that_is_not_there_is_refused_with_those_that_are(source, tmp_path, scene):
    before = contents(tmp_path)
    with pytest.raises(InputError) as caught:
        to_ome_zarr(source, tmp_path / "one.ome.zarr", scene=scene, **QUIET)
    for name in SCANS:
        assert name in str(caught.value)
    assert contents(tmp_path) == before


def test_a_name_that_is_there_twice_is_refused(tmp_path, version):
    source = collection(tmp_path / "a.zarr", version=version, names=("a", "b", "a"))
    with pytest.raises(InputError, match=r"2 scenes of this name.*index"):
        to_ome_zarr(source, tmp_path / "one.ome.zarr", scene="a", **QUIET)
    to_ome_zarr(source, tmp_path / "one.ome.zarr", scene="b", **QUIET)
    check_pyramid(tmp_path / "one.ome.zarr", SCANS["Scan 1"][1], 2)


def test_a_series_list_gives_the_order(tmp_path, version):
    source = collection(tmp_path / "a.zarr", version=version, paths=("first", "10", "2"))
    to_ome_zarr(source, tmp_path / "all.ome.zarr", scene="all", **QUIET)
    check_collection(tmp_path / "all.ome.zarr")


def test_without_a_series_list_numbers_give_the_order(tmp_path, version):
    source = collection(tmp_path / "a.zarr", version=version, paths=("1", "2", "10"), listed=False)
    to_ome_zarr(source, tmp_path / "all.ome.zarr", scene="all", **QUIET)
    check_collection(tmp_path / "all.ome.zarr")


def test_a_collection_is_a_source_of_a_collection(source, tmp_path):
    to_ome_zarr(source, tmp_path / "a.ome.zarr", scene="all", **QUIET)
    to_ome_zarr(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", scene="all", **QUIET)
    check_collection(tmp_path / "b.ome.zarr")


@pytest.mark.parametrize("broken", ["empty", "lacking"])
def test_a_collection_without_its_images_is_refused(tmp_path, version, broken):
    source = collection(tmp_path / "a.zarr", version=version)
    paths = [] if broken == "empty" else ["0", "1", "2", "3"]
    said = {"series": paths}
    attributes = said if version == "0.4" else {"ome": {"version": version, **said}}
    zarr.open_group(source)["OME"].attrs.put(attributes)
    before = contents(tmp_path)
    with pytest.raises(SourceNotFoundError):
        to_ome_zarr(source, tmp_path / "all.ome.zarr", scene="all", **QUIET)
    assert contents(tmp_path) == before


def test_the_same_call_again_touches_nothing(source, tmp_path):
    target = tmp_path / "all.ome.zarr"
    to_ome_zarr(source, target, scene="all", **QUIET)
    before = {path: path.stat().st_mtime_ns for path in [target, *target.rglob("*")]}
    to_ome_zarr(source, target, scene="all", **QUIET)
    to_ome_zarr(source, target, scene="all", overwrite=True, **QUIET)
    assert {path: path.stat().st_mtime_ns for path in [target, *target.rglob("*")]} == before


@pytest.mark.parametrize("scene", ["all", 1])
def test_collections_and_images_replace_each_other_only_when_told(source, tmp_path, scene):
    target = tmp_path / "a.ome.zarr"
    to_ome_zarr(source, target, scene="all", **QUIET)
    before = contents(target)
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        to_ome_zarr(source, target, scene=scene, progress=False, n_levels=3)
    assert contents(target) == before
    to_ome_zarr(source, target, scene=scene, progress=False, n_levels=3, overwrite=True)
    fresh = tmp_path / "fresh" / "a.ome.zarr"
    to_ome_zarr(source, fresh, scene=scene, progress=False, n_levels=3)
    assert contents(target) == contents(fresh)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("failing", range(1, 4))
def test_an_interrupted_collection_goes_on_and_is_not_seen_before(source, tmp_path, failing):
    target, read = tmp_path / "all.ome.zarr", ZarrReader._read
    calls = []

    def reading(self, box, level):
        calls.append(self.index)
        if len(calls) == failing:
            raise OSError("the disk is gone")
        return read(self, box, level)

    with mock.patch.object(ZarrReader, "_read", reading):
        with pytest.raises(OSError, match="the disk is gone"):
            to_ome_zarr(source, target, scene="all", **QUIET)
        assert not target.exists()
        to_ome_zarr(source, target, scene="all", **QUIET)
    assert len(calls) == len(SCANS) + 1  # only what failed was read again
    check_collection(target)
    assert leftovers(tmp_path) == []
    assert leftovers(target) == []


def test_killed_before_it_is_published_it_goes_on(source, tmp_path):
    target = tmp_path / "all.ome.zarr"
    published = [mock.DEFAULT, KeyboardInterrupt]
    with (
        mock.patch.object(regions, "publish", wraps=regions.publish, side_effect=published),
        pytest.raises(KeyboardInterrupt),
    ):
        to_ome_zarr(source, target, scene="all", **QUIET)
    assert not target.exists()
    to_ome_zarr(source, target, scene="all", **QUIET)
    check_collection(target)


def test_a_dask_array_may_be_a_collection_of_one(tmp_path):
    voxels = SCANS["Scan 1"][1]
    target = tmp_path / "all.ome.zarr"
    to_ome_zarr(da.from_array(voxels), target, axes="czyx", scene="all", **QUIET)
    check_pyramid(target / "0", voxels, 2)
    assert multiscale(target / "0")["name"] == "all"
