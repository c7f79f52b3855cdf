"""kill -9 of the flow, of a worker, of the scheduler, of the Prefect server: the same bytes.

Ten random moments each, from before the first tile to after the last. What may be segmented twice
is what was in flight. The numbers are printed: ``pytest -m slow -s tests/faults``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.images import files_of, ome_zarr, smooth_noise
from tests.stores import files_now

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
IMAGE = smooth_noise()
TILES = (4, 16, 16)
N_WORKERS = 2
N_MOMENTS = 10
ENDS_WITHIN_S = 240.0

PROGRAM = """
import sys, time, uuid
from pathlib import Path
from scipy import ndimage
from flows import segment_image

def segment(tile):
    Path("calls", uuid.uuid4().hex).touch()  # in the folder of the run, whose name is no matter
    time.sleep(0.02)
    return ndimage.label(tile > 1100)[0]

if __name__ == "__main__":
    where = {"cluster": sys.argv[1]} if len(sys.argv) > 1 else {"max_workers": 2}
    report = segment_image(
        Path("image.zarr"), segmenter=segment, tile_shape=(4, 16, 16), overlap=4, **where
    )
    print("segmented", report.n_segmented, "of", report.n_tiles)
"""


class Run:
    """A flow run in a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.command = [sys.executable, "program.py"]
        folder.mkdir()
        (folder / "calls").mkdir()
        (folder / "program.py").write_text(PROGRAM)  # its source is part of the fingerprint
        ome_zarr(folder / "image.zarr", IMAGE)
        for path in sorted((folder / "image.zarr" / "0").rglob("*")):
            os.utime(path, (1e9, 1e9))  # the fingerprint is part of the bytes

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )

    def finish(self) -> None:
        process = self.start()
        assert process.wait(ENDS_WITHIN_S) == 0, self.log_tail()

    def log_tail(self) -> str:
        return (self.folder / "log").read_text()[-4000:]

    @property
    def n_calls(self) -> int:
        return len(list((self.folder / "calls").iterdir()))

    @property
    def n_records(self) -> int:
        return len(files_now(self.folder / "image.zarr.stage", "*.rec"))

    @property
    def is_at_work(self) -> bool:
        return (self.folder / "image.zarr.stage").exists()

    @property
    def result(self) -> dict[str, bytes]:
        return files_of(self.folder / "image.zarr")

    def is_clean(self) -> bool:
        return sorted(p.name for p in self.folder.iterdir()) == [
            *["calls", "image.zarr", "log", "program.py"]
        ]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Nothing of the developer's: an own home of Prefect, no server configured."""
    home = tmp_path_factory.mktemp("home")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(home / "prefect"),
        "PATCHWORKS_DATA_DIR": str(home / "data"),
    }


@pytest.fixture(scope="module")
def with_server(environment, server) -> dict[str, str]:
    """The same, with the server of the tests, which saves the start of one for each run."""
    return {**environment, "PREFECT_API_URL": server.url}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, with_server) -> tuple[dict[str, bytes], float]:
    """The right bytes, and how long the work takes from the making of the stage to the end."""
    run = Run(tmp_path_factory.mktemp("undisturbed") / "run", with_server)
    process = run.start()
    while not run.is_at_work:
        assert process.poll() is None, run.log_tail()
        time.sleep(0.05)
    began = time.monotonic()
    while run.is_at_work and process.poll() is None:
        time.sleep(0.05)
    worked_s = time.monotonic() - began
    assert process.wait(ENDS_WITHIN_S) == 0, run.log_tail()
    return run.result, worked_s


