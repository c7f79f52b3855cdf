"""Bad input: an error of the project's own, before any work, and nothing written or damaged."""

import os
import subprocess
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client

from patchworks import errors, merge_tile_labels, tile_process
from tests.images import above_1100, files_of, ome_zarr, smooth_noise

IMAGE = smooth_noise((40, 40))


def never(tile: np.ndarray) -> np.ndarray:
    raise AssertionError("the function was called for bad input")


def tree(folder: Path) -> dict[str, bytes]:
    folders = {str(p): b"" for p in folder.rglob("*") if p.is_dir()}
    return {**folders, **files_of(folder)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an image of two channels, an array, another file, and another folder."""
    ome_zarr(tmp_path / "image.zarr", np.stack([IMAGE, IMAGE]), axes="cyx")
    zarr.create_array(tmp_path / "array.zarr", data=IMAGE, chunks=(20, 20))
    ome_zarr(tmp_path / "series.zarr", np.stack([IMAGE, IMAGE]), axes="tyx")
    group = zarr.open_group(tmp_path / "two.zarr", mode="w")
    group.create_array("a", data=IMAGE)
    group.create_array("b", data=IMAGE)
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept.txt").write_text("kept")
    monkeypatch.chdir(tmp_path)
    return tmp_path


INPUT, MISSING, EXISTS, UNWRITABLE = (
    errors.InputError,
    errors.SourceNotFoundError,
    errors.TargetExistsError,
    errors.TargetNotWritableError,
)

REFUSED = {
    "a missing path": ("nowhere.zarr", {}, MISSING, "nowhere.zarr: there is nothing"),
    "a file": ("notes.txt", {}, MISSING, "not a zarr store"),
    "a folder": ("folder", {}, MISSING, "not a zarr store"),
    "an unknown protocol": ("nosuch://x", {}, INPUT, "nosuch:// is no protocol"),
    "a group of two arrays": ("two.zarr", {}, INPUT, r"two\.zarr/a"),
    "tiles of several time points": (
        "series.zarr", {"tile_shape": (2, 9, 9)}, INPUT, "give 1 there",
    ),
    "a list": ([[1]], {}, INPUT, "type list"),
    "no voxels": (np.empty((0, 3)), {}, INPUT, r"shape \(0, 3\)"),
    "no axes": (np.array(1), {}, INPUT, r"shape \(\)"),
    "one axis": (np.ones(3), {}, INPUT, r"shape \(3,\)"),
    "six axes": (np.ones((1,) * 6), {}, INPUT, "2 to 5 axes"),
    "complex numbers": (np.ones((3, 3), complex), {}, INPUT, "complex128"),
    "unknown chunks": (da.ones((9, 9))[da.ones(9) > 0], {}, INPUT, "compute_chunk_sizes"),
    "a tile of one axis": (IMAGE, {"tile_shape": (9,)}, INPUT, "expected 2 integers"),
    "a tile of no voxels": (IMAGE, {"tile_shape": (0, 9)}, INPUT, "1 voxel or more"),
    "a negative tile": (IMAGE, {"tile_shape": (-9, 9)}, INPUT, "1 voxel or more"),
    "a tile of floats": (IMAGE, {"tile_shape": (9.0, 9)}, INPUT, "expected 2 integers"),
    "an unknown tile": (IMAGE, {"tile_shape": "large"}, INPUT, "'auto'"),
    "a negative overlap": (IMAGE, {"overlap": -1}, INPUT, "integer >= 0"),
    "an overlap too many": (IMAGE, {"overlap": (1, 1, 1)}, INPUT, "or 2 of them"),
    "an overlap of a float": (IMAGE, {"overlap": 1.5}, INPUT, "integer >= 0"),
    "an overlap beyond the tile": (
        IMAGE, {"tile_shape": (9, 9), "overlap": 10}, INPUT, "10 voxels on axis 0 exceed the tile",
    ),
    "a channel too high": ("image.zarr", {"channel": 2}, INPUT, r"2 channel\(s\), 0 to 1"),
    "a negative channel": ("image.zarr", {"channel": -1}, INPUT, r"2 channel\(s\)"),
    "a channel of an array": (IMAGE, {"channel": 1}, INPUT, "no channel axis"),
    "a level too high": ("image.zarr", {"level": 1}, INPUT, r"1 level\(s\)"),
    "a negative level": ("image.zarr", {"level": -1}, INPUT, r"1 level\(s\)"),
    "an unknown stitch": (IMAGE, {"stitch": "glue"}, INPUT, "'touch'"),
    "an overlap that is not there": (
        IMAGE, {"stitch": "overlap", "overlap": 0, "tile_shape": (9, 9)}, INPUT,
        "no overlap on axis 0",
    ),
    "a connectivity too high": (IMAGE, {"connectivity": 3}, INPUT, "from 1 to 2"),
    "no levels": (IMAGE, {"pyramid_levels": 0}, INPUT, "from 1"),
    "no workers": (IMAGE, {"max_workers": 0}, INPUT, "max_workers=0"),
    "a threshold that is no number": (
        IMAGE, {"skip_empty": True, "empty_threshold": float("nan")}, INPUT, "finite",
    ),
    "a negative threshold": (IMAGE, {"empty_threshold": -1}, INPUT, "empty_threshold=-1"),
    "a name with a slash": ("image.zarr", {"output_component": "a/b"}, INPUT, "plain name"),
    "a name upwards": ("image.zarr", {"output_component": ".."}, INPUT, "plain name"),
    "no place in an array": ("array.zarr", {}, INPUT, "write_to="),
    "the image itself": ("image.zarr", {"write_to": "image.zarr"}, INPUT, "image itself"),
    "a folder of the user's": (IMAGE, {"write_to": "folder", "overwrite": True}, INPUT, "never"),
    "another image": (IMAGE, {"write_to": "image.zarr", "overwrite": True}, INPUT, "never"),
    "a place below a file": (IMAGE, {"write_to": "notes.txt/o.zarr"}, UNWRITABLE, "write_to="),
    "a place nobody can write": (IMAGE, {"write_to": "/proc/o.zarr"}, UNWRITABLE, "write_to="),
    "a stage below a file": (
        IMAGE, {"write_to": "o.zarr", "stage_dir": "notes.txt"}, UNWRITABLE, "stage_dir=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_any_work(place, case):
    image, keywords, error, message = REFUSED[case]
    before = tree(place)
    with pytest.raises(error, match=message) as caught:
        tile_process(image, never, **{"channel": 0, "progress": False, **keywords})
    assert isinstance(caught.value, errors.PatchworksError)
    assert tree(place) == before


@pytest.mark.parametrize("fn", [None, 3, "threshold"])
def test_a_function_that_is_none_is_refused(place, fn):
    before = tree(place)
    with pytest.raises(INPUT, match="not callable"):
        tile_process("image.zarr", fn, progress=False)
    assert tree(place) == before


def test_labels_of_another_run_are_replaced_only_when_asked(place):
    tile_process("image.zarr", above_1100, progress=False)
    before = tree(place)
    with pytest.raises(EXISTS, match="overwrite=True"):
        tile_process("image.zarr", never, progress=False)
    assert tree(place) == before
    tile_process("image.zarr", lambda t: (t > 900).astype(int), progress=False, overwrite=True)
    assert tree(place) != before


def test_a_failed_replacement_leaves_what_was_there(place):
    tile_process("image.zarr", above_1100, progress=False)
    before = files_of(place / "image.zarr")
    with pytest.raises(errors.SegmenterError):
        tile_process("image.zarr", never, progress=False, overwrite=True)
    assert files_of(place / "image.zarr") == before


def test_a_read_only_file_system_is_refused(place):
    """A real one: permissions do not stop root."""
    mounted = place / "mounted"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a read-only tmpfs is not permitted here")
    try:
        with pytest.raises(UNWRITABLE, match=r"Read-only file system.*write_to="):
            tile_process(IMAGE, never, write_to=mounted / "o.zarr", progress=False)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_an_in_process_client_is_refused_with_the_way_out(place):
    before = tree(place)
    with Client(processes=False, dashboard_address="127.0.0.1:0"):
        with pytest.raises(errors.ClientError, match="make_local_cluster"):
            tile_process("image.zarr", never, progress=False)
        with pytest.raises(errors.ClientError, match="make_local_cluster"):
            merge_tile_labels(da.zeros((8, 8), chunks=4, dtype=int))
    assert tree(place) == before


def test_a_gpu_that_is_not_there_is_no_silent_run_without(place, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises((errors.ClientError, errors.MissingExtraError), match="use_gpu"):
        tile_process("image.zarr", never, use_gpu=True, progress=False)


RETURNED = {
    "nothing": (lambda t: None, "None; return the labels"),
    "another shape": (lambda t: t[1:], r"shape \(\d+, \d+\) for a tile of"),
    "floats": (lambda t: t / 2, "float64; return integers"),
    "booleans": (lambda t: t > 0, r"booleans.*scipy\.ndimage\.label"),
    "negative labels": (lambda t: -t.astype(int), "the negative label -"),
    "an exception": (lambda t: t.nosuch, "raised AttributeError.*nosuch"),
}


@pytest.mark.parametrize("case", RETURNED)
def test_what_is_no_label_image_names_tile_position_and_function(place, case):
    fn, message = RETURNED[case]
    run = {"tile_shape": (20, 20), "overlap": 2, "max_workers": 1, "progress": False}
    with pytest.raises(errors.SegmenterError, match=f"tile 0 at .0, 0.: '<lambda>' .*{message}"):
        tile_process(IMAGE, fn, write_to=place / "o.zarr", **run)
    assert not (place / "o.zarr").exists()


@pytest.mark.parametrize(
    ("labeled", "keywords", "message"),
    [
        (da.ones((8, 8), chunks=4), {}, "float64; labels are integers"),
        (da.ones((8, 8), chunks=4, dtype=int), {"overlap": -1}, "overlap=-1"),
        (da.ones((8, 8), chunks=4, dtype=int), {"overlap": 4}, "overlap=4"),
        ("image.zarr", {"input_component": "nosuch"}, "no array 'nosuch'"),
        ("image.zarr", {"input_component": "0", "overlap": 1}, "no halo"),
        (np.ones((8, 8), int), {}, "one tile"),
        ("nowhere.zarr", {}, "there is nothing"),
    ],
)
def test_what_cannot_be_merged_is_refused(place, labeled, keywords, message):
    before = tree(place)
    with pytest.raises(errors.PatchworksError, match=message):
        merge_tile_labels(labeled, "merged.zarr", **keywords)
    assert tree(place) == before
