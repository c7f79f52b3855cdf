"""Which tiles hold signal, as task runs: what is not known of the image's maxima is read first.

::

    choose threshold ─► map maxima (where no run has made the map) ─► estimate empty tiles
"""

from __future__ import annotations

from itertools import compress

import numpy as np

from flows import tasks
from flows.batches import ESTIMATE_RUNS, Work, batches_of
from flows.caching import StageOf, kept_in
from flows.task_runs import Call, TaskRuns
from patchworks import occupancy, pipeline
from patchworks.emptiness import Emptiness, is_staged, knows_empty
from patchworks.pipeline import RunPlan


def find_occupied(stage: StageOf, runs: TaskRuns) -> int:
    """Write which tiles hold signal to the stage; returns of how many no voxel was read for it."""
    plan = pipeline.load_plan(stage.root)
    kept = kept_in(stage, is_done=True)
    threshold = runs.one(tasks.choose_threshold, {"stage": stage}, **kept)
    known = occupancy.known_emptiness(plan)
    was_known = known is not None and known.maxima.is_complete
    if known is not None:
        if plan.spec.empty_threshold is None:
            known.note_threshold(threshold)
        if not known.maxima.is_complete:
            _map_maxima(plan, known, stage, runs)
        known.keep()
    occupied = _estimate(plan, threshold, stage, runs)
    if known is None or not was_known:
        return 0
    empty = compress(plan.spec.grid, ~occupied.ravel())
    return sum(knows_empty(known.maxima, tile, threshold) for tile in empty)


def _map_maxima(plan: RunPlan, known: Emptiness, stage: StageOf, runs: TaskRuns) -> None:
    """Read the image for what its map does not know."""
    n_slots = runs.runner.n_slots("other")
    n_bytes = int(np.prod(plan.source.shape)) * plan.source.dtype.itemsize
    work = Work(n_slots=n_slots, max_runs=ESTIMATE_RUNS, n_bytes=n_bytes)
    calls = []
    for batch in batches_of(0, known.units.n_tiles, work.n_runs):
        options = kept_in(stage, is_done=is_staged(plan.stage, batch.indices))
        arguments = {"stage": stage, "batch": batch}
        calls.append(Call(task=tasks.map_maxima, arguments=arguments, options=options))
    runs.each(calls)
    occupancy.gather_maxima(plan, known)


def _estimate(plan: RunPlan, threshold: float, stage: StageOf, runs: TaskRuns) -> np.ndarray:
    """Ask the map about each tile, and look at the voxels that it leaves open."""
    n_runs = Work(n_slots=runs.runner.n_slots("other"), max_runs=ESTIMATE_RUNS).n_runs
    batches = batches_of(0, plan.spec.grid.n_tiles, n_runs)
    found = runs.each(
        [
            Call(
                task=tasks.estimate_empty_tiles,
                arguments={"stage": stage, "threshold": threshold, "batch": batch},
                options=kept_in(stage, is_done=True),
            )
            for batch in batches
        ]
    )
    return occupancy.save_occupancy(
        plan,
        threshold,
        [
            list(zip(batch.indices, signal, strict=True))
            for batch, signal in zip(batches, found, strict=True)
        ],
    )
