"""What goes wrong while tiles are segmented, and what the flow makes of it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from pydantic import BaseModel, model_serializer
from pydantic_core import PydanticSerializationError
from scipy import ndimage

from flows import segment_image
from flows.interrupts import interruptible
from patchworks import tile_process
from patchworks.errors import ClientError, SegmenterError
from tests.flows.runs import latest_run, states, task_runs
from tests.images import files_of, smooth_noise
from tests.stores import files_now

ROOT = Path(__file__).parents[2]

SIDE = 6
N_TILES = SIDE * SIDE
BAD_TILE = 20
"""A tile that is in none of the first batches."""

TILES = {"tile_shape": (32, 32), "overlap": 4}
RUN = {**TILES, "max_workers": 2, "retry_delay_s": 0.1}
N_AT_A_TIME = 3
"""Batches given to two workers: one each, and one ahead."""


def an_image(folder: Path, side: int = SIDE) -> Path:
    """Write an image whose tiles are known by their first voxel."""
    image = smooth_noise((32 * side, 32 * side))
    image[::32, ::32] = 60000 + np.arange(side * side).reshape(side, side)
    zarr.create_array(folder / "image.zarr", data=image, chunks=(32, 32))
    return folder / "image.zarr"


class Careless:
    """Labels what is bright, notes each tile that it is called for, and trips over one of them."""

    def __init__(self, folder: Path, trips: str, tile: int = BAD_TILE) -> None:
        self.folder = folder
        self.trips = trips
        self.tile = tile

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        index = int(tile[tile >= 60000].min()) - 60000  # the tiles before it lie outside of it
        with (self.folder / "calls").open("a") as calls:
            calls.write(f"{index}\n")
        if index == self.tile and not (self.folder / "healed").exists():
            getattr(self, self.trips)()
        return ndimage.label(tile > 1100)[0]

    def kill_once(self) -> None:
        self.heal()
        self.kill()

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self) -> None:
        time.sleep(3600)

    def hang_once(self) -> None:
        self.heal()
        self.hang()

    def hang_with_the_interpreter_once(self) -> None:
        self.heal()
        ctypes.PyDLL(None).sleep(3600)

    def fail(self) -> None:
        raise ValueError("no luck")

    def heal(self) -> None:
        (self.folder / "healed").touch()

    @property
    def calls(self) -> Counter[int]:
        """How often the function was called for each tile."""
        return Counter(map(int, (self.folder / "calls").read_text().split()))


def records(folder: Path) -> list[str]:
    return [path.name for path in files_now(folder / "out.zarr.stage", "*.rec")]


def check_bytes(folder: Path, segmenter: Careless) -> None:
    """Compare with what the library writes when nothing goes wrong."""
    undisturbed = folder / "undisturbed.zarr"
    tile_process(folder / "image.zarr", segmenter, write_to=undisturbed, progress=False, **TILES)
    assert files_of(folder / "out.zarr") == files_of(undisturbed)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that no process is left of those that start meanwhile."""
    before = _children()
    yield
    assert _children() <= before


def _children() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    }


@pytest.mark.usefixtures("server")
class TestWorkers:
    def test_a_worker_that_dies_once_is_replaced_and_nothing_is_lost(self, tmp_path):
        source, segmenter = an_image(tmp_path), Careless(tmp_path, "kill_once")
        with nothing_left():
            report = segment_image(
                source, segmenter=segmenter, write_to=tmp_path / "out.zarr", keep_stage=True, **RUN
            )
        assert (report.n_segmented, report.n_reused) == (N_TILES, 0)
        calls = segmenter.calls
        assert calls[BAD_TILE] == 2
        assert calls.total() == N_TILES + 1, "tiles of the batch that were done are not done again"
        assert len(records(tmp_path)) == len(set(records(tmp_path))) == N_TILES
        # Dask gave the batch to another worker, under the same task run.
        assert {run.state_name for run in task_runs()} == {"Completed"}
        check_bytes(tmp_path, segmenter)

    @pytest.mark.slow
    def test_a_tile_that_always_kills_its_worker_ends_the_run_which_goes_on_later(self, tmp_path):
        source, segmenter = an_image(tmp_path), Careless(tmp_path, "kill")
        run = {"segmenter": segmenter, "write_to": tmp_path / "out.zarr", **RUN}
        with nothing_left(), pytest.raises(ClientError) as caught:
            segment_image(source, **run)
        message = str(caught.value)
        assert message.startswith("segment tiles ")
        first, _, last = message.split()[2].rstrip(":").partition("-")
        assert int(first) <= BAD_TILE <= int(last or first), message
        assert "died again and again" in message
        assert any("kept in" in note for note in caught.value.__notes__)
        found = task_runs()
        assert all(run.state.is_final() for run in found), [(r.name, r.state_name) for r in found]
        of_batch = [run for run in found if run.name == message.partition(":")[0]]
        assert [run.state_name for run in of_batch] == ["Crashed", "Crashed"], found
        n_done = len(records(tmp_path))
        assert n_done > 4, "the first batches at the least"
        segmenter.heal()
        report = segment_image(source, **run)
        assert (report.n_reused, report.n_segmented) == (n_done, N_TILES - n_done)
        check_bytes(tmp_path, segmenter)

    @pytest.mark.parametrize(
        "hangs",
        ["hang_with_the_interpreter_once", pytest.param("hang_once", marks=pytest.mark.slow)],
    )
    @pytest.mark.slow
    def test_a_tile_that_hangs_costs_its_worker_and_not_the_run(self, tmp_path, hangs):
        source, segmenter = an_image(tmp_path), Careless(tmp_path, hangs)
        with nothing_left():
            report = segment_image(
                source, segmenter=segmenter, write_to=tmp_path / "out.zarr",
                tile_timeout_s=3.0, **RUN,
            )  # fmt: skip
        assert report.n_segmented == N_TILES
        assert segmenter.calls[BAD_TILE] == 2
        found = states("segment tiles")
        assert found["Crashed"] == 1, found
        assert found["Completed"] == found.total() - 1, found
        check_bytes(tmp_path, segmenter)

    @pytest.mark.slow
    def test_a_tile_that_always_hangs_ends_the_run_and_says_which_limit_it_was(self, tmp_path):
        source, segmenter = an_image(tmp_path), Careless(tmp_path, "hang")
        with (
            nothing_left(),
            pytest.raises(ClientError, match=r"no progress for 2 s.*tile_timeout_s"),
        ):
            segment_image(source, segmenter=segmenter, write_to=tmp_path / "out.zarr",
                          tile_timeout_s=2.0, **RUN)  # fmt: skip
        assert segmenter.calls[BAD_TILE] == 2
        assert states("segment tiles")["Crashed"] == 2
        assert all(run.state.is_final() for run in task_runs())

    @pytest.mark.slow
    def test_three_failing_batches_end_the_step_and_one_does_not(self, tmp_path):
        source, segmenter = an_image(tmp_path), Careless(tmp_path, "fail")
        run = {"write_to": tmp_path / "out.zarr", **RUN}
        with pytest.raises(SegmenterError, match=f"tile {BAD_TILE} at .*no luck"):
            segment_image(source, segmenter=segmenter, **run)
        assert segmenter.calls == Counter(range(N_TILES)), "each of them once"
        segmenter.heal()
        assert segment_image(source, segmenter=segmenter, **run).n_reused == N_TILES - 1

        (tmp_path / "all").mkdir()
        source = an_image(tmp_path / "all", side=16)
        with pytest.raises(SegmenterError, match="always") as caught:
            segment_image(source, segmenter=Always(tmp_path / "all"), **run | {"overwrite": True})
        assert any("more task runs failed" in note for note in caught.value.__notes__)
        n_calls = len((tmp_path / "all" / "calls").read_text().split())
        assert n_calls <= 3 * (3 + N_AT_A_TIME), "three tiles of each batch, three batches"
        assert set(states("segment tiles")) == {"Failed"}


