"""One worker process per GPU, for the time of a run; the devices are of a fake NVML library."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from patchworks import make_local_cluster, tile_process
from patchworks.engine import OnGpus, choose_workers
from patchworks.errors import ClientError, MissingExtraError, SegmenterError
from patchworks.execution.work_place import processes_here, threads_here
from tests.images import above_1100, files_of, ome_zarr, smooth_noise
from tests.machines import pretend
from tests.nvml import GIB, FakeNvml, cards

RUN = {"tile_shape": (8, 32, 32), "overlap": 4, "progress": False, "use_gpu": True}


class Telling:
    """A function that notes on which device, in which process, and beside how many it ran."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder, self.seconds = folder, seconds

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        busy = self.folder / f"busy-{device}"
        busy.touch(exist_ok=False)  # fails if another call is on the device
        time.sleep(self.seconds)
        (self.folder / f"ran-{device}={os.getpid()}").touch()
        busy.unlink()
        return above_1100(tile)

    def __reduce__(self):
        return Telling, (self.folder, self.seconds)

    def ran(self) -> list[tuple[str, int]]:
        """Return on which devices, and in which processes."""
        found = (path.name.removeprefix("ran-") for path in self.folder.glob("ran-*"))
        return sorted((name.split("=")[0], int(name.split("=")[1])) for name in found)


@pytest.fixture
def image(tmp_path):
    return ome_zarr(tmp_path / "image.zarr", smooth_noise())


@pytest.fixture
def telling(tmp_path):
    (tmp_path / "told").mkdir()
    return Telling(tmp_path / "told", 0.01)


@pytest.fixture
def three(monkeypatch):
    return FakeNvml(cards(3, [10 * GIB, 30 * GIB, 20 * GIB])).install(monkeypatch)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def trackers() -> set[int]:
    """Python's own, which stay for as long as the process that spawns does."""
    found = psutil.Process().children(recursive=True)
    return {p.pid for p in found if "resource_tracker" in " ".join(p.cmdline())}


def test_each_gpu_has_a_process_of_its_own_that_ends_with_the_run(
    image, telling, three, tmp_path, caplog
):
    before = children()
    with caplog.at_level(logging.INFO, logger="patchworks"):
        tile_process(image, telling, write_to=tmp_path / "a.zarr", **RUN)
    assert [device for device, _ in telling.ran()] == [card.uuid for card in three.cards]
    assert len({pid for _, pid in telling.ran()} | {os.getpid()}) == 4
    assert "tiles on 3 GPUs, a worker process on each" in caplog.text
    assert children() - trackers() <= before
    ran = telling.ran()
    tile_process(image, telling, write_to=tmp_path / "a.zarr", **RUN)
    assert telling.ran() == ran  # finished: no process is started
    plain = {**RUN, "use_gpu": False}
    tile_process(image, telling, write_to=tmp_path / "b.zarr", **plain, max_workers=1)
    assert files_of(tmp_path / "a.zarr") == files_of(tmp_path / "b.zarr")


def test_max_workers_is_how_many_gpus_are_used_those_with_the_most_free_memory(three):
    engine = choose_workers(2, "auto", use_gpu=True).engine
    assert engine == OnGpus((three.cards[1].uuid, three.cards[2].uuid))
    assert choose_workers(9, "auto", use_gpu=True).engine == OnGpus(
        tuple(card.uuid for card in three.cards)
    )


def test_a_single_gpu_is_used_by_this_process_one_call_at_a_time(
    image, telling, tmp_path, monkeypatch
):
    FakeNvml(cards(1)).install(monkeypatch)
    before = children()
    tile_process(image, telling, write_to=tmp_path / "a.zarr", max_workers=4, **RUN)
    assert telling.ran() == [("none", os.getpid())]
    assert children() == before


def test_threads_that_are_asked_for_stay_in_this_process(three):
    workers = choose_workers(None, "threads", use_gpu=True)
    assert (workers.engine, workers.executor.n_workers) == ("threads", 1)
    assert workers.place.gpu.free_bytes == 10 * GIB


def test_a_function_that_cannot_be_sent_runs_here_on_one_gpu_and_it_is_said(
    image, three, tmp_path, caplog
):
    lock, pids = threading.Lock(), set()

    def held(tile):
        with lock:
            pids.add(os.getpid())
            return above_1100(tile)

    tile_process(image, held, write_to=tmp_path / "a.zarr", **RUN)
    assert pids == {os.getpid()}
    assert "cannot be sent to other processes: one of 3 GPUs is used" in caplog.text


def fails_on_a_gpu(tile: np.ndarray) -> np.ndarray:
    raise RuntimeError(f"on {os.environ['CUDA_VISIBLE_DEVICES']}")


@pytest.mark.slow
def test_a_function_that_fails_ends_the_processes(image, three, tmp_path):
    before = children()
    with pytest.raises(SegmenterError, match="on GPU-0"):
        tile_process(image, fails_on_a_gpu, write_to=tmp_path / "a.zarr", **RUN)
    assert children() - trackers() <= before


def test_without_a_gpu_there_is_no_run(image, tmp_path, monkeypatch):
    FakeNvml([]).install(monkeypatch)
    with pytest.raises(ClientError, match="use_gpu=True"):
        tile_process(image, above_1100, write_to=tmp_path / "a.zarr", **RUN)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtraError, match=r"patchworks\[gpu\]"):
        tile_process(image, above_1100, write_to=tmp_path / "a.zarr", **RUN)
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.slow
def test_a_cluster_of_gpu_workers_is_used_one_call_at_a_time_and_one_without_is_refused(
    image, telling, tmp_path, monkeypatch
):
    FakeNvml(cards(2)).install(monkeypatch)
    client, cluster = make_local_cluster(use_gpu=True, memory_limit="1 GiB")
    with cluster, client:
        tile_process(image, telling, write_to=tmp_path / "a.zarr", **RUN)
    assert [device for device, _ in telling.ran()] == [card.uuid for card in cards(2)]
    client, cluster = make_local_cluster(n_workers=1, threads_per_worker=2)
    with (
        cluster,
        client,
        pytest.raises(ClientError, match=r"use_gpu=True: the worker 0 at .*no GPU"),
    ):
        tile_process(image, telling, write_to=tmp_path / "b.zarr", **RUN)
    assert not (tmp_path / "b.zarr").exists()


SCRIPT = textwrap.dedent(
    """\
    import sys
    import pytest
    from tests.images import above_1100
    from tests.nvml import FakeNvml, cards
    from patchworks import tile_process

    patch = pytest.MonkeyPatch()
    FakeNvml(cards(2)).install(patch)
    tile_process(sys.argv[1], above_1100, write_to=sys.argv[2], tile_shape=(8, 32, 32), overlap=4,
                 progress=False, use_gpu=True)
    print("done")
    """
)


@pytest.mark.slow
def test_a_script_needs_no_guard(image, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, str(script), str(image), str(tmp_path / "a.zarr")],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_tiles_are_chosen_for_processes_where_a_run_may_move_there(tmp_path, monkeypatch):
    pretend(tmp_path / "large", monkeypatch, gib=64, n_cores=8)
    assert choose_workers(None, "auto", use_gpu=False).place == processes_here(8)
    assert choose_workers(None, "threads", use_gpu=False).place == threads_here(8)
    assert choose_workers(1, "auto", use_gpu=False).place == threads_here(1)
    pretend(tmp_path / "small", monkeypatch, gib=2, n_cores=8)  # not enough for eight processes
    assert choose_workers(None, "auto", use_gpu=False).place == threads_here(8)
    assert choose_workers(None, "processes", use_gpu=False).place == processes_here(8)
