"""Labels that exist already become a label image of the image's store."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from unittest import mock

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks import tile_process
from patchworks.errors import (
    ImageReadError,
    InputError,
    PatchworksError,
    SourceNotFoundError,
    TargetExistsError,
)
from patchworks.geometry import image_pyramid
from patchworks.plugins.ome_zarr import to_ome_zarr, write_labels
from patchworks.steps.pyramid import pool_labels
from tests.conversion.written import (
    arrays,
    axes,
    check_beyond_validators,
    check_pyramid,
    levels,
    multiscale,
    ome,
    placed,
    units,
)
from tests.stores import components, contents, ome_zarr
from tests.strategies import chunks_of

RNG = np.random.default_rng(8)
IMAGE = RNG.integers(0, 60000, (3, 70, 50), dtype="uint16")
LABELS = RNG.integers(0, 7, (3, 35, 25), dtype="uint32").repeat(2, 1).repeat(2, 2)
SCALE, ORIGIN = (2.0, 0.5, 0.25), (10.0, -3.0, 4.0)
QUIET = {"progress": False}


@pytest.fixture(params=["0.4", "0.5"])
def version(request):
    return request.param


@pytest.fixture
def store(tmp_path, version):
    """An image with a pyramid of two levels."""
    place = tmp_path / "image.ome.zarr"
    pyramid = [IMAGE, IMAGE[:, ::2, ::2]]
    ome_zarr(place, pyramid, version=version, scale=SCALE, translation=ORIGIN, unit="nanometer")
    return place


def listed(store: Path) -> list[str]:
    return ome(store / "labels")["labels"]


def test_labels_are_written_and_listed(store, version):
    before = contents(store)
    place = write_labels(store, LABELS, name="nuclei", **QUIET)
    assert place == store / "labels" / "nuclei"
    check_pyramid(place, LABELS, 2, pool_labels)
    check_beyond_validators(place)
    assert len(levels(place)) == 2  # as many as the image has
    assert placed(place)[0] == (list(SCALE), list(ORIGIN))
    assert units(place) == ["nanometer"] * 3
    assert multiscale(place)["name"] == "nuclei"
    assert ome(place)["image-label"]["source"] == {"image": "../../"}
    assert listed(store) == ["nuclei"]
    said = ome(place)["image-label"] if version == "0.4" else ome(place)
    assert said["version"] == version
    assert version == "0.4" or ome(store / "labels")["version"] == "0.5"
    assert zarr.open_group(place).metadata.zarr_format == {"0.4": 2, "0.5": 3}[version]
    assert {name: contents(store)[name] for name in before} == before


def test_several_label_images_are_listed_once_each(store):
    for name in ("nuclei", "cells", "nuclei"):
        write_labels(store, LABELS, name=name, **QUIET)
    assert listed(store) == ["nuclei", "cells"]


def list_labels(store: Path, version: str, said: object) -> None:
    """Say in an image's group of labels which there are."""
    zarr_format = 2 if version == "0.4" else 3
    group = zarr.open_group(store / "labels", mode="w", zarr_format=zarr_format)
    group.attrs.put({"labels": said} if version == "0.4" else {"ome": said})


@pytest.mark.parametrize(
    "said, known", [(None, []), ("cells", ["cells"]), ([], []), (["a"], ["a"])]
)
def test_a_list_that_is_none_or_a_name_alone_is_added_to(store, version, said, known):
    list_labels(store, version, said if version == "0.4" else {"labels": said})
    write_labels(store, LABELS, name="nuclei", **QUIET)
    tile_process(store, components, overlap=2, output_component="more", **QUIET)
    assert listed(store) == [*known, "nuclei", "more"]


@pytest.mark.parametrize("said", [{"cells": 1}, 7, True])
def test_what_is_no_list_of_labels_is_refused_before_any_work(store, version, said):
    list_labels(store, version, said if version == "0.4" else {"labels": said})
    before = contents(store.parent)
    with pytest.raises(InputError, match=r"labels: its metadata list the labels .* such as"):
        write_labels(store, LABELS, name="nuclei", **QUIET)
    with pytest.raises(InputError, match="list of names"):
        tile_process(store, components, overlap=2, **QUIET)
    assert contents(store.parent) == before


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_labels_are_pooled_by_the_most_frequent(data):
    shape = tuple([data.draw(st.integers(1, n)) for n in (4, 40, 40)])
    dtype = data.draw(
        st.sampled_from(["uint8", "uint16", ">u2", "int32", ">i8", "uint32", "int64", "uint64"])
    )
    cut = data.draw(chunks_of(shape))
    labels = np.random.default_rng(0).integers(0, 4, shape)
    if np.dtype(dtype).itemsize == 8:
        labels *= 2**60
    n_levels = data.draw(st.integers(1, 4))
    small = mock.patch.multiple(image_pyramid, REGION_BYTES=500, MAX_REGION_BYTES=2000)
    with tempfile.TemporaryDirectory() as folder, small:
        store = ome_zarr(Path(folder) / "a.ome.zarr", [np.zeros(shape, "uint8")])
        place = write_labels(
            store, da.from_array(labels.astype(dtype), cut), n_levels=n_levels, **QUIET
        )
        wide = "uint64" if np.dtype(dtype).itemsize == 8 else "uint32"
        check_pyramid(place, labels.astype(wide), 2, pool_labels)
        check_beyond_validators(place)


