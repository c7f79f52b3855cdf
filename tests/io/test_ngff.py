"""What a label image says of itself: the specification, and what its validators miss."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr_models import open_ome_zarr
from ome_zarr_models.v04.image_label import ImageLabel as ImageLabel04
from ome_zarr_models.v04.labels import Labels as Labels04
from ome_zarr_models.v05.image_label import ImageLabel as ImageLabel05
from ome_zarr_models.v05.labels import Labels as Labels05

from patchworks import merge_tile_labels, relabel_sequential_zarr, tile_process
from tests.stores import blobs, components, contents, ome_zarr

IMAGE_LABEL = {"0.4": ImageLabel04, "0.5": ImageLabel05}
LABELS = {"0.4": Labels04, "0.5": Labels05}
DATA = Path(__file__).parents[3] / "shared" / "data"

IMAGE = blobs((6, 70, 50))
SCALE, ORIGIN = (2.0, 0.5, 0.25), (10.0, -3.0, 4.0)
KEYWORDS = {"tile_shape": (6, 32, 32), "overlap": 4, "progress": False, "pyramid_levels": 3}


@pytest.fixture(params=["0.4", "0.5"])
def version(request):
    return request.param


@pytest.fixture
def store(tmp_path, version):
    levels = [IMAGE, IMAGE[:, ::2, ::2]]
    place = tmp_path / "image.zarr"
    ome_zarr(place, levels, version=version, scale=SCALE, translation=ORIGIN)
    return place


def ome(path):
    attributes = dict(zarr.open_group(path, mode="r").attrs)
    return attributes.get("ome", attributes)


def transformations(path):
    """Return scale and translation of every level."""
    found = []
    for dataset in ome(path)["multiscales"][0]["datasets"]:
        steps = {step["type"]: step[step["type"]] for step in dataset["coordinateTransformations"]}
        found.append((steps["scale"], steps.get("translation", [0.0] * len(steps["scale"]))))
    return found


def check(path, version):
    """Check a label image with the published models, and for what they do not look at."""
    group = zarr.open_group(path, mode="r")
    IMAGE_LABEL[version].from_zarr(group)
    assert group.metadata.zarr_format == {"0.4": 2, "0.5": 3}[version]
    multiscale = ome(path)["multiscales"][0]
    assert {a.get("unit") for a in multiscale["axes"]} <= {None, "micrometer"}
    arrays = [group[dataset["path"]] for dataset in multiscale["datasets"]]
    assert all(array.dtype.kind == "u" for array in arrays)
    for (scale, origin), array in zip(transformations(path), arrays, strict=True):
        first_scale, first_origin = transformations(path)[0]
        factors = np.array(scale) / first_scale
        assert np.array_equal(np.ceil(np.array(arrays[0].shape) / factors), array.shape)
        moved = np.array(first_origin) + np.array(first_scale) * (factors - 1) / 2
        assert np.allclose(origin, moved)
    assert ome(path)["image-label"].get("colors", []) == []


def test_labels_in_the_store_are_valid(store, version):
    tile_process(store, components, **KEYWORDS)
    check(store / "labels" / "labels", version)


def test_labels_of_their_own_are_valid(store, version, tmp_path):
    tile_process(store, components, write_to=tmp_path / "out.zarr", **KEYWORDS)
    check(tmp_path / "out.zarr", version)


def test_merged_labels_are_valid(store, version, tmp_path):
    tile_process(store, components, **KEYWORDS)
    merge_tile_labels(store, tmp_path / "out.zarr", input_component="labels/labels/0")
    check(tmp_path / "out.zarr", version)


def test_renumbered_labels_are_valid(store, version, tmp_path):
    tile_process(store, components, **KEYWORDS)
    relabel_sequential_zarr(store, "labels/labels/0", write_to=tmp_path / "out.zarr")
    check(tmp_path / "out.zarr", version)


@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
def test_labels_of_an_array_are_valid_whatever_its_number_of_axes(ndim, tmp_path):
    image = blobs((2,) * (ndim - 2) + (20, 20))
    tile_process(image, components, write_to=tmp_path / "out.zarr", progress=False)
    ImageLabel05.from_zarr(zarr.open_group(tmp_path / "out.zarr", mode="r"))


def test_the_labels_group_is_valid(store, version):
    tile_process(store, components, **KEYWORDS)
    LABELS[version].from_zarr(zarr.open_group(store / "labels", mode="r"))


def test_the_labels_group_of_0_5_says_its_version(tmp_path):
    store = Path(ome_zarr(tmp_path / "image.zarr", [IMAGE]))
    tile_process(store, components, **KEYWORDS)
    assert ome(store / "labels")["version"] == "0.5"


@pytest.mark.parametrize("n_levels", [2, 3])
def test_the_image_is_still_valid_with_its_labels(tmp_path, version, n_levels):
    """Labels have as many levels as an image with a pyramid, unless asked for another number."""
    levels = [IMAGE[:, :: 2**i, :: 2**i] for i in range(n_levels)]
    store = ome_zarr(tmp_path / "image.zarr", levels, version=version)
    tile_process(store, components, tile_shape=(6, 32, 32), overlap=4, progress=False)
    assert open_ome_zarr(zarr.open_group(store, mode="r")).labels is not None
    assert len(ome(Path(store) / "labels" / "labels")["multiscales"][0]["datasets"]) == n_levels


def test_levels_are_as_many_as_were_asked_for(store):
    tile_process(store, components, **{**KEYWORDS, "pyramid_levels": 4})
    assert len(ome(store / "labels" / "labels")["multiscales"][0]["datasets"]) == 4


def test_a_second_label_image_keeps_the_first(store):
    tile_process(store, components, output_component="cells", **KEYWORDS)
    before = contents(store / "labels" / "cells")
    tile_process(store, components, output_component="nuclei", **KEYWORDS)
    assert contents(store / "labels" / "cells") == before
    assert ome(store / "labels")["labels"] == ["cells", "nuclei"]


def test_a_label_image_that_is_replaced_is_listed_once(store):
    tile_process(store, components, **KEYWORDS)
    tile_process(store, components, **{**KEYWORDS, "overlap": 3}, overwrite=True)
    assert ome(store / "labels")["labels"] == ["labels"]


def test_label_images_of_other_tools_and_their_attributes_are_kept(store, version):
    listed = {"labels": ["by hand"]}
    labels = zarr.open_group(
        store / "labels", mode="w", zarr_format=2 if version == "0.4" else 3,
        attributes={"mine": 1, **(listed if version == "0.4" else {"ome": {**listed, "more": 2}})},
    )  # fmt: skip
    labels.create_array("by hand/0", data=IMAGE)
    tile_process(store, components, **KEYWORDS)
    attributes = dict(zarr.open_group(store / "labels", mode="r").attrs)
    assert attributes["mine"] == 1
    assert ome(store / "labels")["labels"] == ["by hand", "labels"]
    assert version == "0.4" or attributes["ome"]["more"] == 2


def test_attributes_of_the_image_keep_every_byte(store):
    names = [".zattrs", ".zgroup", "zarr.json"]
    before = [contents(store).get(name) for name in names]
    tile_process(store, components, **KEYWORDS)
    assert [contents(store).get(name) for name in names] == before


def test_scale_and_translation_are_those_of_the_image(store):
    tile_process(store, components, **KEYWORDS)
    assert transformations(store / "labels" / "labels")[0] == (list(SCALE), list(ORIGIN))


def test_scale_and_translation_are_those_of_the_level_that_was_segmented(store):
    tile_process(store, components, level=1, **KEYWORDS)
    expected = ([2.0, 1.0, 0.5], list(ORIGIN))
    assert transformations(store / "labels" / "labels")[0] == expected


def test_scale_and_translation_of_the_whole_image_count_too(tmp_path, version):
    store = Path(ome_zarr(tmp_path / "image.zarr", [IMAGE], version=version, scale=SCALE))
    attributes = dict(zarr.open_group(store, mode="r").attrs)
    attributes.get("ome", attributes)["multiscales"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [1.0, 2.0, 2.0]},
        {"type": "translation", "translation": [0.0, 5.0, 6.0]},
    ]
    zarr.open_group(store, mode="r+").attrs.put(attributes)
    tile_process(store, components, **KEYWORDS)
    found = transformations(store / "labels" / "labels")[0]
    assert found == ([2.0, 1.0, 0.5], [0.0, 5.0, 6.0])


def test_the_axes_of_space_are_taken_over_with_names_and_units(tmp_path, version):
    image = np.stack([IMAGE])[None]
    store = Path(ome_zarr(tmp_path / "i.zarr", [image], version=version, axes="tczyx"))
    tile_process(store, components, **KEYWORDS)
    axes = ome(store / "labels" / "labels")["multiscales"][0]["axes"]
    assert axes == [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]


def test_a_label_image_says_how_many_objects_it_holds(store):
    labels = tile_process(store, components, **KEYWORDS)
    group = zarr.open_group(store / "labels" / "labels", mode="r")
    assert group.attrs["patchworks"]["n_objects"] == labels.max().compute()


def test_labels_are_found_in_a_store_with_consolidated_metadata(tmp_path):
    store = Path(ome_zarr(tmp_path / "image.zarr", [IMAGE], version="0.4"))
    zarr.consolidate_metadata(store, zarr_format=2)
    labels = tile_process(store, components, **KEYWORDS)
    found = zarr.open_group(store, mode="r")["labels/labels/0"][...]
    assert np.array_equal(found, labels.compute())


def test_every_pyramid_level_holds_only_labels_of_level_0(store):
    tile_process(store, components, **KEYWORDS)
    group = zarr.open_group(store / "labels" / "labels", mode="r")
    known = set(np.unique(group["0"][...]).tolist())
    assert all(set(np.unique(group[level][...]).tolist()) <= known for level in ("1", "2"))


@pytest.fixture
def slide(tmp_path):
    source = DATA / "CMU-1-Small-Region_s0.ome.zarr"
    if not source.exists():
        pytest.skip(f"{source.name}: the folder of real microscopy files is not here")
    place = tmp_path / "slide.zarr"
    shutil.copytree(source, place, copy_function=shutil.copyfile)
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return place


def test_labels_of_a_real_slide_are_valid_and_have_its_voxel_size(slide):
    labels = tile_process(
        slide, lambda tile: components(tile < 100), channel=1, level=1, progress=False
    )
    check(slide / "labels" / "labels", "0.4")
    scale, _ = transformations(slide / "labels" / "labels")[0]
    assert scale == [1.0, 0.998, 0.998]
    stored = zarr.open_group(slide, mode="r")["labels/labels/0"][...]
    assert np.array_equal(stored, labels.compute())


def test_a_real_slide_keeps_every_byte(slide):
    before = contents(slide)
    tile_process(slide, lambda tile: components(tile < 100), level=1, progress=False)
    after = contents(slide)
    assert {name: after.get(name) for name in before} == before
