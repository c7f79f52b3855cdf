"""Two flow runs on one output, at once or one after the other's death; two on two outputs."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun

from tests.images import files_of, ome_zarr, smooth_noise

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, time
from pathlib import Path
from flows import segment_image
from patchworks.errors import TargetInUseError
from tests.images import above_1100

def segment(tile):
    Path("at work").touch()
    while not Path("go on").exists():
        time.sleep(0.05)
    return above_1100(tile)

if __name__ == "__main__":
    try:
        report = segment_image(
            "image.zarr", segmenter=segment, tile_shape=(24, 45, 35), overlap=4, max_workers=1,
            write_to=sys.argv[1],
        )
        print("finished", report.n_segmented, report.n_reused)
    except TargetInUseError as error:
        print("refused:", error)
"""
"""Waits in its first tile until it may go on."""

N_TILES = 4


@pytest.fixture
def folder(tmp_path) -> Path:
    ome_zarr(tmp_path / "image.zarr", smooth_noise())
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def start(folder: Path, output: str, url: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    kept |= {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / "home"), "PREFECT_API_URL": url}
    command = [sys.executable, "program.py", output]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=kept, stdout=subprocess.PIPE, stderr=log, text=True
        )


def await_work(folder: Path, *processes: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not (folder / "at work").exists():
        assert [process.poll() for process in processes] == [None] * len(processes)
        assert time.monotonic() < end
        time.sleep(0.05)


def end_of(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=120)
    return said.strip()


def of_output(output: str) -> list[FlowRun]:
    """Return the flow runs that were to write an output, oldest first."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(limit=200)
    wanted = [r for r in found if r.parameters.get("labels", {}).get("write_to") == output]
    return sorted(wanted, key=lambda run: run.created)


def test_the_second_on_an_output_is_refused_and_another_output_is_free(folder, server):
    first, beside = (start(folder, name, server.url) for name in ("a.zarr", "b.zarr"))
    await_work(folder, first, beside)
    said = end_of(start(folder, "a.zarr", server.url))
    assert first.poll() is None
    assert beside.poll() is None
    holder, refused = of_output("a.zarr")
    assert said.startswith(f"refused: {folder / 'a.zarr'}: another run is writing it (user ")
    for word in (getpass.getuser(), platform.node(), f"process {first.pid}", str(holder.id)):
        assert word in said, (word, said)
    assert refused.state_name == "Failed"
    assert "TargetInUseError" in refused.state.message
    assert holder.state_name == "Running"
    (folder / "go on").touch()
    assert [end_of(first), end_of(beside)] == [f"finished {N_TILES} 0"] * 2
    assert [run.state_name for run in of_output("a.zarr")] == ["Completed", "Failed"]
    assert [run.state_name for run in of_output("b.zarr")] == ["Completed"]
    assert files_of(folder / "a.zarr") == files_of(folder / "b.zarr")
    left = {path.name for path in folder.iterdir()}
    assert left == {
        "image.zarr",
        "a.zarr",
        "b.zarr",
        "program.py",
        "log",
        "home",
        "at work",
        "go on",
    }


@pytest.mark.slow
def test_a_run_that_was_killed_shows_as_crashed_once_the_next_goes_on_from_it(folder, server):
    killed = start(folder, "c.zarr", server.url)
    await_work(folder, killed)
    killed.kill()
    killed.communicate()
    (dead,) = of_output("c.zarr")
    assert dead.state_name == "Running", "nobody could tell the server"
    (folder / "go on").touch()
    assert end_of(start(folder, "c.zarr", server.url)) == f"finished {N_TILES} 0"
    dead, done = of_output("c.zarr")
    assert (dead.state_name, done.state_name) == ("Crashed", "Completed")
    assert dead.state.message == "its process died; a later run goes on from it"
    with get_client(sync_client=True) as client:
        of_dead = FlowRunFilter(id=FlowRunFilterId(any_=[dead.id]))
        found = client.read_task_runs(flow_run_filter=of_dead)
    segmenting = [run.state_name for run in found if run.name.startswith("segment tiles")]
    assert "Crashed" in segmenting
    assert all(run.state.is_final() for run in found), [(r.name, r.state_name) for r in found]