SHAPES = [
    ("czyx", (2, 3, 20, 30), (3, 20, 30), "zyx"),
    ("cyx", (3, 20, 30), (20, 30), "yx"),
    ("tczyx", (1, 2, 3, 20, 30), (3, 20, 30), "zyx"),
    ("tczyx", (1, 2, 3, 20, 30), (1, 3, 20, 30), "tzyx"),
    ("tczyx", (1, 1, 1, 20, 30), (1, 20, 30), "zyx"),
    ("tczyx", (4, 2, 3, 20, 30), (4, 3, 20, 30), "tzyx"),
    ("tzyx", (1, 3, 20, 30), (3, 20, 30), "zyx"),
    ("tyx", (4, 20, 30), (4, 20, 30), "tyx"),
    ("yx", (20, 30), (20, 30), "yx"),
]


@pytest.mark.parametrize("held", ["numpy", "dask", "zarr array", "zarr path", "image path"])
@pytest.mark.parametrize(("image_axes", "shape", "label_shape", "label_axes"), SHAPES)
def test_channels_and_a_single_time_point_are_no_axes_of_labels(
    tmp_path, version, held, image_axes, shape, label_shape, label_axes
):
    store = tmp_path / "image.ome.zarr"
    size = tuple({"t": 5.0, "c": 1.0, "z": 2.0, "y": 0.5, "x": 0.25}[a] for a in image_axes)
    ome_zarr(store, [np.zeros(shape, "uint8")], axes=image_axes, version=version, scale=size)
    labels = np.random.default_rng(3).integers(0, 9, label_shape, dtype="uint16")
    place = tmp_path / "labels.zarr"
    if held == "image path":
        ome_zarr(place, [labels], axes=label_axes)
    elif held.startswith("zarr"):
        names = list(label_axes)
        array = zarr.create_array(str(place), data=labels, dimension_names=names)
    given = {
        "numpy": lambda: labels,
        "dask": lambda: da.from_array(labels),
        "zarr array": lambda: array,
    }.get(held, lambda: str(place))()
    made = write_labels(store, given, n_levels=2, **QUIET)
    check_pyramid(made, labels.astype("uint32"), 2, pool_labels)
    assert axes(made) == label_axes
    assert placed(made)[0][0] == [size[image_axes.index(a)] for a in label_axes]


ODD_ORDERS = ["xy", "xyz", "yxz", "zxy", "xyzt"]