def disturb(
    run: Run, moment_s: float, kill: Callable[[subprocess.Popen[bytes]], None]
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a run, wait for its stage and then the moment, kill; returns how far it was."""
    process = run.start()
    while not run.is_at_work and process.poll() is None:
        time.sleep(0.02)
    time.sleep(moment_s)
    n_records = run.n_records
    kill(process)
    return process, n_records


def children(process: subprocess.Popen[bytes], *words: str) -> list[psutil.Process]:
    """Descendants of a process whose command line holds all of the words."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                line = " ".join(child.cmdline())
                if all(word in line for word in words):
                    found.append(child)
    return found


def moments(duration_s: float, seed: int) -> list[float]:
    random_numbers = random.Random(seed)
    return sorted([random_numbers.uniform(0, duration_s) for _ in range(N_MOMENTS)])


def check(run: Run, right: dict[str, bytes], n_tiles: int, in_flight: int, what: str) -> None:
    assert run.result == right
    assert run.is_clean(), list(run.folder.iterdir())
    twice = run.n_calls - n_tiles
    print(f"{what}: {twice} tiles segmented twice")
    assert 0 <= twice <= in_flight


N_TILES = 1
for extent, tile in zip(IMAGE.shape, TILES, strict=True):
    N_TILES *= -(-extent // tile)


def test_the_flow_process(tmp_path, with_server, undisturbed):
    right, duration_s = undisturbed
    for i, moment_s in enumerate(moments(duration_s, 1)):
        run = Run(tmp_path / f"run{i}", with_server)
        process, n_records = disturb(run, moment_s, lambda p: p.kill())
        process.wait()
        run.finish()
        what = f"flow killed after {moment_s:.1f} s, {n_records} of {N_TILES} tiles"
        check(run, right, N_TILES, N_WORKERS, what)


def test_a_worker(tmp_path, with_server, undisturbed):
    right, duration_s = undisturbed

    def kill_a_worker(process: subprocess.Popen[bytes]) -> None:
        workers = children(process, "multiprocessing.spawn")
        if workers:
            random.choice(workers).kill()

    for i, moment_s in enumerate(moments(duration_s, 2)):
        run = Run(tmp_path / f"run{i}", with_server)
        process, n_records = disturb(run, moment_s, kill_a_worker)
        status = process.wait(ENDS_WITHIN_S)
        run.finish()
        what = f"worker killed after {moment_s:.1f} s, {n_records} of {N_TILES}, exit {status}"
        check(run, right, N_TILES, N_WORKERS, what)
        assert status == 0, run.log_tail()


class DaskCluster:
    """A scheduler and workers as somebody else would start them."""

    def __init__(self, environment: dict[str, str], folder: Path, run: Path) -> None:
        self.environment = environment
        self.folder = folder
        self.run = run
        self.processes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def __enter__(self) -> DaskCluster:
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        start = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
        self._start(*start, "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        while not file.exists():
            time.sleep(0.1)
        time.sleep(0.5)  # until it is written whole
        self.address = json.loads(file.read_text())["address"]
        for _ in range(N_WORKERS):
            start = [sys.executable, "-m", "distributed.cli.dask_worker", self.address]
            self._start(*start, "--nthreads", "1", "--no-dashboard", "--death-timeout", "20")
        return self

    def _start(self, *command: str) -> None:
        with (self.folder / "dask.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    command,
                    cwd=self.run,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def kill_scheduler(self) -> None:
        self.processes[0].kill()

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_scheduler(tmp_path, with_server, undisturbed):
    right, duration_s = undisturbed
    for i, moment_s in enumerate(moments(duration_s, 3)):
        run = Run(tmp_path / f"run{i}", with_server)
        with DaskCluster(with_server, tmp_path, run.folder) as cluster:
            run.command.append(cluster.address)
            process, n_records = disturb(run, moment_s, lambda _, c=cluster: c.kill_scheduler())
            began = time.monotonic()
            status = process.wait(ENDS_WITHIN_S)
            took = time.monotonic() - began
        with DaskCluster(with_server, tmp_path, run.folder) as cluster:
            run.command[-1] = cluster.address
            run.finish()
        what = (
            f"scheduler killed after {moment_s:.1f} s, {n_records} of {N_TILES} tiles, "
            f"exit {status} {took:.0f} s later"
        )
        check(run, right, N_TILES, N_WORKERS, what)


def test_the_prefect_server(tmp_path, environment, undisturbed):
    right, duration_s = undisturbed

    def kill_server(_: object) -> None:
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            with suppress(psutil.Error):
                if "prefect" in line and "server" in line and "guard" not in line:
                    home = process.environ().get("PATCHWORKS_DATA_DIR")
                    if home == environment["PATCHWORKS_DATA_DIR"]:
                        process.kill()

    for i, moment_s in enumerate(moments(duration_s, 4)):
        run = Run(tmp_path / f"run{i}", environment)
        process, n_records = disturb(run, moment_s, kill_server)
        began = time.monotonic()
        status = process.wait(ENDS_WITHIN_S)
        took = time.monotonic() - began
        run.finish()
        what = (
            f"server killed after {moment_s:.1f} s, {n_records} of {N_TILES} tiles, "
            f"exit {status} {took:.0f} s later"
        )
        check(run, right, N_TILES, N_WORKERS, what)
