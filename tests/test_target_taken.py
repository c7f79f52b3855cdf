"""What another program puts at an output while a run is at work is never lost."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import dask.array as da
import fsspec
import numpy as np
import pytest
import zarr

from patchworks import merge_tile_labels, relabel_sequential_zarr, tile_process
from patchworks.conversion import pyramid as add
from patchworks.errors import TargetExistsError
from patchworks.io.level_store import LevelStore
from patchworks.io.tile_reader import TileReader
from patchworks.plugins.ome_zarr import add_pyramid, to_ome_zarr, write_labels
from patchworks.readers.array import ArrayReader
from patchworks.steps.pyramid import pool_image
from tests.stores import blobs, components, contents, counting, n_calls, ome_zarr

IMAGE = blobs((6, 40, 40))
LABELS = components(IMAGE).astype("uint32")
THEIRS = np.full((6, 40, 40), 9, "uint8")
QUIET = {"progress": False}


def an_image(place: Path | str) -> None:
    ome_zarr(place, [THEIRS])


def labels(place: Path | str) -> None:
    ome_zarr(place, [THEIRS.astype("uint32")])
    group = zarr.open_group(str(place), mode="r+")
    group.attrs["ome"] = {**group.attrs["ome"], "image-label": {}}


def notes(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("of years")


@contextmanager
def refused(
    put: Callable[[Any], None], place: Path | str, at: tuple[type, str]
) -> Iterator[pytest.ExceptionInfo[TargetExistsError]]:
    """Put something at a place when a method is first called; the run has to refuse to end."""
    owner, name = at
    original, done = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        if not done:
            done.append(put(place))
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, wrapped), pytest.raises(TargetExistsError) as raised:
        yield raised


NOT_READ = mock.Mock(side_effect=AssertionError("read again"))
MOMENTS = [(ArrayReader, "_read"), (LevelStore, "_move_into_place")]


@pytest.mark.parametrize("put", [an_image, labels, notes])
@pytest.mark.parametrize("scene", [0, "all"])
@pytest.mark.parametrize("at", MOMENTS)
def test_a_conversion_goes_on_once_the_other_is_moved_away(tmp_path, put, scene, at):
    target = tmp_path / "scan.zarr"
    with refused(put, target, at) as raised:
        to_ome_zarr(IMAGE, target, scene=scene, **QUIET)
    assert "goes on from there" in "".join(raised.value.__notes__)
    put(tmp_path / "same.zarr")
    assert contents(target) == contents(tmp_path / "same.zarr")
    target.rename(tmp_path / "moved.zarr")
    with mock.patch.object(ArrayReader, "_read", NOT_READ):
        to_ome_zarr(IMAGE, target, scene=scene, **QUIET)
    level = "0/0" if scene == "all" else "0"
    assert (zarr.open_group(target, mode="r")[level][...] == IMAGE).all()


@pytest.mark.parametrize("scene", [0, "all"])
@pytest.mark.parametrize("at", MOMENTS)
def test_a_conversion_goes_on_with_overwrite(tmp_path, scene, at):
    target = tmp_path / "scan.zarr"
    with refused(an_image, target, at):
        to_ome_zarr(IMAGE, target, scene=scene, **QUIET)
    with mock.patch.object(ArrayReader, "_read", NOT_READ):
        to_ome_zarr(IMAGE, target, scene=scene, overwrite=True, **QUIET)
    level = "0/0" if scene == "all" else "0"
    assert (zarr.open_group(target, mode="r")[level][...] == IMAGE).all()
    assert {path.name for path in tmp_path.iterdir()} <= {"scan.zarr", "scan.zarr.maxima"}


def test_what_is_no_image_is_not_replaced_by_overwrite_either(tmp_path):
    target = tmp_path / "scan.zarr"
    with refused(notes, target, MOMENTS[0]) as raised:
        to_ome_zarr(IMAGE, target, overwrite=True, **QUIET)
    assert "never replaced" in str(raised.value)
    assert (target / "notes.txt").read_text() == "of years"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "scene, at", [(0, MOMENTS[0]), (0, (LevelStore, "publish")), ("all", (LevelStore, "publish"))]
)
def test_an_image_in_an_object_store_is_not_mixed_with_another(overwrite, scene, at):
    target = f"memory://{uuid.uuid4().hex}/scan.zarr"
    filesystem, path = fsspec.url_to_fs(target)

    def replace(place: str) -> None:
        filesystem.rm(path, recursive=True)
        an_image(place)

    with refused(replace, target, at):
        to_ome_zarr(IMAGE, target, scene=scene, overwrite=overwrite, chunks=(6, 8, 8), **QUIET)
    said = zarr.open_group(target, mode="r").attrs["ome"]
    assert said["multiscales"][0]["name"] == "image"
    to_ome_zarr(IMAGE, target, scene=scene, overwrite=True, **QUIET)
    level = "0/0" if scene == "all" else "0"
    assert (zarr.open_group(target, mode="r")[level][...] == IMAGE).all()


@pytest.mark.parametrize("at", MOMENTS)
def test_labels_that_another_program_wrote_stay(tmp_path, at):
    store = ome_zarr(tmp_path / "image.zarr", [IMAGE])
    place = Path(store, "labels", "n")
    with refused(labels, place, at):
        write_labels(store, LABELS, name="n", **QUIET)
    assert (zarr.open_group(place, mode="r")["0"][...] == THEIRS).all()
    assert [path.name for path in place.parent.iterdir() if path.is_dir()] == ["n"]
    write_labels(store, LABELS, name="n", overwrite=True, **QUIET)
    assert (zarr.open_group(place, mode="r")["0"][...] == LABELS).all()


def test_labels_in_an_object_store_stay_where_writing_others_fails():
    store = f"memory://{uuid.uuid4().hex}/image.zarr"
    place = f"{store}/labels/n"
    ome_zarr(store, [IMAGE])

    def failing(block):
        if block.max():
            labels(place)
            raise OSError("the disk is gone")
        return block

    lazy = da.from_array(LABELS, (6, 20, 20)).map_blocks(failing, meta=np.empty((0,) * 3, "u4"))
    with pytest.raises(OSError, match="the disk is gone"):
        write_labels(store, lazy, name="n", **QUIET)
    assert (zarr.open_group(place, mode="r")["0"][...] == THEIRS).all()


RUN = {"tile_shape": (6, 20, 20), "overlap": 2, "max_workers": 1, **QUIET}


@pytest.mark.parametrize(
    "at", [(TileReader, "read"), (LevelStore, "create"), (LevelStore, "_move_into_place")]
)
def test_a_run_goes_on_with_overwrite(tmp_path, at):
    place, calls = tmp_path / "out.zarr", tmp_path / "calls"
    segment = counting(calls)
    with refused(labels, place, at) as raised:
        tile_process(IMAGE, segment, write_to=place, **RUN)
    assert "goes on from there" in "".join(raised.value.__notes__)
    assert (zarr.open_group(place, mode="r")["0"][...] == THEIRS).all()
    result = tile_process(IMAGE, segment, write_to=place, overwrite=True, **RUN)
    assert n_calls(calls) == 4
    assert ((result.compute() > 0) == (LABELS > 0)).all()


def test_a_run_that_is_done_anew_replaces_its_own_result(tmp_path):
    place = tmp_path / "out.zarr"
    segment = counting(tmp_path / "calls")
    for _ in range(2):
        tile_process(IMAGE, segment, write_to=place, resume=False, **RUN)
    assert n_calls(tmp_path / "calls") == 2 * 4
    assert {path.name for path in tmp_path.iterdir()} == {"out.zarr", "calls"}


def test_a_merge_leaves_what_came_to_its_place(tmp_path):
    place = tmp_path / "out.zarr"
    tiles = zarr.array(LABELS, chunks=(6, 20, 20))
    with refused(labels, place, (LevelStore, "create")):
        merge_tile_labels(tiles, write_to=place, **QUIET)
    assert (zarr.open_group(place, mode="r")["0"][...] == THEIRS).all()
    merge_tile_labels(tiles, write_to=place, overwrite=True, **QUIET)
    assert (zarr.open_group(place, mode="r")["0"][...] > 0).sum() == (LABELS > 0).sum()


def test_a_renumbering_leaves_what_came_to_its_place(tmp_path):
    store, place = tmp_path / "labels.zarr", tmp_path / "out.zarr"
    labels(store)
    with refused(labels, place, (LevelStore, "create")):
        relabel_sequential_zarr(store, "0", write_to=place)
    assert (zarr.open_group(place, mode="r")["0"][...] == THEIRS).all()


def test_a_pyramid_of_another_program_stays(tmp_path):
    store = tmp_path / "image.zarr"
    zarr.open_group(store, mode="w").create_array("0", data=IMAGE, chunks=(6, 20, 20))
    theirs = ome_zarr(tmp_path / "theirs.zarr", [THEIRS, THEIRS[:, ::2, ::2]])
    said = dict(zarr.open_group(theirs, mode="r").attrs)

    def pool(voxels, factor):
        zarr.open_group(store, mode="r+").attrs.put(said)
        return pool_image(voxels, factor)

    with (
        mock.patch.object(add, "pool_image", pool),
        pytest.raises(TargetExistsError, match="another program"),
    ):
        add_pyramid(store, axes="zyx", n_levels=2, **QUIET)
    assert dict(zarr.open_group(store, mode="r").attrs) == said
