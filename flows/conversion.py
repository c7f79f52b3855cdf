"""The steps from an image file to its OME-Zarr image, and those of a pyramid, as task runs.

::

    set up conversion ─► convert regions ─► build levels ─► finish conversion
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from flows import tasks
from flows.artifacts import Progress
from flows.batches import CONVERT_RUNS, LEVEL_RUNS, Work, batches_of
from flows.caching import StageOf, kept_in
from flows.owning import flow_run_id, owning
from flows.task_runs import Call, TaskRuns
from patchworks.conversion import regions
from patchworks.conversion.collection import (
    CollectionPlan,
    begin_collection,
    is_whole,
    publish_collection,
)
from patchworks.conversion.plan import ConversionPlan
from patchworks.conversion.pyramid import PyramidAddition
from patchworks.conversion.run import (
    ConversionReport,
    Timed,
    is_finished,
    lock_of,
    run_images,
    settle_failed,
    settle_finished,
    total_of,
)
from patchworks.errors import PatchworksError, TargetInUseError
from patchworks.io.run_lock import RunLock


def convert(plan: CollectionPlan, runs: TaskRuns) -> ConversionReport:
    """Convert an image, or all images of a file, one after the other."""
    with ExitStack() as held:
        for part in plan.parts:
            held.callback(part.reader.close)
        if converted(plan):
            return run_images(plan, progress=False)
        lock = held.enter_context(owning(lock_of(plan, flow_run_id())))
        if converted(plan):  # by a run that held the lock until now
            return total_of(plan, [settle_finished(part) for part in plan.parts])
        if not plan.is_collection:
            plan.parts[0].check_target()
        begin_collection(plan)
        reports = [_convert_one(part, lock, runs) for part in plan.parts]
        if plan.is_collection:
            lock.check()
            publish_collection(plan)
        return total_of(plan, reports)


def converted(plan: CollectionPlan) -> bool:
    """Whether the image, or all images of a collection, are in their place already."""
    return is_whole(plan) or (not plan.is_collection and is_finished(plan.parts[0]))


def _convert_one(plan: ConversionPlan, lock: RunLock, runs: TaskRuns) -> ConversionReport:
    """Convert one image; the lock is held."""
    if is_finished(plan):
        return settle_finished(plan)
    with Timed(plan) as timed:
        try:
            runs.one(tasks.set_up_conversion, {"opaque": tasks.Opaque(plan)})
            stage = StageOf.of(
                plan.stage.root.url, plan.fingerprint, plan.stage.id, attempt=plan.attempt
            )
            for level in plan.passes:
                _one_pass(plan, level, stage, runs)
            lock.check()
            regions.check_source(plan)
            runs.one(tasks.finish_conversion, {"stage": stage})
        except TargetInUseError:
            raise  # what is written is the other's now
        except PatchworksError as error:
            settle_failed(plan, error, all_ended=True)
            raise
    return timed.made()


def _one_pass(plan: ConversionPlan, level: int, stage: StageOf, runs: TaskRuns) -> None:
    """Write the regions of the pass for a level."""
    n_regions = plan.pyramid.regions(level).n_tiles
    todo = set(regions.todo(plan, level))
    work = Work(
        n_slots=runs.runner.n_slots("other"),
        max_runs=LEVEL_RUNS if level else CONVERT_RUNS,
        n_bytes=plan.n_bytes(level),
    )
    calls = [
        Call(
            task=tasks.convert_regions,
            arguments={"stage": stage, "level": level, "batch": batch},
            options=kept_in(stage, is_done=todo.isdisjoint(batch.indices)),
        )
        for batch in batches_of(0, n_regions, work.n_runs)
    ]
    if level:
        runs.each(calls)
        return
    progress = Progress("convert regions", "regions", n_regions, n_regions - len(todo))
    try:
        runs.each(calls, while_waiting=lambda: progress.update(len(plan.stage.finished(level))))
        progress.update(n_regions)
    finally:
        progress.close()


def add_levels(plan: PyramidAddition, runs: TaskRuns) -> PyramidReport:
    """Add levels to an array in a store, each from the one above."""
    start = time.perf_counter()
    with owning(plan.lock(flow_run_id())) as lock:
        runs.one(tasks.set_up_levels, {"opaque": tasks.Opaque(plan)})
        stage = StageOf.of(plan.stage.root.url, plan.fingerprint, plan.stage.id)
        for level in range(1, plan.pyramid.n_levels):
            todo = set(plan.todo(level))
            n_regions = plan.pyramid.regions(level).n_tiles
            work = Work(
                n_slots=runs.runner.n_slots("other"),
                max_runs=CONVERT_RUNS if level == 1 else LEVEL_RUNS,
                n_bytes=plan.n_bytes(level - 1),
            )
            runs.each(
                [
                    Call(
                        task=tasks.add_level,
                        arguments={"stage": stage, "level": level, "batch": batch},
                        options=kept_in(stage, is_done=todo.isdisjoint(batch.indices)),
                    )
                    for batch in batches_of(0, n_regions, work.n_runs)
                ]
            )
        lock.check()
        runs.one(tasks.finish_levels, {"stage": stage})
    seconds = time.perf_counter() - start
    return PyramidReport(str(plan.store), plan.pyramid.n_levels, seconds)


@dataclass(frozen=True, slots=True)
class PyramidReport:
    """What adding a pyramid came to.

    Parameters
    ----------
    store : str
        Path or URL of the image.
    n_levels : int
        Levels it has now.
    seconds : float
        Wall time.
    """

    store: str
    n_levels: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.store}: {self.n_levels} levels in {self.seconds:.1f} s"
