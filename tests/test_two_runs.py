"""Two runs on one output at once: one is refused and told why, the other ends as if alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from patchworks import merge_tile_labels, tile_process
from patchworks.conversion import pyramid, regions
from patchworks.conversion import write_labels as labels
from patchworks.conversion.collection import plan_images
from patchworks.conversion.plan import ConversionOptions
from patchworks.conversion.run import run_images
from patchworks.errors import TargetExistsError, TargetInUseError
from patchworks.execution.executor import ThreadExecutor
from patchworks.io.location import Location
from patchworks.io.lock_owner import LockOwner
from patchworks.io.run_lock import RunLock
from patchworks.io.writing import check_writable
from patchworks.plan import RunOptions, plan_run
from patchworks.plugins.ome_zarr import add_pyramid, to_ome_zarr, write_labels
from patchworks.run_plan import is_finished, lock_of, run_plan
from patchworks.segmenters import threshold
from tests.images import above_1100, ome_zarr, smooth_noise

ROOT = Path(__file__).parents[1]
IMAGE = smooth_noise()
RUN = {"tile_shape": (8, 32, 32), "overlap": 4, "progress": False, "max_workers": 2}

SEGMENT = """
import sys, time
from pathlib import Path
from patchworks import tile_process
from patchworks.errors import TargetInUseError
from tests.images import above_1100

def segment(tile):
    Path("at work").touch()
    while not Path("go on").exists():
        time.sleep(0.01)
    return above_1100(tile)

try:
    tile_process("image.zarr", segment, tile_shape=(8, 32, 32), overlap=4, progress=False)
    print("finished")
except TargetInUseError as error:
    print("refused:", error)
"""

CONVERT = """
import time
from pathlib import Path
from patchworks.conversion import regions
from patchworks.errors import TargetInUseError
from patchworks.plugins.ome_zarr import to_ome_zarr

publish = regions.publish

def slow_publish(plan):
    Path("at work").touch()
    while not Path("go on").exists():
        time.sleep(0.01)
    publish(plan)

regions.publish = slow_publish
try:
    to_ome_zarr("scan.tif", "scan.zarr", progress=False)
    print("finished")
except TargetInUseError as error:
    print("refused:", error)
"""


def start(folder: Path, text: str) -> subprocess.Popen[str]:
    (folder / "program.py").write_text(text)  # a file: its source is part of the fingerprint
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "program.py"]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.005)


def names(folder: Path) -> set[str]:
    """Return what lies in a folder, but for what the test put there and maximum maps."""
    found = {p.name for p in folder.iterdir() if p.suffix != ".maxima"}
    return found - {"program.py", "at work", "go on", "scan.tif"}


@pytest.mark.parametrize("kind", ["segment", "convert"])
def test_of_two_processes_one_is_refused_and_the_other_ends_as_if_alone(tmp_path, kind):
    text, output, expected = SEGMENT, "image.zarr/labels/labels", above_1100(IMAGE).max()
    if kind == "segment":
        ome_zarr(tmp_path / "image.zarr", IMAGE)
    else:
        text, output, expected = CONVERT, "scan.zarr", IMAGE.max()
        tifffile.imwrite(tmp_path / "scan.tif", IMAGE, metadata={"axes": "ZYX"})
    with start(tmp_path, text) as first:
        wait_for(tmp_path / "at work")
        with start(tmp_path, text) as second:
            said, _ = second.communicate(timeout=60)
        assert said.startswith(f"refused: {tmp_path / output}: another run is writing it (user ")
        assert f"process {first.pid}, since" in said
        (tmp_path / "go on").touch()
        assert first.communicate(timeout=60)[0] == "finished\n"
    assert zarr.open_group(tmp_path / output, mode="r")["0"][...].max() == expected
    assert names(tmp_path) == {output.partition("/")[0]}
    with start(tmp_path, text) as third:
        assert third.communicate(timeout=60)[0] == "finished\n"


@pytest.mark.parametrize("text", [SEGMENT, CONVERT])
def test_a_killed_run_keeps_nobody_off(tmp_path, text):
    ome_zarr(tmp_path / "image.zarr", IMAGE)
    tifffile.imwrite(tmp_path / "scan.tif", IMAGE, metadata={"axes": "ZYX"})
    with start(tmp_path, text) as first:
        wait_for(tmp_path / "at work")
        os.kill(first.pid, signal.SIGKILL)
    assert [name for name in names(tmp_path) if name.endswith(".lock")]
    (tmp_path / "go on").touch()
    with start(tmp_path, text) as second:
        assert second.communicate(timeout=60)[0] == "finished\n"
    assert names(tmp_path) <= {"image.zarr", "scan.zarr"}


class Gate:
    """Holds a first run up, wherever it calls `wait`, until the second was tried."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(60)


