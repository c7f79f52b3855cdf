"""What is written is OME-NGFF, to the published models, the schemas, and two readers."""

from __future__ import annotations

import json
import warnings
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import zarr
from jsonschema import Draft202012Validator
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models import open_ome_zarr, v04, v05
from ome_zarr_models.v04.bioformats2raw import BioFormats2Raw as Collection04
from ome_zarr_models.v04.image_label import ImageLabel as ImageLabel04
from ome_zarr_models.v04.labels import Labels as Labels04
from ome_zarr_models.v05.bioformats2raw import BioFormats2Raw as Collection05
from ome_zarr_models.v05.image_label import ImageLabel as ImageLabel05
from ome_zarr_models.v05.labels import Labels as Labels05
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from patchworks.plugins.ome_zarr import add_pyramid, to_ome_zarr, write_labels
from tests.conversion.test_collection import SCANS, collection
from tests.conversion.written import check_beyond_validators, equal, levels, ome, placed
from tests.stores import ome_zarr

RNG = np.random.default_rng(1)
QUIET = {"progress": False}
SIZE = {"t": 5.0, "z": 2.0, "y": 0.5, "x": 0.25}
VERSIONS = ["0.4", "0.5"]
MODELS = {
    "0.4": {"image": v04.Image, "label": ImageLabel04, "labels": Labels04, "all": Collection04},
    "0.5": {"image": v05.Image, "label": ImageLabel05, "labels": Labels05, "all": Collection05},
}


def validators(version: str) -> dict[str, Draft202012Validator]:
    """Return the specification's schemas, as ngff-zarr carries them."""
    folder = files("ngff_zarr") / "spec" / version / "schemas"
    schemas = {
        entry.name.removesuffix(".schema"): json.loads(entry.read_text())
        for entry in folder.iterdir()
        if entry.name.endswith(".schema")
    }
    resources = [(held["$id"], DRAFT202012.create_resource(held)) for held in schemas.values()]
    registry = Registry().with_resources(resources)
    return {
        name: Draft202012Validator(schema, registry=registry) for name, schema in schemas.items()
    }


SCHEMAS = {version: validators(version) for version in VERSIONS}


def validate(place: Path, version: str, kind: str, *schemas: str) -> None:
    """Check a group with the model of its kind and with schemas."""
    group = zarr.open_group(place, mode="r")
    assert group.metadata.zarr_format == {"0.4": 2, "0.5": 3}[version]
    MODELS[version][kind].from_zarr(group)
    attributes = json.loads(json.dumps(dict(group.attrs), allow_nan=False))
    for schema in schemas:
        SCHEMAS[version][schema].validate(attributes)


def validate_image(place: Path, version: str) -> None:
    # "strict" is the schema with what the specification says SHOULD be there.
    validate(place, version, "image", "image", "strict_image")
    found = open_ome_zarr(zarr.open_group(place, mode="r"))
    assert isinstance(found, MODELS[version]["image"])
    check_beyond_validators(place)


def validate_labels(image: Path, version: str, name: str) -> None:
    labels = image / "labels"
    validate(labels, version, "labels")
    # Not the strict schema of labels: it wants a colour for every one of them.
    validate(labels / name, version, "label", "image", "label", "strict_image")
    check_beyond_validators(labels / name)
    assert ome(labels)["labels"] == [name]
    assert all(level.dtype.kind in "iu" for level in levels(labels / name))
    image_levels = [level.shape for level in levels(image)]
    assert len(levels(labels / name)) == len(image_levels)


def test_the_schemas_can_fail():
    for version in VERSIONS:
        assert not SCHEMAS[version]["image"].is_valid({})
    bad = {"multiscales": [{"version": "0.4", "axes": [], "datasets": []}]}
    assert not SCHEMAS["0.4"]["image"].is_valid(bad)
    assert not SCHEMAS["0.5"]["image"].is_valid({"ome": {"version": "0.4", "multiscales": []}})


SHAPES = {"yx": (40, 30), "zyx": (3, 40, 30), "czyx": (2, 3, 40, 30), "tyx": (2, 40, 30),
          "tczyx": (2, 2, 3, 40, 30)}  # fmt: skip


