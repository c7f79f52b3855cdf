"""Refusals that need more than an argument out of range; see also `test_bad_input`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

from patchworks import merge_tile_labels, relabel_sequential_zarr, tile_process
from patchworks.errors import (
    InputError,
    MemoryBudgetError,
    PatchworksError,
    SegmenterError,
    TargetExistsError,
)
from patchworks.io.tile_reader import TileReader
from tests.cells import same_partition
from tests.stores import blobs, components, contents, counting, n_calls, ome_zarr

IMAGE = blobs((60, 60))
KEYWORDS = {"tile_shape": (20, 20), "overlap": 4, "progress": False, "pyramid_levels": 1}


def never(tile):
    raise AssertionError("the function was called for bad input")


@pytest.fixture
def place(tmp_path, monkeypatch):
    ome_zarr(tmp_path / "image.zarr", [IMAGE], axes="yx", chunks=(20, 20))
    tile_process(tmp_path / "image.zarr", components, **KEYWORDS)
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{ not json")
    (tmp_path / "keyless.zarr").mkdir()
    (tmp_path / "keyless.zarr" / "zarr.json").write_text('{"zarr_format": 3}')
    (tmp_path / "image.tif").write_bytes(b"II*\0")
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    zarr.create_array(tmp_path / "zero.zarr", shape=(0, 5), chunks=(1, 5), dtype="u1")
    zarr.create_array(tmp_path / "scalar.zarr", shape=(), chunks=(), dtype="u1")
    dangling = zarr.open_group(tmp_path / "dangling.zarr", mode="w")
    dangling.attrs.put(dict(zarr.open_group(tmp_path / "image.zarr", mode="r").attrs))
    odd = zarr.open_group(tmp_path / "odd.zarr", mode="w")
    odd.attrs.put({"ome": {"version": "0.5", "multiscales": [{"axes": 3, "datasets": "?"}]}})
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFUSED = {
    "broken metadata": ("broken.zarr", {}, "not a zarr store"),
    "metadata without a node type": ("keyless.zarr", {}, "keyless.zarr"),
    "a TIFF": ("image.tif", {}, "convert the file first"),
    "a place below a TIFF": ("image.tif/0", {}, "nothing at this path"),
    "a group without arrays": ("empty.zarr", {}, "0 arrays"),
    "a stored array without voxels": ("zero.zarr", {}, r"shape \(0, 5\)"),
    "a stored array without axes": ("scalar.zarr", {}, r"shape \(\)"),
    "a group whose array is missing": ("dangling.zarr", {}, "cannot be opened"),
    "metadata that say nothing": ("odd.zarr", {}, "multiscales"),
    "an empty path": ("", {}, "not empty"),
    "a path of bytes": (b"image.zarr", {}, "expected a path"),
    "a path with a null character": ("image\0.zarr", {}, "image"),
    "a path too long": ("x" * 300, {}, "xxx"),
    "None": (None, {}, "NoneType"),
    "a number": (3, {}, "type int"),
    "a zarr group": ("GROUP", {}, "Group"),
    "masked voxels": (np.ma.masked_equal(IMAGE, IMAGE[0, 0]), {}, r"masked.*filled\("),
    "strings": (np.array([["a", "b"]]), {}, "real numbers"),
    "dates": (np.zeros((3, 3), "M8[s]"), {}, "real numbers"),
    "objects": (np.zeros((3, 3), object), {}, "real numbers"),
    "records": (np.zeros((3, 3), [("a", "u1")]), {}, "real numbers"),
    "a tile of bools": (IMAGE, {"tile_shape": (True, 8)}, "expected 2 integers"),
    "a tile as a number": (IMAGE, {"tile_shape": 8}, "expected 2 integers"),
    "a tile rule that gives floats": (
        IMAGE, {"tile_shape": lambda shape, dtype: (8.5, 8)}, r"tile_shape\(shape, dtype\)",
    ),
    "a tile rule that gives nothing": (
        IMAGE, {"tile_shape": lambda shape, dtype: None}, r"tile_shape\(shape, dtype\)",
    ),
    "a tile rule of other arguments": (IMAGE, {"tile_shape": lambda: (8, 8)}, "tile_shape"),
    "an overlap as text": (IMAGE, {"overlap": "16"}, "overlap='16'"),
    "an overlap of True": (IMAGE, {"overlap": True}, "overlap=True"),
    "an overlap of nan": (IMAGE, {"overlap": float("nan")}, "overlap=nan"),
    "an overlap beyond the tile on one axis": (
        IMAGE, {"tile_shape": (20, 10), "overlap": (11, 11)}, "axis 1",
    ),
    "a channel by name": (IMAGE, {"channel": "DAPI"}, "'DAPI'"),
    "a level by name": ("image.zarr", {"level": "0"}, "level='0'"),
    "a level of an array": (IMAGE, {"level": 1}, "an array has one level"),
    "stitch None": (IMAGE, {"stitch": None}, "stitch=None"),
    "stitch a list": (IMAGE, {"stitch": ["touch"]}, "stitch="),
    "connectivity 0": (IMAGE, {"connectivity": 0}, "connectivity=0"),
    "connectivity of a float": (IMAGE, {"connectivity": 1.0}, "connectivity=1.0"),
    "levels of a float": (IMAGE, {"pyramid_levels": 2.0}, "pyramid_levels=2.0"),
    "a downscale of 1": (IMAGE, {"pyramid_downscale": 1}, "pyramid_downscale=1"),
    "a threshold as text": (IMAGE, {"empty_threshold": "low"}, "'low'"),
    "workers of a float": (IMAGE, {"max_workers": 1.5}, "max_workers=1.5"),
    "workers as text": (IMAGE, {"max_workers": "2"}, "max_workers='2'"),
    "an empty name": ("image.zarr", {"output_component": ""}, "plain name"),
    "a name that is none": ("image.zarr", {"output_component": None}, "plain name"),
    "a hidden name": ("image.zarr", {"output_component": ".hidden"}, "plain name"),
    "a name with a null character": ("image.zarr", {"output_component": "a\0b"}, "plain name"),
    "a name too long": ("image.zarr", {"output_component": "a" * 300}, "aaa"),
    "a name that is a zarr key": ("image.zarr", {"output_component": "zarr.json"}, "zarr.json"),
    "a target that is a number": (IMAGE, {"write_to": 3}, "write_to"),
    "an empty target": (IMAGE, {"write_to": ""}, "not empty"),
    "a target of an unknown protocol": (IMAGE, {"write_to": "nosuch://x"}, "nosuch"),
    "a stage that is a number": (
        IMAGE, {"write_to": "out.zarr", "stage_dir": 3}, "stage_dir",
    ),
    "the folder of the image": ("image.zarr", {"write_to": "."}, "image itself"),
    "the image by another way": (
        "image.zarr", {"write_to": "broken.zarr/../image.zarr"}, "image.zarr",
    ),
    "the array of the image": ("image.zarr", {"write_to": "image.zarr/0"}, "image itself"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_an_error_of_our_own_and_nothing_is_written(place, case):
    image, keywords, message = REFUSED[case]
    if isinstance(image, str) and image == "GROUP":
        image = zarr.open_group(place / "image.zarr", mode="r")
    before = contents(place)
    with pytest.raises(PatchworksError, match=message):
        tile_process(image, never, progress=False, **keywords)
    assert contents(place) == before


def test_a_label_image_of_another_run_keeps_every_byte(place):
    before = contents(place)
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        tile_process(place / "image.zarr", never, **KEYWORDS)
    assert contents(place) == before


def test_a_partial_label_image_of_another_run_stays_with_its_stage(place, monkeypatch):
    """An interrupted run of other arguments can still go on after this one."""
    calls = place / "calls"

    def failing(tile):
        if n_calls(calls) > 4:
            raise ValueError("no more")
        return counting(calls)(tile)

    with pytest.raises(SegmenterError):
        tile_process(IMAGE, failing, write_to=place / "out.zarr", max_workers=1, **KEYWORDS)
    before = contents(place / "out.zarr.stage")
    tile_process(IMAGE, components, write_to=place / "out.zarr", **{**KEYWORDS, "overlap": 5})
    assert contents(place / "out.zarr.stage") == before


# --- what is read is never replaced, even with overwrite=True ----------------------------------


@pytest.fixture
def labels(place):
    tile_process(place / "image.zarr", components, write_to=place / "cells.zarr", **KEYWORDS)
    return place / "cells.zarr"


REPLACING = {
    "merge, by path": lambda p: merge_tile_labels(
        p, p, input_component="0", overwrite=True
    ),
    "merge, by a way around": lambda p: merge_tile_labels(
        p, p.parent / "image.zarr" / ".." / p.name, input_component="0", overwrite=True
    ),
    "merge, by a link": lambda p: merge_tile_labels(
        p, _link(p), input_component="0", overwrite=True
    ),
    "merge, from the store around it": lambda p: merge_tile_labels(
        p.parent / "image.zarr", p.parent / "image.zarr" / "labels" / "labels",
        input_component="labels/labels/0", overwrite=True,
    ),
    "merge, from a zarr array": lambda p: merge_tile_labels(
        zarr.open_array(p / "0", mode="r"), p, overwrite=True
    ),
    "relabel, by path": lambda p: relabel_sequential_zarr(p, "0", write_to=p, overwrite=True),
    "relabel, from the store around it": lambda p: relabel_sequential_zarr(
        p.parent / "image.zarr", "labels/labels/0",
        write_to=p.parent / "image.zarr" / "labels" / "labels", overwrite=True,
    ),
    "segment a label image": lambda p: tile_process(
        p, components, write_to=p, overwrite=True, progress=False
    ),
    "segment a zarr array of a label image": lambda p: tile_process(
        zarr.open_array(p / "0", mode="r"), components, write_to=p, overwrite=True, progress=False
    ),
}  # fmt: skip


def _link(path):
    link = path.with_name("link.zarr")
    link.symlink_to(path)
    return link


@pytest.mark.parametrize("way", REPLACING)
def test_an_input_is_never_replaced_by_its_own_result(labels, way):
    before = contents(labels.parent / "image.zarr"), contents(labels)
    with pytest.raises(InputError):
        REPLACING[way](labels)
    assert (contents(labels.parent / "image.zarr"), contents(labels)) == before


# --- while running ------------------------------------------------------------------------------


class OnGpu:
    """What cupy.ndarray does when NumPy asks for it."""

    def __init__(self, tile: np.ndarray) -> None:
        self.shape = tile.shape

    def __array__(self, *args: object, **keywords: object) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`.")


BROKEN = {
    "an array on a GPU": (OnGpu, r"a OnGpu that is no array \(.*`\.get\(\)`"),
    "floats": (lambda tile: tile.astype(float), "float64"),
    "bools": (lambda tile: tile > 0, "booleans"),
    "negative": (lambda tile: -components(tile), "negative label"),
    "None": (lambda tile: None, "None"),
    "another shape": (lambda tile: components(tile)[1:], "shape"),
    "another number of axes": (lambda tile: components(tile)[None], "shape"),
    "a number": (lambda tile: 3, "shape"),
    "a tuple with more": (lambda tile: (components(tile), 3), "tuple|shape|array"),
    "a ragged list": (lambda tile: [[1], [1, 2]], "list|shape|array"),
    "text": (lambda tile: "labels", "str|shape"),
    "a dask array": (lambda tile: da.from_array(tile.astype(float)), "float64"),
    "a masked array": (lambda tile: np.ma.masked_equal(tile, 0) / 2, "float64"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_label_image_is_named_with_its_tile_and_function(place, kind):
    fn, message = BROKEN[kind]
    with pytest.raises(SegmenterError, match=message) as caught:
        tile_process(IMAGE, fn, max_workers=1, **KEYWORDS)
    assert f"tile 0 at (0, 0): '{fn.__name__}'" in str(caught.value)


def test_masked_labels_are_background(place):
    def large(tile):
        labels = components(tile)
        return np.ma.masked_where(np.bincount(labels.ravel())[labels] < 40, labels)

    found = tile_process(IMAGE, large, **KEYWORDS | {"overlap": 20}).compute()
    assert same_partition(found, large(IMAGE).filled(0))


def test_a_masked_array_that_masks_nothing_is_an_image(place):
    found = tile_process(np.ma.masked_array(IMAGE), components, **KEYWORDS).compute()
    assert same_partition(found, components(IMAGE))


def test_a_link_that_leads_nowhere_yet_is_followed(place):
    (place / "scratch").mkdir()
    (place / "o.zarr").symlink_to(Path("scratch", "o.zarr"))
    tile_process(IMAGE, components, write_to="o.zarr", **KEYWORDS)
    tile_process(IMAGE, components, write_to="o.zarr", overwrite=True, connectivity=2, **KEYWORDS)
    assert (place / "o.zarr").is_symlink()
    assert [path.name for path in (place / "scratch").iterdir()] == ["o.zarr"]
    assert same_partition(zarr.open_array("o.zarr/0", mode="r")[...], components(IMAGE))


def test_a_link_to_itself_is_refused(place):
    (place / "o.zarr").symlink_to("o.zarr")
    with pytest.raises(InputError, match=r"o\.zarr.*link"):
        tile_process(IMAGE, never, write_to="o.zarr", **KEYWORDS)


def test_no_memory_to_read_a_tile_is_not_the_image_s_fault(place, monkeypatch):
    def fails(*args: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(TileReader, "read", fails)
    with pytest.raises(MemoryBudgetError, match=r"tile \d at .*tile_shape=.*max_workers"):
        tile_process(IMAGE, never, **KEYWORDS)


def test_a_function_that_raises_is_named_with_its_tile_and_its_error(place):
    def breaks(tile):
        raise KeyError("the model")

    with pytest.raises(SegmenterError, match=r"tile 0 at \(0, 0\): .*breaks.*KeyError") as caught:
        tile_process(IMAGE, breaks, max_workers=1, **KEYWORDS)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_done_is_kept_and_a_rerun_goes_on(place, workers):
    broken, calls = place / "broken", place / "calls"
    count = counting(calls)
    broken.touch()

    def reads_a_file(tile):
        if broken.exists() and n_calls(calls) >= 5:
            raise ValueError("not yet")
        return count(tile)

    with pytest.raises(SegmenterError) as caught:
        tile_process(
            IMAGE, reads_a_file, write_to=place / "out.zarr", max_workers=workers, **KEYWORDS
        )
    assert "the same call goes on from there" in "".join(caught.value.__notes__)
    n_done = n_calls(calls)
    broken.unlink()
    tile_process(IMAGE, reads_a_file, write_to=place / "out.zarr", max_workers=workers, **KEYWORDS)
    assert n_calls(calls) == 9
    assert 5 <= n_done < 9


def test_a_failed_run_damages_no_label_image(place):
    before = contents(place / "image.zarr")
    with pytest.raises(SegmenterError):
        tile_process(place / "image.zarr", lambda tile: None, overwrite=True, **KEYWORDS)
    assert contents(place / "image.zarr") == before


def test_a_chunk_that_cannot_be_read_is_named_with_its_tile(place):
    chunk = place / "image.zarr" / "0" / "c" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes()[:7])
    with pytest.raises(PatchworksError, match=r"tile \d+ at .*image\.zarr") as caught:
        tile_process(place / "image.zarr", components, write_to=place / "out.zarr", **KEYWORDS)
    assert "goes on from there" in "".join(caught.value.__notes__)
