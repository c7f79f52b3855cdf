"""Interrupted, killed, called again: the same bytes, and no tile twice."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import dask.array as da
import numpy as np
import pytest
import zarr
from scipy import ndimage

from patchworks import halving, joining, pipeline, tile_process
from patchworks.errors import TargetExistsError
from patchworks.io import label_image, level_store
from tests.stores import blobs, components, contents, counting, files_now, n_calls, ome_zarr

SHAPE = (1100, 700)
KEYWORDS = {
    "tile_shape": (256, 256),
    "overlap": 8,
    "pyramid_levels": 5,
    "max_workers": 1,
    "progress": False,
}
N_TILES = 15


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return blobs(SHAPE, sigma=5)


@pytest.fixture
def store(tmp_path, image) -> Path:
    return Path(ome_zarr(tmp_path / "image.zarr", [image], axes="yx", chunks=(256, 256)))


@pytest.fixture
def undisturbed(tmp_path, store) -> dict:
    """The bytes of a run that nothing interrupts; the function is the same, the place another."""
    run(store, tmp_path / "calls", write_to=tmp_path / "undisturbed.zarr")
    for call in (tmp_path / "calls").iterdir():
        call.unlink()
    return contents(tmp_path / "undisturbed.zarr")


def run(store, calls, **keywords):
    return tile_process(store, counting(calls), **{**KEYWORDS, **keywords})


def interrupt(monkeypatch, owner, name, after):
    """Have the call number `after` + 1 of a function raise KeyboardInterrupt, once."""
    original, seen = getattr(owner, name), []

    def interrupting(*args, **kwargs):
        seen.append(1)
        if len(seen) == after + 1:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupting)


# --- interrupted by hand ------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 7, 14])
def test_only_missing_tiles_are_segmented_after_an_interruption(
    tmp_path, store, undisturbed, monkeypatch, after
):
    with monkeypatch.context() as patch:
        interrupt(patch, halving, "segment_tile", after)
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path / "calls", write_to=tmp_path / "labels.zarr")
    assert n_calls(tmp_path / "calls") == after
    run(store, tmp_path / "calls", write_to=tmp_path / "labels.zarr")
    assert n_calls(tmp_path / "calls") == N_TILES
    assert contents(tmp_path / "labels.zarr") == undisturbed


@pytest.mark.parametrize(
    "owner, name, after",
    [
        (joining, "join_contact", 3),
        (pipeline, "relabel", 0),
        (pipeline, "gather_region", 0),
        (pipeline, "gather_region", 2),
        (pipeline.levels.RegionWriter, "write", 1),
        (pipeline, "pool_labels", 2),
        (pipeline, "build_level", 0),
        (pipeline, "publish", 0),
        (label_image, "label_attributes", 0),
        (level_store.LevelStore, "_move_into_place", 0),
    ],
)
def test_an_interruption_after_the_segmentation_costs_no_tile_and_no_byte(
    tmp_path, store, undisturbed, monkeypatch, owner, name, after
):
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, after)
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path / "calls", write_to=tmp_path / "labels.zarr")
    run(store, tmp_path / "calls", write_to=tmp_path / "labels.zarr")
    assert n_calls(tmp_path / "calls") == N_TILES
    assert contents(tmp_path / "labels.zarr") == undisturbed


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_what_ends_a_run_before_the_last_renaming_costs_no_region(
    tmp_path, store, undisturbed, monkeypatch, kind
):
    """The metadata are written already then, and no longer say that it is being written."""
    place = tmp_path / "labels.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(level_store.LevelStore, "_move_into_place", mock.Mock(side_effect=kind))
        with pytest.raises(kind):
            run(store, tmp_path / "calls", write_to=place)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "gather_region", mock.Mock(side_effect=AssertionError("again")))
        run(store, tmp_path / "calls", write_to=place)
    assert contents(place) == undisturbed


def test_a_label_image_is_not_there_under_its_name_before_it_is_whole(tmp_path, store, monkeypatch):
    interrupt(monkeypatch, pipeline.levels.RegionWriter, "write", 1)
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path / "calls", write_to=tmp_path / "labels.zarr")
    assert not (tmp_path / "labels.zarr").exists()


def test_an_interruption_says_what_is_kept(tmp_path, store, monkeypatch):
    interrupt(monkeypatch, halving, "segment_tile", 4)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(store, tmp_path / "calls", write_to=tmp_path / "labels.zarr")
    assert "4 of 15 tiles are done" in "".join(caught.value.__notes__)


def test_a_label_image_that_was_not_registered_is_registered_by_the_next_call(
    tmp_path, store, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupt(patch, label_image.LabelTarget, "register", 0)
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path / "calls")
    run(store, tmp_path / "calls")
    assert zarr.open_group(store / "labels", mode="r").attrs["ome"]["labels"] == ["labels"]


def test_a_stage_that_was_not_removed_is_removed_by_the_next_call(tmp_path, store, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, label_image.LabelTarget, "register", 0)
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path / "calls")
    run(store, tmp_path / "calls")
    assert not (tmp_path / "image.zarr.stage").exists()


def test_the_label_image_that_is_replaced_stays_until_the_new_one_is_whole(
    tmp_path, store, monkeypatch
):
    place = tmp_path / "labels.zarr"
    tile_process(store, components, **{**KEYWORDS, "overlap": 4}, write_to=place)
    before = contents(place)
    interrupt(monkeypatch, pipeline.levels.RegionWriter, "write", 1)
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path / "calls", write_to=place, overwrite=True)
    assert contents(place) == before


def test_an_interrupted_replacement_goes_on(tmp_path, store, undisturbed, monkeypatch):
    place = tmp_path / "labels.zarr"
    tile_process(store, components, **{**KEYWORDS, "overlap": 4}, write_to=place)
    with monkeypatch.context() as patch:
        interrupt(patch, pipeline.levels.RegionWriter, "write", 1)
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path / "calls", write_to=place, overwrite=True)
    run(store, tmp_path / "calls", write_to=place, overwrite=True)
    assert n_calls(tmp_path / "calls") == N_TILES
    assert contents(place) == undisturbed


def test_two_interrupted_runs_that_share_a_stage_do_not_lose_each_others_regions(
    tmp_path, store, undisturbed, monkeypatch
):
    """Same image, function and tiles, so the same stage; only the label images differ."""
    stage = {"stage_dir": tmp_path / "stage", "output_component": "labels"}
    places = tmp_path / "one.zarr", tmp_path / "two.zarr"
    for place, after in zip(places, (1, 3), strict=True):
        with monkeypatch.context() as patch:
            interrupt(patch, pipeline, "gather_region", after)
            with pytest.raises(KeyboardInterrupt):
                run(store, tmp_path / "calls", write_to=place, **stage)
    run(store, tmp_path / "calls", write_to=places[0], **stage)
    name = "0/c/"
    found = contents(places[0])
    assert [n for n in undisturbed if n.startswith(name) and n not in found] == []


def test_two_interrupted_names_in_one_store_do_not_lose_each_others_regions(
    tmp_path, store, monkeypatch
):
    for name, after in (("one", 1), ("two", 3)):
        with monkeypatch.context() as patch:
            interrupt(patch, pipeline, "gather_region", after)
            with pytest.raises(KeyboardInterrupt):
                run(store, tmp_path / "calls", output_component=name)
    one = run(store, tmp_path / "calls", output_component="one").compute()
    assert np.array_equal(one, run(store, tmp_path / "calls", output_component="ref").compute())


# --- killed -------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from unittest import mock
import numpy as np
from patchworks import halving, joining, pipeline, tile_process
from tests.stores import components, counting

store, target, calls, slow, workers = sys.argv[1:]
module = next(m for m in (pipeline, halving) if hasattr(m, slow))
original = getattr(module, slow)

def slowly(*args, **kwargs):
    time.sleep(0.15)
    return original(*args, **kwargs)

setattr(module, slow, slowly)
tile_process(store, counting(Path(calls)), tile_shape=(256, 256), overlap=8, pyramid_levels=5,
             max_workers=int(workers), progress=False, write_to=target)
"""


