"""Killed anywhere, continued by the same call: the same bytes, and no tile done twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy import ndimage

from patchworks import tile_process
from patchworks.errors import SegmenterError
from patchworks.execution.machine import available_cores
from patchworks.execution.overlap import io_threads
from tests.images import above_1100, files_of, ome_zarr, smooth_noise
from tests.stores import files_now

ROOT = Path(__file__).parents[1]
IMAGE = smooth_noise()
RUN = {"tile_shape": (8, 32, 32), "overlap": 4, "progress": False}
N_TILES = 3 * 3 * 3

PROGRAM = """
import sys, time
from pathlib import Path
from scipy import ndimage
from patchworks import tile_process, pipeline

folder = Path()
pool = pipeline.pool_labels

def slow_pool(labels, factor):
    time.sleep(0.05)
    return pool(labels, factor)

pipeline.pool_labels = slow_pool

def segment(tile):
    with (folder / "calls").open("a") as calls:
        calls.write("x")
    time.sleep(0.02)
    return ndimage.label(tile > 1100)[0]

tile_process(folder / "image.zarr", segment, tile_shape=(8, 32, 32), overlap=4, progress=False)
"""


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (folder / "program.py").write_text(PROGRAM)  # a file: its source is part of the fingerprint
    command = [sys.executable, "program.py"]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE)


def finish(folder: Path) -> None:
    process = start(folder)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def records(folder: Path) -> int:
    return len(files_now(folder / "image.zarr.stage", "*.rec"))


def regions(folder: Path) -> int:
    marks = files_now(folder / "image.zarr.stage", "regions/*")
    return len([mark for mark in marks if mark.name.isdigit()])


@pytest.mark.parametrize("moment", ["after 1 tile", "after 13 tiles", "after 26 tiles", "merge"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, moment):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
        ome_zarr(folder / "image.zarr", IMAGE)
        for path in sorted((folder / "image.zarr" / "0").rglob("*")):
            os.utime(path, (1e9, 1e9))  # the fingerprint is part of the bytes
    finish(undisturbed)
    n_tiles = {"after 1 tile": 1, "after 13 tiles": 13}.get(moment, 26)
    with start(killed) as process:
        while process.poll() is None:
            if records(killed) >= n_tiles and (moment != "merge" or regions(killed) >= 1):
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "image.zarr" / "labels" / "labels").exists()
    done, begun = records(killed), len((killed / "calls").read_text())
    finish(killed)
    assert len((killed / "calls").read_text()) == begun + N_TILES - done
    n_cores = available_cores()  # tiles in the function, and tiles being staged
    assert begun - done <= n_cores + io_threads(n_cores)
    ours, theirs = files_of(undisturbed / "image.zarr"), files_of(killed / "image.zarr")
    assert ours == theirs
    assert not (killed / "image.zarr.stage").exists()


def test_a_stopped_run_says_how_to_go_on_and_does(tmp_path):
    calls = []

    def segment(tile: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return above_1100(tile)

    store = ome_zarr(tmp_path / "image.zarr", IMAGE)
    with pytest.raises(KeyboardInterrupt) as caught:
        tile_process(store, segment, max_workers=1, **RUN)
    assert "4 of 27 tiles are done and kept in" in caught.value.__notes__[0]


def test_tiles_that_are_done_survive_a_failure_and_are_not_done_again(tmp_path):
    healed, calls = tmp_path / "healed", []

    def segment(tile: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 5 and not healed.exists():
            raise RuntimeError("a bad moment")
        return above_1100(tile)

    run = {"write_to": tmp_path / "o.zarr", "max_workers": 1, **RUN}
    with pytest.raises(SegmenterError, match=r"tile 4 at .*segment.* raised RuntimeError"):
        tile_process(IMAGE, segment, **run)
    healed.touch()
    labels = tile_process(IMAGE, segment, **run)
    assert len(calls) == N_TILES + 1
    assert labels.max().compute() == above_1100(IMAGE).max()


def test_a_function_that_was_changed_between_two_calls_is_another_one(tmp_path):
    calls, options = [], {"value": 1100}

    def segment(tile: np.ndarray) -> np.ndarray:
        calls.append(1)
        return ndimage.label(tile > options["value"])[0]

    run = {"write_to": tmp_path / "o.zarr", **RUN}
    tile_process(IMAGE, segment, **run)
    tile_process(IMAGE, segment, **run)
    assert len(calls) == N_TILES
    options["value"] = 1200
    tile_process(IMAGE, segment, overwrite=True, **run)
    assert len(calls) == 2 * N_TILES


def thresholds(value: int, calls: list[int]):
    class Counting:
        """Its list of calls is no part of what it is."""

        def __call__(self, tile: np.ndarray) -> np.ndarray:
            calls.append(value)
            return ndimage.label(tile > value)[0]

        def __reduce__(self):
            return thresholds, (value, [])

    return Counting()


def test_a_finished_run_is_returned_and_nothing_is_segmented(tmp_path):
    store, calls = ome_zarr(tmp_path / "image.zarr", IMAGE), []
    first = tile_process(store, thresholds(1100, calls), **RUN).compute()
    assert len(calls) == N_TILES
    again = tile_process(store, thresholds(1100, calls), **RUN).compute()
    assert len(calls) == N_TILES
    np.testing.assert_array_equal(first, again)


def test_resume_false_starts_over(tmp_path):
    store, calls = ome_zarr(tmp_path / "image.zarr", IMAGE), []
    for _ in range(2):
        tile_process(store, thresholds(1100, calls), resume=False, **RUN)
    assert len(calls) == 2 * N_TILES


@pytest.mark.parametrize(
    "change", ["function", "overlap", "tiles", "image", "connectivity and touch"]
)
def test_another_run_uses_nothing_of_an_interrupted_one(tmp_path, change):
    store, calls = ome_zarr(tmp_path / "image.zarr", IMAGE), []
    run = {**RUN, "max_workers": 1}

    def stops(tile: np.ndarray) -> np.ndarray:
        if len(calls) == 5:
            raise KeyboardInterrupt
        return thresholds(1100, calls)(tile)

    with pytest.raises(KeyboardInterrupt):
        tile_process(store, stops, **run)
    calls.clear()
    if change == "image":
        zarr.open_group(store, mode="r+")["0"][0, 0, 0] = 7
    changed = {
        "overlap": {"overlap": 5},
        "tiles": {"tile_shape": (8, 32, 33)},
        "connectivity and touch": {"stitch": "touch", "connectivity": 2},
    }.get(change, {})
    fn = thresholds(1200, calls) if change == "function" else thresholds(1100, calls)
    tile_process(store, fn, **{**run, **changed})
    assert len(calls) == N_TILES


def test_an_image_that_was_written_anew_is_segmented_anew(tmp_path):
    store, calls = ome_zarr(tmp_path / "image.zarr", IMAGE), []
    tile_process(store, thresholds(1100, calls), **RUN)
    zarr.open_group(store, mode="r+")["0"][...] = 0
    labels = tile_process(store, thresholds(1100, calls), overwrite=True, **RUN)
    assert len(calls) == 2 * N_TILES
    assert labels.max().compute() == 0


@pytest.mark.slow
def test_ten_random_kills_and_the_same_bytes(tmp_path):
    ome_zarr(tmp_path / "image.zarr", IMAGE)
    for _ in range(10):
        process = start(tmp_path)
        time.sleep(random.uniform(1.0, 2.5))
        process.kill()
        process.communicate()
    finish(tmp_path)
    killed = zarr.open_group(tmp_path / "image.zarr" / "labels" / "labels", mode="r")["0"][...]
    whole = tile_process(IMAGE, above_1100, **RUN).compute()
    np.testing.assert_array_equal(killed, whole)