@pytest.mark.parametrize(("version", "shard"), [("0.4", False), ("0.5", False), ("0.5", True)])
@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("known", [True, False], ids=["described", "bare"])
def test_images_and_their_labels_are_valid(tmp_path, version, axes, known, shard):
    voxels = RNG.integers(0, 4000, SHAPES[axes], dtype="uint16")
    target = tmp_path / "a.ome.zarr"
    n_channels = dict(zip(axes, SHAPES[axes], strict=True)).get("c", 1)
    described = {
        "pixel_size": {axis: SIZE[axis] for axis in axes if axis != "c"},
        "channel_names": [f"channel {i}" for i in range(n_channels)],
    }
    to_ome_zarr(
        voxels, target, axes=axes, n_levels=3, ngff_version=version, shard=shard,
        **(described if known else {}), **QUIET,
    )  # fmt: skip
    validate_image(target, version)
    labels = voxels[(slice(None),) * axes.find("c") + (0,)] if "c" in axes else voxels
    write_labels(target, labels % 7, name="nuclei", **QUIET)
    validate_labels(target, version, "nuclei")
    validate_image(target, version)  # with labels in it


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "int64", "float32"])
def test_every_dtype_has_a_valid_description(tmp_path, version, dtype):
    voxels = RNG.integers(0, 2, (2, 20, 20)).astype(dtype)
    target = tmp_path / "a.ome.zarr"
    to_ome_zarr(voxels, target, axes="cyx", channel_names=["a", "b"], ngff_version=version, **QUIET)
    validate_image(target, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source_version", VERSIONS)
@pytest.mark.parametrize("reuse", [False, True])
def test_images_of_images_are_valid(tmp_path, version, source_version, reuse):
    pyramid = [np.ones((3, 40, 30), "uint8"), np.ones((3, 20, 15), "uint8")]
    source = ome_zarr(
        tmp_path / "a.zarr", pyramid, version=source_version, scale=(2.0, 0.5, 0.5),
        translation=(1.0, 2.0, 3.0), unit="nanometer",
    )  # fmt: skip
    to_ome_zarr(
        source, tmp_path / "b.zarr", reuse_pyramid=reuse, ngff_version=version, n_levels=2, **QUIET
    )
    validate_image(tmp_path / "b.zarr", version)


@pytest.mark.parametrize("version", VERSIONS)
def test_collections_are_valid(tmp_path, version):
    source = collection(tmp_path / "source.zarr")
    target = tmp_path / "all.ome.zarr"
    to_ome_zarr(source, target, scene="all", n_levels=2, ngff_version=version, **QUIET)
    validate(target, version, "all", "bf2raw")
    series = dict(zarr.open_group(target / "OME").attrs)
    SCHEMAS[version]["ome"].validate(series)
    for index in range(len(SCANS)):
        validate_image(target / str(index), version)
    write_labels(target / "1", (SCANS["Scan 1"][1][0] > 99).astype("uint8"), **QUIET)
    validate_labels(target / "1", version, "labels")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("known", [True, False])
def test_added_pyramids_are_valid(tmp_path, version, known):
    voxels = RNG.integers(0, 4000, (2, 3, 40, 30), dtype="uint16")
    place = tmp_path / "a.ome.zarr"
    names = list("czyx")
    if known:
        ome_zarr(place, [voxels], version=version, axes="czyx", scale=(1, 2, 0.5, 0.5))
    else:
        group = zarr.open_group(place, mode="w", zarr_format=3 if version == "0.5" else 2)
        group.create_array(
            "0", data=voxels, **({"dimension_names": names} if version == "0.5" else {})
        )
    add_pyramid(place, axes="czyx", n_levels=3, **QUIET)
    validate_image(place, version)


# Readers -----------------------------------------------------------------------------------------


@pytest.fixture(params=VERSIONS)
def image(tmp_path, request):
    """An image with two channels, and labels in it."""
    voxels = RNG.integers(10, 4000, (2, 3, 40, 30), dtype="uint16")
    place = tmp_path / "cells.ome.zarr"
    to_ome_zarr(
        voxels, place, axes="czyx", n_levels=3, ngff_version=request.param,
        pixel_size={"z": 2.0, "y": 0.5, "x": 0.25}, channel_names=["DAPI", "GFP"], **QUIET,
    )  # fmt: skip
    write_labels(place, (voxels[0] > 2000).astype("uint8"), name="nuclei", **QUIET)
    return place


def test_ome_zarr_py_reads_all_of_it(image):
    found = {node.zarr.basename() or "": node for node in Reader(parse_url(image))()}
    cells = found["cells.ome.zarr"]
    assert [level.shape for level in cells.data] == [a.shape for a in levels(image)]
    for read, written in zip(cells.data, levels(image), strict=True):
        assert equal(read.compute(), written)
    assert [axis["name"] for axis in cells.metadata["axes"]] == list("czyx")
    assert [axis.get("unit") for axis in cells.metadata["axes"]] == [None, *["micrometer"] * 3]
    assert cells.metadata["name"] == "cells"
    assert cells.metadata["channel_names"] == ["DAPI", "GFP"]
    windows = [[float(one.min()), float(one.max())] for one in levels(image)[2]]
    assert cells.metadata["contrast_limits"] == windows
    assert cells.metadata["colormap"] == [[[0, 0, 0], [0, 1, 1]], [[0, 0, 0], [1, 0, 1]]]
    steps = cells.metadata["coordinateTransformations"]
    assert [level[0]["scale"] for level in steps] == [scale for scale, _ in placed(image)]
    assert steps[2][1]["translation"] == placed(image)[2][1]
    nuclei = found["nuclei"]
    place = image / "labels" / "nuclei"
    assert [level.shape for level in nuclei.data] == [a.shape for a in levels(place)]
    assert equal(nuclei.data[1].compute(), levels(place)[1])


def read_by_napari(place: Path):
    """Return the layers that napari would show; no window is opened."""
    with warnings.catch_warnings():
        # napari's own imports warn of what they deprecate among themselves.
        warnings.simplefilter("ignore")
        from napari_ome_zarr import napari_get_reader
    reader = napari_get_reader(str(place))
    assert reader is not None
    return reader()


def test_napari_shows_all_of_it(image):
    (shown, metadata, kind), (labels, about_labels, labels_kind) = read_by_napari(image)
    assert (kind, labels_kind) == ("image", "labels")
    assert [level.shape for level in shown] == [a.shape for a in levels(image)]
    assert equal(shown[1].compute(), levels(image)[1])
    assert metadata["channel_axis"] == 0
    assert metadata["scale"] == [2.0, 0.5, 0.25]
    assert metadata["units"] == ("micrometer",) * 3
    assert metadata["axis_labels"] == ("z", "y", "x")
    assert metadata["name"] == ["cells: DAPI", "cells: GFP"]
    assert metadata["contrast_limits"] == [
        [float(one.min()), float(one.max())] for one in levels(image)[2]
    ]
    assert [colors.colors[-1][:3].tolist() for colors in metadata["colormap"]] == [
        [0, 1, 1],
        [1, 0, 1],
    ]
    place = image / "labels" / "nuclei"
    assert equal(labels[0].compute(), levels(place)[0])
    assert about_labels["scale"] == [2.0, 0.5, 0.25]


def test_napari_shows_a_collection(tmp_path):
    source = collection(tmp_path / "source.zarr")
    to_ome_zarr(source, tmp_path / "all.ome.zarr", scene="all", n_levels=2, **QUIET)
    layers = read_by_napari(tmp_path / "all.ome.zarr")
    assert [layer[0][0].shape for layer in layers] == [voxels.shape for _, voxels in SCANS.values()]


@pytest.mark.parametrize("version", VERSIONS)
def test_napari_shows_an_image_without_channels(tmp_path, version):
    to_ome_zarr(
        np.ones((40, 30), "uint8"), tmp_path / "a.ome.zarr", ngff_version=version,
        channel_names=["DAPI"], **QUIET,
    )  # fmt: skip
    [(shown, metadata, _)] = read_by_napari(tmp_path / "a.ome.zarr")
    assert shown[0].shape == (40, 30)
    assert metadata["name"] == "a: DAPI"
    assert metadata["scale"] == [1.0, 1.0]