class Always:
    """Fails for every tile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        with (self.folder / "calls").open("a") as calls:
            calls.write("x\n")
        raise ValueError("always")


SLOW = """
import time
from pathlib import Path
from scipy import ndimage

def segment(tile):
    with Path("calls").open("a") as calls:
        calls.write("x")
    time.sleep(0 if Path("quick").exists() else 0.3)
    return ndimage.label(tile > 1100)[0]
"""


def start_command(folder: Path, **environment: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    kept |= {"PREFECT_HOME": str(folder / "home"), "PYTHONPATH": f"{ROOT}:{folder}"}
    kept |= {"PATCHWORKS_DATA_DIR": str(folder / "data")}
    return subprocess.Popen(
        [
            *[sys.executable, "-m", "flows.cli", "segment", "image.zarr", "--workers", "2"],
            *["--segmenter", "slow:segment", "--tile-shape", "32,32", "--overlap", "4"],
            *["--write-to", "out.zarr"],
        ],
        cwd=folder,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
    )


def hears_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of all processes that were started for a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PATCHWORKS_DATA_DIR") == str(folder / "data"):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def interrupt(folder: Path, process: subprocess.Popen[str], *, to_all: bool) -> None:
    """Interrupt a command at work, and check how it ends."""
    end = time.monotonic() + 90
    while len(records(folder)) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
    began = time.monotonic()
    _, error = process.communicate(timeout=60)
    took_s = time.monotonic() - began
    print(f"ended {took_s:.1f} s after it was interrupted, {len(records(folder))} tiles done")
    assert process.returncode == 130, error
    assert "stopped; the same command goes on from there" in error
    assert took_s < 15
    assert processes_of(folder) == []
    assert not (folder / "out.zarr").exists()


@pytest.mark.slow
def test_ctrl_c_ends_run_workers_and_server_and_the_same_command_goes_on(tmp_path, server):
    """In a terminal it goes to the workers as well."""
    an_image(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    interrupt(tmp_path, start_command(tmp_path), to_all=True)
    n_done = len(records(tmp_path))
    (tmp_path / "quick").touch()
    process = start_command(tmp_path, PREFECT_API_URL=server.url)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert f"{N_TILES - n_done} segmented, {n_done} done before" in out


@pytest.mark.slow
def test_on_the_server_an_interrupted_run_has_crashed_with_all_of_its_task_runs(tmp_path, server):
    an_image(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    process = start_command(tmp_path, PREFECT_API_URL=server.url)
    interrupt(tmp_path, process, to_all=False)
    assert latest_run().state_name == "Crashed"
    found = [(run.name, run.state_name) for run in task_runs()]
    assert all(name in ("Completed", "Crashed") for _, name in found), found


class Interrupted(BaseModel):
    """Is interrupted while pydantic makes JSON of it."""

    @model_serializer
    def serialize(self) -> str:
        signal.raise_signal(signal.SIGINT)
        return ""


def test_what_pydantic_makes_of_an_interrupt_is_an_interrupt_again():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(PydanticSerializationError):
        Interrupted().model_dump()
    with pytest.raises(KeyboardInterrupt) as caught, interruptible(), interruptible():
        Interrupted().model_dump()
    assert isinstance(caught.value.__cause__, PydanticSerializationError)
    with pytest.raises(ValueError, match="not touched"), interruptible():
        raise ValueError("not touched")
    assert signal.getsignal(signal.SIGINT) is before