class Held:
    """Segments, and is held up at one of its calls: that is no part of what it is."""

    def __init__(self, at_call: int = 1) -> None:
        self.gate, self.at_call, self.n_calls = Gate(), at_call, 0

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        self.n_calls += 1
        if self.n_calls == self.at_call:
            self.gate.wait()
        return above_1100(tile)

    def __reduce__(self):
        return Held, ()


def second_refused(gate: Gate, first: Callable[[], object], second: Callable[[], object]) -> None:
    """Run `first` in a thread, and `second` while it is held up; the first must succeed."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(first())
        except Exception as error:  # noqa: BLE001 - the test that started it looks at it
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert gate.reached.wait(60)
        with pytest.raises(TargetInUseError, match=f"process {os.getpid()}, since"):
            second()
    finally:
        gate.opened.set()
        thread.join()
    assert not isinstance(outcome[0], Exception), outcome[0]


def test_of_two_threads_one_is_refused(tmp_path):
    store, slow = ome_zarr(tmp_path / "image.zarr", IMAGE), Held()

    second_refused(
        slow.gate,
        lambda: tile_process(store, slow, **RUN),
        lambda: tile_process(store, above_1100, **RUN),
    )
    labels = zarr.open_group(store / "labels" / "labels", mode="r")["0"]
    assert labels[...].max() == above_1100(IMAGE).max()
    assert names(tmp_path) == {"image.zarr"}


def test_resume_false_does_not_delete_the_stage_of_a_run_at_work(tmp_path):
    slow = Held(at_call=5)
    run = {**RUN, "write_to": tmp_path / "o.zarr", "max_workers": 1}
    second_refused(
        slow.gate,
        lambda: tile_process(IMAGE, slow, **run),
        lambda: tile_process(IMAGE, Held(at_call=0), resume=False, **run),
    )
    assert slow.n_calls == 27
    assert names(tmp_path) == {"o.zarr"}


def test_label_images_of_other_names_keep_nobody_off(tmp_path):
    store, slow = ome_zarr(tmp_path / "image.zarr", IMAGE), Held()

    thread = threading.Thread(target=lambda: tile_process(store, slow, **RUN))
    thread.start()
    assert slow.gate.reached.wait(60)
    tile_process(store, above_1100, output_component="others", **RUN)
    write_labels(store, above_1100(IMAGE), name="given", progress=False)
    slow.gate.opened.set()
    thread.join()
    listed = zarr.open_group(store / "labels", mode="r").attrs["ome"]["labels"]
    assert sorted(listed) == ["given", "labels", "others"]
    assert names(tmp_path) == {"image.zarr"}


def test_a_merge_is_refused_where_a_segmentation_writes(tmp_path):
    slow, target = Held(), tmp_path / "o.zarr"

    labels = zarr.array(above_1100(IMAGE), chunks=(8, 32, 32))
    second_refused(
        slow.gate,
        lambda: tile_process(IMAGE, slow, write_to=target, **RUN),
        lambda: merge_tile_labels(labels, write_to=target, progress=False),
    )


@pytest.fixture
def held_up(monkeypatch) -> Gate:
    """Hold the first call up that is about to put a converted image in place."""
    gate, publish = Gate(), regions.publish

    def slow(plan):
        if not gate.reached.is_set():
            gate.wait()
        publish(plan)

    monkeypatch.setattr(regions, "publish", slow)
    return gate


@pytest.mark.parametrize("second", ["the same", "of another file", "of a collection"])
def test_of_two_conversions_one_is_refused(tmp_path, held_up, second):
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, IMAGE + (name == "b.tif"), metadata={"axes": "ZYX"})
    source = tmp_path / ("b.tif" if second == "of another file" else "a.tif")
    scene = "all" if second == "of a collection" else 0
    target = tmp_path / "out" / "scan.zarr"
    second_refused(
        held_up,
        lambda: to_ome_zarr(tmp_path / "a.tif", target, progress=False),
        lambda: to_ome_zarr(source, target, scene=scene, progress=False),
    )
    assert (zarr.open_group(target, mode="r")["0"][...] == IMAGE).all()
    assert names(target.parent) == {"scan.zarr"}


def test_of_two_collections_one_is_refused(tmp_path, held_up):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, metadata={"axes": "ZYX"})
    target = tmp_path / "out" / "scan.zarr"

    def convert() -> object:
        return to_ome_zarr(tmp_path / "a.tif", target, scene="all", progress=False)

    second_refused(held_up, convert, convert)
    assert (zarr.open_group(target, mode="r")["0/0"][...] == IMAGE).all()
    assert names(target.parent) == {"scan.zarr"}


def test_a_url_is_locked_too_and_nothing_lies_beside_it(tmp_path, held_up, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = "memory://two-runs/scan.zarr"
    second_refused(
        held_up,
        lambda: to_ome_zarr(IMAGE, target, progress=False),
        lambda: to_ome_zarr(IMAGE, target, progress=False),
    )
    assert list((tmp_path / "patchworks" / "locks").iterdir()) == []


def test_a_pyramid_is_not_added_to_what_is_being_written(tmp_path, held_up):
    target = ome_zarr(tmp_path / "scan.zarr", IMAGE)
    second_refused(
        held_up,
        lambda: to_ome_zarr(IMAGE, target, n_levels=2, overwrite=True, progress=False),
        lambda: add_pyramid(target, n_levels=3, progress=False),
    )
    assert names(tmp_path) == {"scan.zarr"}


def steal(lock: Path) -> None:
    """Put another run's lock in place of a live one."""
    thief = replace(LockOwner.of_this_process(), token="another", host="elsewhere", user="ana")
    lock.write_bytes(thief.to_bytes())