def start_child(*args) -> subprocess.Popen:
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, args)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def kill_when(child, ready, timeout=60):
    """Kill the child with SIGKILL as soon as `ready()`."""
    end = time.monotonic() + timeout
    while not ready():
        assert child.poll() is None, "the child ended before it could be killed"
        assert time.monotonic() < end, "the child never got there"
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def marks(folder: Path, pattern: str) -> int:
    return len(files_now(folder, pattern))


@pytest.mark.parametrize("n_records, workers", [(1, 1), (6, 2), (13, 1)])
def test_a_killed_segmentation_goes_on_with_the_same_bytes(
    tmp_path, store, undisturbed, n_records, workers
):
    place, stage = tmp_path / "labels.zarr", tmp_path / "labels.zarr.stage"
    child = start_child(store, place, tmp_path / "calls", "segment_tile", workers)
    kill_when(child, lambda: marks(stage, "records/*/*.rec") >= n_records)
    n_done = marks(stage, "records/*/*.rec")
    before = n_calls(tmp_path / "calls")
    run(store, tmp_path / "calls", write_to=place)
    assert n_calls(tmp_path / "calls") - before == N_TILES - n_done
    assert contents(place) == undisturbed


@pytest.mark.parametrize("n_regions", [0, 1, 3])
def test_a_killed_merge_pass_goes_on_with_the_same_bytes(tmp_path, store, undisturbed, n_regions):
    place, stage = tmp_path / "labels.zarr", tmp_path / "labels.zarr.stage"
    child = start_child(store, place, tmp_path / "calls", "gather_region", 1)
    kill_when(
        child,
        lambda: marks(stage, "regions/relabeling") and marks(stage, "regions/0*") >= n_regions,
    )
    run(store, tmp_path / "calls", write_to=place)
    assert n_calls(tmp_path / "calls") == N_TILES
    assert contents(place) == undisturbed


