"""Worker processes: chosen where a function holds the interpreter's lock, and the same labels."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from patchworks import engine, tile_process
from patchworks.errors import ClientError, InputError, SegmenterError
from tests.stores import blobs, components, contents, ome_zarr

IMAGE = blobs((30, 90, 70))
KEYWORDS = {"tile_shape": (15, 32, 32), "overlap": 4, "progress": False, "pyramid_levels": 3}
ROOT = Path(__file__).parents[1]


@pytest.fixture
def held(monkeypatch):
    """As if every function held the lock, and it were worth while to leave."""
    monkeypatch.setattr(engine, "WATCH_S", 0.0001)
    monkeypatch.setattr(engine, "START_S", -1.0)
    monkeypatch.setattr(engine.LockWatch, "is_held", property(lambda self: True))


def test_what_a_worker_process_imports_is_little():
    program = "import sys, patchworks.pipeline; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    roots = {name.split(".")[0] for name in done.stdout.split()}
    assert {"numpy", "zarr"} <= roots
    assert not {"scipy", "dask", "distributed", "pandas", "torch"} & roots


def levels(place):
    return {name: held for name, held in contents(place).items() if "/c/" in name}


def run(tmp_path, name, image=IMAGE, **keywords):
    place = tmp_path / f"{name}.zarr"
    tile_process(image, components, write_to=place, max_workers=2, **KEYWORDS, **keywords)
    return levels(place)


@pytest.mark.parametrize("kind", ["numpy", "store"])
def test_every_engine_writes_the_same_bytes(tmp_path, held, caplog, kind):
    image = (
        IMAGE if kind == "numpy" else ome_zarr(tmp_path / "i.zarr", [IMAGE], chunks=(15, 32, 32))
    )
    expected = run(tmp_path, "threads", image, engine="threads")
    assert expected
    assert run(tmp_path, "processes", image, engine="processes") == expected
    with caplog.at_level(logging.INFO, "patchworks"):
        assert run(tmp_path, "auto", image) == expected
    said = [r.getMessage() for r in caplog.records if "interpreter's lock" in r.getMessage()]
    assert len(said) == 1, "the choice is one line"
    assert "'components'" in said[0]
    assert "go to 2 worker processes" in said[0]


def test_a_function_that_leaves_the_lock_stays_on_threads(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(engine, "ProcessExecutor", None)
    monkeypatch.setattr(engine, "WATCH_S", 0.0001)
    with caplog.at_level(logging.INFO, "patchworks"):
        run(tmp_path, "auto")
    assert any(r.getMessage().endswith("of its time: threads") for r in caplog.records)


@pytest.mark.parametrize("keywords", [{"max_workers": 1}, {"max_workers": 2, "engine": "threads"}])
def test_one_worker_and_threads_start_no_process(tmp_path, held, monkeypatch, keywords):
    monkeypatch.setattr(engine, "ProcessExecutor", None)
    tile_process(IMAGE, components, write_to=tmp_path / "l.zarr", **KEYWORDS, **keywords)


class WithLock:
    """A function that cannot be pickled."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, tile):
        with self.lock:
            return components(tile)


def test_what_cannot_be_sent_stays_and_the_log_says_why(tmp_path, held, caplog):
    with caplog.at_level(logging.INFO, "patchworks"):
        tile_process(IMAGE, WithLock(), write_to=tmp_path / "l.zarr", max_workers=2, **KEYWORDS)
    said = [r.getMessage() for r in caplog.records if "interpreter's lock" in r.getMessage()]
    assert len(said) == 1
    assert "threads, though processes would be faster: 'WithLock' cannot be sent" in said[0]


def test_what_cannot_be_sent_is_refused_before_any_work(tmp_path, capfd):
    for n_workers in (1, 2):
        with pytest.raises(
            InputError, match=r"'WithLock' cannot be sent .*lock.*first called, or .*'threads'"
        ):
            tile_process(
                IMAGE, WithLock(), write_to=tmp_path / "l.zarr", engine="processes",
                max_workers=n_workers, **KEYWORDS,
            )  # fmt: skip
    assert not list(tmp_path.iterdir()), "no stage is left behind"
    assert capfd.readouterr().err == ""


class Prepares(WithLock):
    """One that makes a function of itself which can be pickled."""

    def prepare(self, sample):
        return components


def test_what_can_be_sent_once_it_is_prepared_is_sent(tmp_path):
    place = tmp_path / "l.zarr"
    tile_process(IMAGE, Prepares(), write_to=place, engine="processes", max_workers=2, **KEYWORDS)
    assert levels(place) == run(tmp_path, "expected")


@pytest.mark.parametrize("bad", ["process", None, 3])
def test_an_unknown_engine_is_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(InputError, match="engine="):
        tile_process(IMAGE, components, write_to=tmp_path / "l.zarr", engine=bad, **KEYWORDS)
    assert not list(tmp_path.iterdir())


def test_an_error_names_its_tile_and_the_same_call_goes_on(tmp_path):
    marker = tmp_path / "repaired"

    def fails_once(tile):
        if tile.shape[0] and tile[0, 0, 0] == IMAGE[11, 28, 28] and not marker.exists():
            raise ValueError("bad tile")
        return components(tile)

    place = tmp_path / "l.zarr"
    run_it = {"write_to": place, "max_workers": 2, "engine": "processes", **KEYWORDS}
    with pytest.raises(SegmenterError, match=r"tile \d+ at .*bad tile"):
        tile_process(IMAGE, fails_once, **run_it)
    marker.touch()
    tile_process(IMAGE, fails_once, **run_it)
    assert levels(place) == run(tmp_path, "expected")


def test_a_worker_that_dies_is_told_and_nothing_is_left(tmp_path):
    def dies(tile):
        os._exit(9)

    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with pytest.raises(ClientError, match="worker process died"):
        tile_process(
            IMAGE, dies, write_to=tmp_path / "l.zarr", max_workers=2, engine="processes", **KEYWORDS
        )
    time.sleep(0.5)
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not [p for p in left if "loky.backend.popen" in " ".join(p.cmdline())]


SCRIPT = """
import sys, time
import numpy as np
from patchworks import tile_process

print("main is run", flush=True)

def slow(tile):
    time.sleep(float(sys.argv[2]))
    return (tile > 0).astype("uint8")

tile_process(np.ones((64, 64), "uint8"), slow, tile_shape=(16, 16), overlap=2, progress=False,
             engine="processes", max_workers=2, write_to=sys.argv[1])
print("done")
"""


def start_script(tmp_path, seconds) -> subprocess.Popen:
    (tmp_path / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "script.py", "labels.zarr", str(seconds)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_a_script_without_a_guard_is_run_once(tmp_path):
    out, error = start_script(tmp_path, 0).communicate(timeout=120)
    assert (out, error) == ("main is run\ndone\n", "")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_script(tmp_path, sign):
    script = start_script(tmp_path, 60)
    end = time.monotonic() + 60
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
        found = psutil.Process(script.pid).children(recursive=True)
        workers = [p for p in found if "popen_loky" in " ".join(p.cmdline())]
    time.sleep(2)
    script.send_signal(sign)
    script.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
