"""Traps of Prefect on Dask, and the test that none of our flows falls into each.

=============================================  =================================================
Trap                                           Test
=============================================  =================================================
each worker starts a server of its own         here; `test_server`: a nested call, an own server
an own server sends, advertises, stays         `test_server`: sends nothing home, told not to
                                               advertise, does not outlive a killed owner
an annotation at the start sticks              `test_runners`: an annotation at the start
a global client takes the tasks                `test_runners`: a global client
a cluster given as an object is dropped        `test_gpu_workers`: Prefect copies the spec
GPU tasks run elsewhere                        `test_gpu_workers`, `test_hosts`
a task that waits for a task hangs             here: tasks submit none
`compute` in a task goes to the cluster        here: a Dask image is computed where the flow is
a dead worker's task stays Running             `test_faults`: kills its worker, once and always
`timeout_seconds` interrupts no C call         `test_faults`: a tile that hangs
a task run for each tile                       here; `test_batches`
an input that has no key runs uncached         here: keys are the same in every process
a key with the flow run's id, or of a path     `test_resume`: finished batches show as Cached
a key that knows only the task's lines         `test_resume`: what changed never meets an old result
a failure is kept                              `test_resume`: a rerun, and errors that heal
results outlive, or are lost with, the stage   here; `test_resume`: what changed, a record deleted
a killed flow stays Running                    `test_two_flow_runs`, `test_history`
Ctrl-C becomes an error of pydantic            `test_faults`: what pydantic makes of an interrupt
library loggers are silent                     `test_runners`: their log lines arrive
an artifact is too large                       `test_artifacts`: 150 kB at most
unknown keys of a form are dropped             `test_parameters`; `test_deployed`: by the server
a sent flow has lost its module                `test_deployed`: however it reaches its process
`import prefect` is slow                       here: the library imports it nowhere
=============================================  =================================================
"""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import dask.array as da
import numpy as np
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Log, TaskRun
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from flows import segment_image, tasks
from flows.caching import RESULTS
from flows.history import DATA_DIR
from patchworks.report import RunReport
from tests.flows.runs import latest_run, task_runs
from tests.images import above_1100, smooth_noise

ROOT = Path(__file__).parents[2]
N_TILES = 32 * 32


@dataclass(frozen=True)
class Ran:
    """A flow run over many tiles of a Dask array, and what it left."""

    folder: Path
    report: RunReport
    task_runs: list[TaskRun]
    servers: tuple[set[int], set[int]]
    said: list[Log]


def servers() -> set[int]:
    """Return the processes of these tests that are a Prefect server."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            is_ours = process.environ().get(DATA_DIR) == os.environ[DATA_DIR]
            if is_ours and ("prefect server" in line or "prefect.server" in line):
                found.add(process.pid)
    return found


def said(flow_run_id: UUID) -> list[Log]:
    """Return the log lines of a flow run, once its last has arrived."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    end = time.monotonic() + 20
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_logs(wanted, limit=200)
            if any(
                log.message.startswith("Finished in state") for log in found if not log.task_run_id
            ):
                return found
            assert time.monotonic() < end
            time.sleep(0.2)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, server) -> Ran:
    folder = tmp_path_factory.mktemp("traps")
    image = smooth_noise((128, 128))

    def noted(block: np.ndarray, block_info: dict) -> np.ndarray:
        place = "-".join(map(str, block_info[0]["chunk-location"]))
        with (folder / f"computed-{place}").open("a") as note:
            note.write(f"{os.getpid()}\n")
        return block

    lazy = da.from_array(image, chunks=4).map_blocks(noted, dtype=image.dtype)
    running = servers()
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: folder / "storage"}):
        report = segment_image(
            lazy, segmenter=above_1100, overlap=4, max_workers=2, keep_stage=True,
            write_to=folder / "out.zarr",
        )  # fmt: skip
    return Ran(
        folder=folder,
        report=report,
        task_runs=task_runs(),
        servers=(running, servers()),
        said=said(latest_run().id),
    )


def test_many_tiles_are_few_task_runs(ran):
    assert (ran.report.n_tiles, ran.report.n_segmented) == (N_TILES, N_TILES)
    print(f"{len(ran.task_runs)} task runs for {N_TILES} tiles")
    assert len(ran.task_runs) < 40, "batches last seconds, these tiles take milliseconds"
    assert {run.state_name for run in ran.task_runs} == {"Completed"}


def test_a_dask_image_is_computed_once_and_not_by_the_workers(ran):
    notes = list(ran.folder.glob("computed-*"))
    assert len(notes) == N_TILES
    assert {note.read_text() for note in notes} == {f"{os.getpid()}\n"}


def test_results_lie_in_the_stage_and_nowhere_else(ran):
    assert [path for path in (ran.folder / "storage").rglob("*") if path.is_file()] == []
    (results,) = (ran.folder / "out.zarr.stage").glob(f"*/{RESULTS}")
    n_cached = sum(run.name.startswith(("segment", "merge reg", "build")) for run in ran.task_runs)
    assert len(list(results.iterdir())) == n_cached


def test_every_input_has_a_key_and_nothing_goes_wrong_quietly(ran):
    assert len(ran.said) > len(ran.task_runs)
    assert [log.message for log in ran.said if log.level >= logging.WARNING] == []


def test_no_worker_starts_a_server(ran):
    before, after = ran.servers
    assert before, "the server of the tests"
    assert after <= before


def test_a_task_submits_no_task_and_computes_no_dask_graph():
    tree = ast.parse(Path(tasks.__file__).read_text())
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert called.isdisjoint({"submit", "map", "delay", "compute", "result", "wait"})


KEYS = """
from types import SimpleNamespace
from flows.batches import Batch
from flows.caching import StageOf, key_of

task = SimpleNamespace(task=SimpleNamespace(name="segment tiles"))
stage = StageOf("anywhere", "0123")
print(key_of(task, {"stage": stage, "batch": Batch(3, 9), "level": 2, "threshold": 0.1}))
"""


def test_keys_are_the_same_in_every_process():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = {
        subprocess.run(
            [sys.executable, "-c", KEYS], env=environment | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1
    assert found.pop().startswith("segment-tiles-")


def test_the_library_does_without_prefect():
    program = "import sys, patchworks, patchworks.plugins; print('prefect' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout == "False\n"