def test_a_run_that_lost_its_lock_puts_nothing_in_place(tmp_path):
    target = tmp_path / "o.zarr"

    def segment(tile: np.ndarray) -> np.ndarray:
        steal(tmp_path / ".o.zarr.lock")
        return above_1100(tile)

    with pytest.raises(TargetInUseError, match="taken over by another run"):
        tile_process(IMAGE, segment, write_to=target, **RUN)
    assert not target.exists()
    assert (tmp_path / ".o.zarr.lock").exists()


@pytest.mark.parametrize("call", ["convert", "labels", "pyramid"])
def test_whoever_lost_the_lock_deletes_nothing_of_the_other_run(tmp_path, monkeypatch, call):
    store = ome_zarr(tmp_path / "image.zarr", IMAGE)
    module, lock = {
        "convert": (regions, ".out.zarr.lock"),
        "labels": (labels, ".image.zarr.labels-given.lock"),
        "pyramid": (pyramid, ".image.zarr.lock"),
    }[call]
    written = {"convert": "write_regions", "labels": "_write", "pyramid": "add_regions"}[call]
    before = getattr(module, written)

    def stolen(*arguments):
        steal(tmp_path / lock)
        return before(*arguments)

    monkeypatch.setattr(module, written, stolen)
    run = {
        "convert": lambda: to_ome_zarr(IMAGE, tmp_path / "out.zarr", progress=False),
        "labels": lambda: write_labels(store, IMAGE // 9, name="given", progress=False),
        "pyramid": lambda: add_pyramid(store, n_levels=3, progress=False),
    }[call]
    with pytest.raises(TargetInUseError, match="taken over by another run"):
        run()
    left = [p.name for p in (*tmp_path.iterdir(), *tmp_path.glob("image.zarr/labels/*"))]
    assert lock in left
    assert not (tmp_path / "out.zarr").exists()
    assert not (store / "labels" / "given").exists()
    if call != "pyramid":
        assert [name for name in left if name.endswith(".partial")]


def test_what_another_run_finished_before_the_lock_was_had_is_returned(tmp_path, monkeypatch):
    options = RunOptions(write_to=tmp_path / "o.zarr", tile_shape=(8, 32, 32), overlap=4)
    plan, calls = plan_run(IMAGE, above_1100, options), []
    enter = RunLock.__enter__

    def late(lock):
        if not calls:
            calls.append(1)
            run_plan(plan, ThreadExecutor(2), progress=False)
        return enter(lock)

    monkeypatch.setattr(RunLock, "__enter__", late)
    assert not is_finished(plan)
    report = run_plan(plan, ThreadExecutor(2), progress=False)
    assert report.n_reused == report.n_tiles == 27
    assert names(tmp_path) == {"o.zarr"}


def test_labels_that_another_run_wrote_meanwhile_are_not_replaced(tmp_path, monkeypatch):
    store, calls = ome_zarr(tmp_path / "image.zarr", IMAGE), []
    enter = RunLock.__enter__

    def late(lock):
        if not calls:
            calls.append(1)
            write_labels(store, above_1100(IMAGE), name="given", progress=False)
        return enter(lock)

    monkeypatch.setattr(RunLock, "__enter__", late)
    with pytest.raises(TargetExistsError):
        write_labels(store, above_1100(IMAGE) * 2, name="given", progress=False)


def test_a_kill_after_the_label_image_was_in_place_is_tidied_up_after(tmp_path):
    options = RunOptions(write_to=tmp_path / "o.zarr", tile_shape=(8, 32, 32), overlap=4)
    plan = plan_run(IMAGE, above_1100, options)
    run_plan(plan, ThreadExecutor(2), progress=False, keep_stage=True)
    dead = replace(LockOwner.of_this_process(), token="another", pid=os.getppid(), started=1.0)
    lock_of(plan).path.write_bytes(dead.to_bytes())
    run_plan(plan, ThreadExecutor(2), progress=False)
    assert names(tmp_path) == {"o.zarr"}


def test_a_finished_run_leaves_the_stage_of_one_that_makes_it_anew(tmp_path):
    run = {**RUN, "write_to": tmp_path / "o.zarr", "max_workers": 1}
    tile_process(IMAGE, Held(at_call=0), **run)
    slow = Held(at_call=5)
    again = threading.Thread(target=lambda: tile_process(IMAGE, slow, resume=False, **run))
    again.start()
    assert slow.gate.reached.wait(60)
    finished = Held(at_call=0)
    tile_process(IMAGE, finished, **run)
    slow.gate.opened.set()
    again.join()
    assert (finished.n_calls, slow.n_calls) == (0, 27)
    assert names(tmp_path) == {"o.zarr"}


def test_labels_that_another_run_put_there_after_the_planning_are_not_replaced(tmp_path):
    image = np.zeros((16, 16), "uint8")
    image[4:8, 4:8] = 9
    options = RunOptions(write_to=tmp_path / "out.zarr", tile_shape=(8, 8))
    planned = plan_run(image, threshold(5), options)
    tile_process(image, threshold(6), write_to=tmp_path / "out.zarr", progress=False)
    with pytest.raises(TargetExistsError, match="another run"):
        run_plan(planned, ThreadExecutor(1), progress=False)
    assert not (tmp_path / "out.zarr.stage").exists()
    may_replace = plan_run(image, threshold(5), replace(options, overwrite=True))
    assert run_plan(may_replace, ThreadExecutor(1), progress=False).n_objects == 1


def test_an_image_that_another_run_put_there_after_the_planning_is_not_replaced(tmp_path):
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((32, 32), "uint8"))
    target = tmp_path / "scan.zarr"
    planned = plan_images(tmp_path / "scan.tif", target, ConversionOptions(n_levels=1))
    to_ome_zarr(tmp_path / "scan.tif", target, n_levels=2, progress=False)
    with pytest.raises(TargetExistsError, match="other options"):
        run_images(planned, progress=False)


def test_label_images_that_end_at_once_are_all_listed(tmp_path):
    ome_zarr(tmp_path / "image.zarr", smooth_noise((8, 32, 32)))
    names = [f"run{i}" for i in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(
            pool.map(
                lambda name: tile_process(
                    tmp_path / "image.zarr",
                    threshold(1100),
                    output_component=name,
                    max_workers=1,
                    progress=False,
                ),
                names,
            )
        )
    listed = zarr.open_group(tmp_path / "image.zarr" / "labels", mode="r").attrs["ome"]["labels"]
    assert sorted(listed) == names


def test_asking_whether_a_place_can_be_written_disturbs_nobody_who_asks_too(tmp_path):
    place = Location.parse(tmp_path / "image.zarr" / "labels" / "nuclei")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: check_writable(place, "give another"), range(400)))
    assert not list(tmp_path.iterdir())