@pytest.mark.parametrize("name, after", [("gather_region", 1), ("build_level", 0)])
def test_chunks_that_a_kill_cut_off_are_written_anew(
    tmp_path, store, undisturbed, monkeypatch, name, after
):
    place = tmp_path / "labels.zarr"
    with monkeypatch.context() as patch:
        interrupt(patch, pipeline, name, after)
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path / "calls", write_to=place)
    (partial,) = tmp_path.glob(".labels.zarr.*.partial")
    cut_off = [name for name in chunk_files_of(undisturbed) if not (partial / name).exists()]
    assert cut_off
    for chunk in cut_off:
        (partial / chunk).parent.mkdir(parents=True, exist_ok=True)
        (partial / chunk).write_bytes(b"cut")
    run(store, tmp_path / "calls", write_to=place)
    assert contents(place) == undisturbed


def chunk_files_of(held: dict) -> list[str]:
    return [name for name, content in held.items() if content and "/c/" in name]


def test_a_rerun_after_a_kill_leaves_nothing_beside_the_labels(tmp_path, store):
    place, stage = tmp_path / "labels.zarr", tmp_path / "labels.zarr.stage"
    child = start_child(store, place, tmp_path / "calls", "gather_region", 1)
    kill_when(child, lambda: marks(stage, "regions/0*") >= 1)
    run(store, tmp_path / "calls", write_to=place)
    assert {p.name for p in tmp_path.iterdir()} == {"image.zarr", "labels.zarr", "calls"}


# --- finished, and what counts as the same run --------------------------------------------------


def test_a_finished_run_is_returned_without_calling_the_function(tmp_path, store):
    first = run(store, tmp_path / "calls").compute()
    again = run(store, tmp_path / "calls").compute()
    assert n_calls(tmp_path / "calls") == N_TILES
    assert np.array_equal(first, again)


def test_a_finished_run_is_returned_without_a_byte_written(tmp_path, store):
    run(store, tmp_path / "calls")
    before = contents(store)
    run(store, tmp_path / "calls")
    assert contents(store) == before


def test_resume_false_starts_over(tmp_path, store, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, halving, "segment_tile", 5)
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path / "calls")
    run(store, tmp_path / "calls", resume=False)
    assert n_calls(tmp_path / "calls") == 5 + N_TILES


def test_resume_false_does_a_finished_run_again(tmp_path, store):
    run(store, tmp_path / "calls")
    run(store, tmp_path / "calls", resume=False)
    assert n_calls(tmp_path / "calls") == 2 * N_TILES


def above(tile, limit):
    return ndimage.label(tile > limit)[0]


class Above:
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, tile):
        return above(tile, self.limit)

    def segment(self, tile):
        return above(tile, self.limit)


def closure_above(limit):
    return lambda tile: ndimage.label(tile > limit)[0]


