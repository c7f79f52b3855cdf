"""A run in a process of its own: what it tells, how it is stopped, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from patchworks import load_ome_zarr, tile_process
from patchworks.io.source import open_source
from patchworks.plugins.napari.run import Run
from patchworks.plugins.napari.target import CopyOfLayer
from tests.stores import blobs, components, ome_zarr

ROOT = Path(__file__).parents[2]
IMAGE = blobs((60, 80), seed=3)
THRESHOLD = {"name": "threshold", "value": 0}
TILES = {"tile_shape": [30, 40], "overlap": 8}

SLOW = """
import time, os
from pathlib import Path
from scipy import ndimage

def make(folder, seconds):
    def slow(tile):
        Path(folder, f"{time.monotonic_ns()}").touch()
        time.sleep(seconds)
        return ndimage.label(tile > 0)[0]
    return slow

def dies(tile):
    os._exit(7)
"""


def in_memory(image=IMAGE, axes=("y", "x")):
    sizes = {"scale": (0.5,) * image.ndim, "translate": (3.0,) * image.ndim}
    units = ("micrometer",) * image.ndim
    return SimpleNamespace(data=image, multiscale=False, axis_labels=axes, units=units, **sizes)


def test_a_function_is_told_how_far_a_run_is():
    told = []
    tile_process(
        IMAGE, components, tile_shape=(30, 40), overlap=8,
        progress=lambda *said: told.append(said),
    )  # fmt: skip
    assert [said for said in told if said[0] == "segment"][-1] == ("segment", 4, 4)
    assert {step for step, _, _ in told} >= {"segment", "merge"}
    assert all(0 <= n_done <= n_total for _, n_done, n_total in told)


def test_a_layer_in_memory_is_copied_once_and_segmented_as_ever():
    copy = CopyOfLayer(in_memory())
    labels = copy.labels("cells")
    run = Run(
        lambda is_stopped: str(copy.write(is_stopped)), THRESHOLD, {**TILES, "write_to": labels},
        labels,
    )  # fmt: skip
    run.start()
    assert not run.how_far.is_over
    found = run.wait(60)
    expected = components(IMAGE)
    assert (found.state, found.message) == ("done", "")
    assert found.n_objects == expected.max()
    made = np.asarray(load_ome_zarr(labels, channel=None))
    np.testing.assert_array_equal(made > 0, expected > 0)
    np.testing.assert_array_equal(load_ome_zarr(copy.place), IMAGE)


@pytest.mark.parametrize("image", [IMAGE, blobs((2, 5, 30, 40)), IMAGE.astype("ulonglong")])
def test_a_copy_holds_the_layer_and_its_time_axis(image):
    layer = in_memory(image, ("t", "z", "y", "x")[-image.ndim :])
    copy = CopyOfLayer(layer)
    np.testing.assert_array_equal(load_ome_zarr(copy.write(lambda: False)), image)
    source = open_source(copy.place, channel=None, level=0)
    assert source.time_axis == (0 if image.ndim == 4 else None)
    assert set(source.calibration.scale) == {0.5}
    assert set(source.calibration.translation) == {3.0}
    stopped = CopyOfLayer(layer)
    stopped.write(lambda: True)
    assert not stopped.place.exists()


def test_an_error_of_ours_arrives_as_it_is(tmp_path):
    store = ome_zarr(tmp_path / "a.zarr", [IMAGE])
    run = Run(lambda _: store, THRESHOLD, {"overlap": -1}, f"{store}/labels/labels")
    run.start()
    found = run.wait(60)
    assert found.state == "failed"
    with pytest.raises(ValueError) as said:  # the same from here
        tile_process(store, components, overlap=-1)
    assert found.message == str(said.value)


def a_slow_run(folder, monkeypatch, seconds=1.0):
    (folder / "slow_cells.py").write_text(SLOW)
    (folder / "calls").mkdir(exist_ok=True)
    monkeypatch.syspath_prepend(str(folder))
    store = str(folder / "a.zarr")
    if not Path(store).exists():
        ome_zarr(store, [IMAGE])
    spec = {"import": "slow_cells:make", "kwargs": {"folder": str(folder / "calls")}}
    spec["kwargs"]["seconds"] = seconds
    options = {"tile_shape": [15, 20], "overlap": 4, "max_workers": 1}
    return Run(lambda _: store, spec, options, f"{store}/labels/labels")


def n_calls(folder):
    return len(list((folder / "calls").iterdir()))


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
class TestStopping:
    def test_it_ends_at_once_and_goes_on_from_there(self, tmp_path, monkeypatch):
        run = a_slow_run(tmp_path, monkeypatch)
        run.start()
        until(lambda: run.how_far.n_done >= 3)
        start = time.monotonic()
        run.stop()
        assert time.monotonic() - start < 0.2
        assert run.how_far.state == "stopping"
        assert run.wait(20).state == "stopped"
        assert time.monotonic() - start < 5
        before = n_calls(tmp_path)
        time.sleep(2)
        assert n_calls(tmp_path) == before  # nothing goes on behind
        again = a_slow_run(tmp_path, monkeypatch, seconds=1.0)
        again.start()
        assert again.wait(120).state == "done"
        assert 16 <= n_calls(tmp_path) <= 17 + 1

    def test_before_it_has_begun(self, tmp_path, monkeypatch):
        run = a_slow_run(tmp_path, monkeypatch)
        run.start()
        run.stop()
        assert run.wait(20).state == "stopped"
        assert n_calls(tmp_path) == 0

    def test_one_that_does_not_listen_is_killed(self, tmp_path, monkeypatch):
        run = a_slow_run(tmp_path, monkeypatch, seconds=60)
        monkeypatch.setattr("patchworks.plugins.napari.run.KILL_S", 0.5)
        run.start()
        until(lambda: n_calls(tmp_path))
        os.kill(run._process.pid, signal.SIGSTOP)
        run.stop()
        assert run.wait(20).state == "stopped"

    def test_a_process_that_dies_is_told_of(self, tmp_path, monkeypatch):
        run = a_slow_run(tmp_path, monkeypatch)
        run._job["segmenter"] = "slow_cells:dies"
        run.start()
        found = run.wait(60)
        assert found.state == "failed"
        assert "ended with code 7" in found.message

    def test_it_ends_with_the_program_that_started_it(self, tmp_path, monkeypatch):
        run = a_slow_run(tmp_path, monkeypatch)
        job = {**run._job, "image": str(tmp_path / "a.zarr")}
        (tmp_path / "job.json").write_text(json.dumps(job))
        code = (
            "import subprocess, sys, time\n"
            "p = subprocess.Popen([sys.executable, '-m', 'patchworks.job', 'job.json'],"
            " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "print(p.pid, flush=True)\n"
            "time.sleep(600)\n"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        )  # fmt: skip
        child = psutil.Process(int(parent.stdout.readline()))
        until(lambda: n_calls(tmp_path))
        parent.kill()
        parent.communicate()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)
