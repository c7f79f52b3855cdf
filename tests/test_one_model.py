"""One model per process, loaded once, wherever tiles are segmented; and nowhere else."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zarr
from distributed import Client

from flows import segment_image
from patchworks import pipeline
from patchworks.execution.dask import DaskExecutor
from patchworks.execution.executor import Executor, ThreadExecutor
from patchworks.plan import RunOptions, plan_run
from patchworks.run_plan import open_stage, run_plan
from patchworks.segmenters import StoredSegmenter, loaded
from tests import cells
from tests.images import above_1100, ome_zarr, smooth_noise

IMAGE = smooth_noise((12, 64, 64))
RUN = {"tile_shape": (12, 16, 32), "overlap": 4, "pyramid_levels": 1}
N_TILES = 8
N_VOXELS = 5000
"""Tiles read up to 12 x 24 x 36 voxels, twice as many."""


class Model:
    """Loads itself where it is made or unpickled, and has memory for so many voxels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.note("loaded")

    def __reduce__(self):
        return Model, (self.folder,)

    def note(self, what: str) -> None:
        (self.folder / f"{what}-{os.getpid()}-{threading.get_ident()}-{time.time_ns()}").touch()

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        self.note("called")
        if tile.size > N_VOXELS:
            raise MemoryError("no")
        return above_1100(tile)


@pytest.fixture
def model(tmp_path) -> Model:
    (tmp_path / "notes").mkdir()
    made = Model(tmp_path / "notes")
    for note in made.folder.iterdir():
        note.unlink()
    return made


def check(model: Model, place: Path, n_halvings: int, n_tiles: int = N_TILES) -> None:
    """It was loaded once by each process that called it, and the labels are those of the whole."""
    found = Counter(tuple(note.name.split("-")[:2]) for note in model.folder.iterdir())
    at_work = {pid for what, pid in found if what == "called"}
    assert at_work
    assert str(os.getpid()) not in at_work
    assert {pid: n for (what, pid), n in found.items() if what == "loaded"} == dict.fromkeys(
        at_work, 1
    )
    assert n_halvings >= n_tiles
    labels = zarr.open_array(place / "0")[...]
    assert cells.same_partition(above_1100(IMAGE), labels)


def run(model: Model, folder: Path, executor: Executor) -> None:
    place = folder / "labels.zarr"
    image = ome_zarr(folder / "image.zarr", IMAGE)
    plan = plan_run(image, model, RunOptions(write_to=place, **RUN))
    report = run_plan(plan, executor, progress=False, engine="processes")
    check(model, place, report.n_halvings)


def test_worker_processes_load_it_once(model, tmp_path):
    run(model, tmp_path, ThreadExecutor(2))


def test_workers_of_a_cluster_load_it_once_whatever_their_threads(model, tmp_path):
    with Client(n_workers=1, threads_per_worker=4, dashboard_address=None) as client:
        run(model, tmp_path, DaskExecutor(client))


@pytest.mark.slow
def test_workers_of_a_flow_load_it_once(model, tmp_path, workers):
    image = ome_zarr(tmp_path / "image.zarr", IMAGE)
    place = tmp_path / "labels.zarr"
    report = segment_image(image, segmenter=model, write_to=place, cluster=workers, **RUN)
    check(model, place, report.n_halvings)


def saved_plan(folder: Path, fn=above_1100) -> pipeline.RunPlan:
    plan = plan_run(IMAGE, fn, RunOptions(write_to=folder / "labels.zarr", **RUN))
    open_stage(plan)
    pipeline.save_plan(plan)
    return plan


def test_threads_that_ask_for_a_plan_at_once_get_the_same(model, tmp_path):
    stage = str(saved_plan(tmp_path, model).stage.root)
    plans, start = [], threading.Barrier(8)

    def ask():
        start.wait()
        plan = pipeline.load_plan(stage)
        plans.append((id(plan), id(loaded(plan.segmenter))))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(plans)) == 1
    assert len(list(model.folder.glob("loaded-*"))) == 1


def test_plans_of_runs_that_ended_are_let_go_of(tmp_path):
    first = saved_plan(tmp_path / "a")
    pipeline.load_plan(str(first.stage.root))
    first.stage.remove()
    second = saved_plan(tmp_path / "b")
    kept = pipeline.load_plan(str(second.stage.root))
    held = [plan for _, plan in pipeline._PLANS.values()]
    assert [plan for plan in held if plan.stage.root == first.stage.root] == []
    assert any(plan is kept for plan in held)


def test_a_plan_that_was_saved_again_is_read_again(tmp_path):
    plan = saved_plan(tmp_path)
    stage = str(plan.stage.root)
    assert loaded(pipeline.load_plan(stage).segmenter) is above_1100
    os.utime(plan.stage.root / pipeline.PLAN_FILE, ns=(1, 1))
    pipeline.load_plan(stage)
    pipeline.save_plan(pipeline.with_segmenter(plan, np.zeros_like))
    assert loaded(pipeline.load_plan(stage).segmenter) is np.zeros_like


def test_a_loaded_plan_travels_without_its_function(tmp_path):
    plan = pipeline.load_plan(str(saved_plan(tmp_path).stage.root))
    loaded(plan.segmenter)
    again = pickle.loads(pickle.dumps(plan))
    assert isinstance(again.segmenter, StoredSegmenter)
    assert again.segmenter(IMAGE).max() == above_1100(IMAGE).max()