VARIANTS = {
    "closure value": (closure_above(120), closure_above(150)),
    "bound argument": (functools.partial(above, limit=120), functools.partial(above, limit=150)),
    "attribute of an object": (Above(120), Above(150)),
    "object of a bound method": (Above(120).segment, Above(150).segment),
    "code": (lambda tile: ndimage.label(tile > 120)[0], lambda tile: ndimage.label(tile > 150)[0]),
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_function_that_differs_in_its(kind, tmp_path, store):
    first, second = VARIANTS[kind]
    tile_process(store, first, **KEYWORDS)
    with pytest.raises(TargetExistsError):
        tile_process(store, second, **KEYWORDS)


@pytest.mark.parametrize(
    "change",
    [
        {"tile_shape": (300, 256)},
        {"overlap": 4},
        {"overlap": 0},
        {"connectivity": 2},
        {"stitch": "touch"},
        {"pyramid_levels": 2},
        {"pyramid_downscale": 3},
        {"skip_empty": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_run_with_another_argument_is_another_run(tmp_path, store, change):
    run(store, tmp_path / "calls")
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        run(store, tmp_path / "calls", **change)


def test_the_number_of_workers_makes_no_other_run(tmp_path, store):
    run(store, tmp_path / "calls")
    run(store, tmp_path / "calls", max_workers=2)
    assert n_calls(tmp_path / "calls") == N_TILES


def test_an_image_that_was_written_anew_is_not_taken_for_the_old_one(tmp_path, store, image):
    run(store, tmp_path / "calls")
    zarr.open_array(store / "0", mode="r+")[:256, :256] = image[:256, :256][::-1]
    with pytest.raises(TargetExistsError):
        run(store, tmp_path / "calls")


def test_tiles_of_an_image_that_was_written_anew_are_not_reused(
    tmp_path, store, image, monkeypatch
):
    place = tmp_path / "labels.zarr"
    with monkeypatch.context() as patch:
        interrupt(patch, halving, "segment_tile", 5)
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path / "calls", write_to=place)
    zarr.open_array(store / "0", mode="r+")[...] = image[::-1]
    run(store, tmp_path / "calls", write_to=place)
    assert n_calls(tmp_path / "calls") == 5 + N_TILES


def test_a_numpy_image_with_other_values_is_another_image(tmp_path, image):
    place = tmp_path / "labels.zarr"
    tile_process(image, components, **KEYWORDS, write_to=place)
    other = image.copy()
    other[5, 5] ^= 1
    with pytest.raises(TargetExistsError):
        tile_process(other, components, **KEYWORDS, write_to=place)


def test_a_dask_array_over_a_store_that_was_written_anew_is_another_image(tmp_path, store, image):
    place = tmp_path / "labels.zarr"
    tile_process(da.from_zarr(str(store / "0")), components, **KEYWORDS, write_to=place)
    zarr.open_array(store / "0", mode="r+")[...] = image[::-1]
    with pytest.raises(TargetExistsError):
        tile_process(da.from_zarr(str(store / "0")), components, **KEYWORDS, write_to=place)


def test_a_remote_image_of_which_one_chunk_was_written_anew_is_another_image(tmp_path, image):
    url = f"memory://{tmp_path.name}/image.zarr"
    ome_zarr(url, [image], axes="yx", chunks=(100, 100))
    tile_process(url, components, **KEYWORDS, write_to=tmp_path / "labels.zarr")
    zarr.open_group(url, mode="r+")["0"][100:200, 100:200] = 0
    with pytest.raises(TargetExistsError):
        tile_process(url, components, **KEYWORDS, write_to=tmp_path / "labels.zarr")


def test_a_dask_image_made_the_same_way_again_is_the_same_image(tmp_path, image):
    place, calls = tmp_path / "labels.zarr", tmp_path / "calls"
    for _ in range(2):
        run(da.from_array(image, chunks=(256, 256)), calls, write_to=place)
    assert n_calls(calls) == N_TILES


def test_overwrite_replaces_the_label_image_of_another_run(tmp_path, store, undisturbed):
    place = tmp_path / "labels.zarr"
    tile_process(store, closure_above(150), **KEYWORDS, write_to=place)
    run(store, tmp_path / "calls", write_to=place, overwrite=True)
    assert contents(place) == undisturbed


def test_a_kept_stage_serves_the_next_run_of_the_same_tiles(tmp_path, store):
    run(store, tmp_path / "calls", keep_stage=True)
    run(store, tmp_path / "calls", overwrite=True, pyramid_levels=2)
    assert n_calls(tmp_path / "calls") == N_TILES