@pytest.mark.parametrize("held", ["numpy", "dask", "zarr path", "image path", "turned image path"])
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("image_axes", ODD_ORDERS)
def test_labels_are_stored_in_the_order_of_their_images_axes(tmp_path, held, square, image_axes):
    """Labels equal what was given, voxel by voxel on those of the image, and y and x are halved."""
    store, place = tmp_path / "image.ome.zarr", tmp_path / "labels.zarr"
    extents = {"x": 32, "y": 32, "z": 32, "t": 3} if square else {"x": 40, "y": 30, "z": 6, "t": 3}
    shape = tuple([extents[a] for a in image_axes])
    size = tuple([{"t": 5.0, "z": 2.0, "y": 0.5, "x": 0.25}[a] for a in image_axes])
    ome_zarr(store, [np.zeros(shape, "uint8")], axes=image_axes, version="0.4", scale=size)
    labels = np.random.default_rng(3).integers(0, 9, shape, dtype="uint16")
    ordered = "".join(sorted(image_axes, key="tczyx".index))
    if held == "image path":
        ome_zarr(place, [labels], axes=image_axes, version="0.4")
    elif held == "turned image path":
        ome_zarr(place, [labels.transpose([image_axes.index(a) for a in ordered])], axes=ordered)
    elif held == "zarr path":
        zarr.create_array(str(place), data=labels, dimension_names=list(image_axes))
    given = {"numpy": labels, "dask": da.from_array(labels, tuple([max(1, n // 2) for n in shape]))}
    small = mock.patch.multiple(image_pyramid, REGION_BYTES=2000, MAX_REGION_BYTES=8000)
    with small:
        made = write_labels(store, given.get(held, place), n_levels=3, **QUIET)
    first, *lower = levels(made)
    assert (first == labels).all()
    factor = tuple([2 if a in "yx" else 1 for a in image_axes])
    for above, below in pairwise([first, *lower]):
        assert (below == pool_labels(above, factor)).all()
    assert axes(made) == image_axes
    for level, (scale, _) in enumerate(placed(made)):
        assert scale == [s * f**level for s, f in zip(size, factor, strict=True)]


def test_labels_of_another_shape_are_refused_in_the_order_of_the_axes_that_is_named(tmp_path):
    store = ome_zarr(tmp_path / "a.ome.zarr", [np.zeros((40, 30), "u1")], axes="xy", version="0.4")
    with pytest.raises(InputError, match=r"shape \(40, 30\).*expected \(30, 40\), axes yx"):
        write_labels(store, np.zeros((30, 40), "uint8"), **QUIET)


def test_an_image_without_a_pyramid_gets_labels_with_one(tmp_path):
    store = ome_zarr(tmp_path / "a.ome.zarr", [np.zeros((300, 200), "uint8")], axes="yx")
    labels = np.random.default_rng(1).integers(0, 9, (300, 200), dtype="uint8")
    assert len(levels(write_labels(store, labels, **QUIET))) == 5


def test_labels_of_a_converted_image_have_its_levels(tmp_path):
    to_ome_zarr(IMAGE, tmp_path / "a.ome.zarr", n_levels=3, **QUIET)
    place = write_labels(tmp_path / "a.ome.zarr", LABELS, **QUIET)
    image = arrays(tmp_path / "a.ome.zarr")
    assert [a.shape for a in arrays(place)] == [a.shape for a in image]
    assert placed(place) == placed(tmp_path / "a.ome.zarr")


def test_axes_may_have_long_names(tmp_path):
    store = tmp_path / "a.ome.zarr"
    ome_zarr(store, [IMAGE[None, None]], axes="tczyx")
    group = zarr.open_group(store)
    attributes = dict(group.attrs)
    for axis in attributes["ome"]["multiscales"][0]["axes"][:2]:
        axis["name"] = axis["type"]
    group.attrs.put(attributes)
    place = write_labels(store, LABELS, **QUIET)
    check_pyramid(place, LABELS, 2, pool_labels)
    assert axes(place) == "zyx"


REFUSED = [
    (LABELS.astype("float32"), "float32"),
    (LABELS > 0, "bool"),
    (LABELS.astype("complex64"), "complex64"),
    (LABELS[:2], "shape"),
    (LABELS[0], r"shape|axes"),
    (LABELS[None, None], r"shape|axes"),
    (LABELS.transpose(2, 1, 0), "shape"),
    (LABELS.tolist(), "list"),
    (-LABELS.astype("int32"), "negative"),
    (da.from_array(-LABELS.astype("int32"), (1, 70, 50)), "negative"),
]


@pytest.mark.parametrize(("labels", "named"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_are_no_labels_is_refused_and_nothing_is_written(store, tmp_path, labels, named):
    before = contents(tmp_path)
    with pytest.raises(InputError, match=named):
        write_labels(store, labels, **QUIET)
    assert contents(tmp_path) == before


def test_a_negative_label_somewhere_leaves_nothing_behind(store, tmp_path):
    labels = np.array(LABELS, "int64")
    labels[2, 60, 40] = -3
    write_labels(store, LABELS, **QUIET)
    before = contents(tmp_path)
    small = mock.patch.multiple(image_pyramid, REGION_BYTES=500, MAX_REGION_BYTES=2000)
    for wrong in (labels, da.from_array(labels, (1, 35, 50))):
        with small, pytest.raises(InputError, match="-3"):
            write_labels(store, wrong, overwrite=True, **QUIET)
        with small, pytest.raises(InputError, match="-3"):
            write_labels(store, wrong, name="other", **QUIET)
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "bad",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": ".."},
        {"name": ".hidden"},
        {"name": 3},
        {"n_levels": 0},
        {"n_levels": 2.5},
        {"max_workers": 0},
    ],
    ids=str,
)
def test_bad_arguments_are_refused(store, tmp_path, bad):
    before = contents(tmp_path)
    with pytest.raises(InputError):
        write_labels(store, LABELS, **{**QUIET, **bad})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["nothing", "array", "group", "labels"])
def test_labels_need_an_image(tmp_path, what):
    place = tmp_path / "a.zarr"
    if what == "array":
        zarr.create_array(str(place), data=IMAGE)
    elif what == "group":
        zarr.open_group(place).create_array("0", data=IMAGE)
    elif what == "labels":
        zarr.open_group(place, attributes={"ome": {"version": "0.5", "labels": []}})
    before = contents(tmp_path)
    with pytest.raises(InputError) as caught:
        write_labels(place, LABELS, **QUIET)
    assert what == "labels" or isinstance(caught.value, SourceNotFoundError)
    assert contents(tmp_path) == before


def test_the_same_labels_again_are_left_as_they_are(store, tmp_path):
    write_labels(store, LABELS, **QUIET)
    before = {path: path.stat().st_mtime_ns for path in sorted(store.rglob("*"))}
    write_labels(store, LABELS.copy(), **QUIET)
    write_labels(store, LABELS, overwrite=True, **QUIET)
    after = {path: path.stat().st_mtime_ns for path in sorted(store.rglob("*"))}
    assert [p for p in after if after[p] != before.get(p)] in ([], [store / "labels"])


def test_other_labels_need_overwrite(store):
    write_labels(store, LABELS, **QUIET)
    before = contents(store)
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        write_labels(store, LABELS + 1, **QUIET)
    assert contents(store) == before
    place = write_labels(store, LABELS + 1, overwrite=True, n_levels=3, **QUIET)
    check_pyramid(place, LABELS + 1, 2, pool_labels)
    assert listed(store) == ["labels"]


def test_what_is_no_label_image_is_never_replaced(store, tmp_path):
    notes = store / "labels" / "labels"
    notes.mkdir(parents=True)
    (notes / "notes.txt").write_text("of years")
    before = contents(tmp_path)
    with pytest.raises(PatchworksError, match="never replaced"):
        write_labels(store, LABELS, overwrite=True, **QUIET)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("how", ["path", "array"])
def test_labels_are_not_replaced_by_themselves(store, tmp_path, how):
    place = write_labels(store, LABELS, **QUIET)
    before = contents(tmp_path)
    labels = place if how == "path" else da.from_zarr(arrays(place)[0]) + 1
    with pytest.raises(InputError, match="source"):
        write_labels(store, labels, n_levels=5, overwrite=True, **QUIET)
    assert contents(tmp_path) == before


def test_labels_may_come_from_another_label_image(store):
    first = write_labels(store, LABELS, name="first", **QUIET)
    second = write_labels(store, first, name="second", **QUIET)
    check_pyramid(second, LABELS, 2, pool_labels)


def test_labels_that_cannot_be_read_leave_the_image_as_it_was(store, tmp_path):
    write_labels(store, LABELS, **QUIET)
    before = contents(tmp_path)

    def broken(block):
        raise RuntimeError("no labels today")

    lazy = da.from_array(LABELS).map_blocks(broken, dtype="uint32", meta=np.empty((0,) * 3, "u4"))
    with pytest.raises(ImageReadError, match="no labels today"):
        write_labels(store, lazy, overwrite=True, **QUIET)
    assert listed(store) == ["labels"]
    assert {name: contents(tmp_path)[name] for name in before} == before
    write_labels(store, LABELS + 1, overwrite=True, **QUIET)
    check_pyramid(store / "labels" / "labels", LABELS + 1, 2, pool_labels)


def test_consolidated_metadata_tell_of_the_labels(tmp_path):
    store = ome_zarr(tmp_path / "a.ome.zarr", [IMAGE], version="0.4")
    zarr.consolidate_metadata(store, zarr_format=2)
    write_labels(store, LABELS, **QUIET)
    found = zarr.open_consolidated(store)
    assert found["labels"].attrs["labels"] == ["labels"]
    assert found["labels/labels/0"].shape == LABELS.shape


def test_consolidated_metadata_tell_of_labels_that_replace_others(tmp_path):
    store = ome_zarr(tmp_path / "a.ome.zarr", [IMAGE], version="0.4")
    zarr.consolidate_metadata(store, zarr_format=2)
    write_labels(store, LABELS, n_levels=2, **QUIET)
    write_labels(store, LABELS.astype("uint64"), n_levels=3, overwrite=True, **QUIET)
    found = zarr.open_consolidated(store)["labels/labels"]
    assert found["0"].dtype == "uint64"
    assert len(found.attrs["multiscales"][0]["datasets"]) == 3
