"""The order of the steps, on any engine: stage → segment → seams → merge → pyramid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from threading import Thread
from typing import Any, TypeVar

from patchworks import occupancy, pipeline
from patchworks.emptiness import Emptiness
from patchworks.engine import Engine, OnGpus, check_can_go, segmented
from patchworks.errors import TargetInUseError, TargetNotWritableError
from patchworks.execution.dask import DaskExecutor
from patchworks.execution.executor import (
    Batch,
    Executor,
    ThreadExecutor,
    batched,
    shrinking_batches,
)
from patchworks.execution.machine import Memory, available_cores, return_free_memory
from patchworks.execution.progress import Progress, say, with_progress
from patchworks.fingerprint import remember_after_run
from patchworks.geometry.components import preload
from patchworks.io.run_lock import RunLock, lock_path_of
from patchworks.io.stage import Stage
from patchworks.lazy import make_readable
from patchworks.memory import fitted, memory_need
from patchworks.pipeline import (
    RunPlan,
    prepare_segmenter,
    with_segmenter,
    with_threshold,
)
from patchworks.report import RunReport
from patchworks.segmenters.reach import warn_if_short
from patchworks.steps.merge import Relabeling
from patchworks.tile_stream import TileOutcome

logger = logging.getLogger("patchworks")

Result = TypeVar("Result")


def run_plan(
    plan: RunPlan,
    executor: Executor,
    *,
    progress: Progress = True,
    keep_stage: bool = False,
    resume: bool = True,
    engine: Engine | OnGpus = "auto",
) -> RunReport:
    """Carry out a plan; return at once if its label image is there already.

    Parameters
    ----------
    plan : RunPlan
        What to do.
    executor : Executor
        What runs the batches.
    progress : bool or callable
        Show bars and, at the end, what was done; or what is told instead.
    keep_stage, resume, engine
        As in `patchworks.tile_process`.

    Raises
    ------
    TargetInUseError
        If another run is writing the label image.
    """
    if resume and is_finished(plan):
        report = settle_finished(plan, keep_stage=keep_stage)
        say(f"already done: {report}", shown=progress)
        return report
    check_can_go(plan, executor, engine)
    projected = 0
    if not executor.crosses_processes:
        memory, n_cores = Memory.of_this_process(), available_cores()
        plan, n_workers = fitted(plan, executor.n_workers, memory, n_cores)
        projected = memory_need(plan, n_workers, n_cores).projected_bytes
        executor = ThreadExecutor(n_workers)
    plan.target.make_private()
    with lock_of(plan) as lock:
        if resume and is_finished(plan):  # by a run that held the lock until now
            report = settle_finished(plan, keep_stage=keep_stage, lock=lock)
            say(f"already done: {report}", shown=progress)
            return report
        plan.check_target()
        if not resume:
            plan.stage.remove()
        open_stage(plan)
        report = RunReport(str(plan.target.location), plan.spec.grid.n_tiles)
        report.projected_bytes = projected
        _take_steps(_Steps(plan, executor, report, lock, progress=progress, engine=engine))
        if not keep_stage:
            plan.stage.remove()
    logger.info("%s", report)
    say(str(report), shown=progress)
    return report


def _take_steps(run: _Steps) -> None:
    """Take every step of a run whose stage is open, and note on an error what is kept of it."""
    plan, report = run.plan, run.report
    try:
        run.prepare()
        run.segment()
        relabeling = run.stitch()
        run.merge(relabeling)
        run.build_pyramid(relabeling)
    except (Exception, KeyboardInterrupt) as error:
        with suppress(OSError):  # the stage may be what is gone
            error.add_note(
                f"{plan.stage.n_done()} of {report.n_tiles} tiles are done and kept in "
                f"{plan.stage.root}; the same call goes on from there"
            )
        raise
    finally:
        remember_after_run(plan.segmenter, plan.segmenter_digest)


def lock_of(plan: RunPlan, run: str = "") -> RunLock:
    """Return the lock of the label image; `run` is what others are to call this run."""
    target = plan.target
    path = lock_path_of(target.location, target.image_group)
    advice = "give another place with write_to="
    return RunLock(path, str(target.location), run, advice=advice)


def open_stage(plan: RunPlan) -> Stage:
    """Make the run's stage, or open the one that an interrupted try left."""
    spec = plan.spec
    manifest = {
        "fingerprint": plan.tiles_fingerprint,
        "image": plan.source.name,
        "segmenter": plan.segmenter_name,
        "shape": list(spec.grid.shape),
        "tile_shape": list(spec.grid.tile_shape),
        "overlap": list(spec.grid.halo),
        "labels": str(plan.target.location),
    }
    plan.target.make_private()
    stage = Stage.create(plan.stage.root, manifest, spec.grid.n_tiles)
    others = [p.name for p in stage.root.parent.iterdir() if p != stage.root and p.is_dir()]
    if others and stage.root.parent.name.endswith(".stage"):
        logger.warning(
            "%s holds stages of other, unfinished runs (%s); the same call as then goes on with "
            "one, deleting it frees its space",
            stage.root.parent,
            ", ".join(sorted(others)),
        )
    return stage


def is_finished(plan: RunPlan) -> bool:
    """Whether the label image of this very run is in its place."""
    return bool(plan.target.finished_run().get("fingerprint") == plan.fingerprint)


def settle_finished(plan: RunPlan, *, keep_stage: bool, lock: RunLock | None = None) -> RunReport:
    """Do what a kill right after the label image was in its place left undone, and report.

    Parameters
    ----------
    plan : RunPlan
        The finished run.
    keep_stage : bool
        Whether to leave its stage.
    lock : RunLock, optional
        Its lock, if the caller holds it. Else what another run, which makes the label image anew,
        is at work on is left alone.
    """
    plan.target.register()
    with suppress(TargetInUseError, TargetNotWritableError), ExitStack() as held:
        is_left = not keep_stage and bool(plan.stage.manifest())
        if lock is None and (is_left or lock_of(plan).path.exists()):
            held.enter_context(lock_of(plan))
        if is_left:
            plan.stage.remove()
    n_tiles = plan.spec.grid.n_tiles
    n_objects = int(plan.target.finished_run().get("n_objects", 0))
    return RunReport(str(plan.target.location), n_tiles, n_objects, n_reused=n_tiles)


def _for_others(executor: Executor) -> Executor:
    """Return what runs the steps that do not call the function."""
    if isinstance(executor, DaskExecutor):
        return DaskExecutor(executor.client)
    return executor if executor.crosses_processes else ThreadExecutor(available_cores())


class _Steps:
    """One method per step; what passes between them is on disk or a small record."""

    def __init__(
        self,
        plan: RunPlan,
        executor: Executor,
        report: RunReport,
        lock: RunLock,
        *,
        progress: Progress,
        engine: Engine | OnGpus,
    ) -> None:
        self.plan = plan
        self.executor = executor
        # The number of function calls at a time is limited for the function's sake: its memory, its
        # GPU. What comes after it takes the whole machine.
        self.others = _for_others(executor)
        self.report = report
        self.lock = lock
        self.progress = progress
        self.emptiness: Emptiness | None = None
        self.engine = engine

    def prepare(self) -> None:
        """Make the image readable for every worker, prepare the function, choose what is signal."""
        with self.report.timed("prepare"):
            plan = make_readable(self.plan, by_other_processes=self.executor.crosses_processes)
            warn_if_short(plan.segmenter, plan.spec.grid)
            prepared = prepare_segmenter(plan.segmenter, plan.source)
            plan = with_segmenter(plan, prepared)
            if plan.spec.skip_empty:
                plan = self._find_signal(plan)
            self.plan = plan
            if self.executor.crosses_processes:
                pipeline.save_plan(self.plan)
            if self.emptiness is not None and self._needs_pass(self.emptiness):
                self._look_at_all(self.emptiness)

    def _find_signal(self, plan: RunPlan) -> RunPlan:
        """Choose what is signal; see what is known of where it is."""
        self.emptiness = occupancy.known_emptiness(plan)
        if self.emptiness is None:
            return with_threshold(plan, occupancy.sample_threshold(plan))
        return with_threshold(plan, self.emptiness.choose_threshold(plan.spec.empty_threshold))

    def _needs_pass(self, known: Emptiness) -> bool:
        """Whether the map of maxima is not made in passing, while tiles are looked at."""
        if known.maxima.is_complete:
            return False
        elsewhere = self.executor.crosses_processes or self.engine == "processes"
        return elsewhere or known.was_begun or not self.plan.reader.learns_all

    def _look_at_all(self, known: Emptiness) -> None:
        """Read the image for what its map does not know."""
        units = range(known.units.n_tiles)
        look: Callable[[Batch], int]
        if self.others.crosses_processes:
            look = self._of_plan(occupancy.map_maxima)
            batches = batched(units, 4 * self.others.n_workers)
        else:
            look, batches = known.look_at, batched(units, self.others.max_batches)
        for _ in self.others.map(look, batches):
            pass
        occupancy.gather_maxima(self.plan, known)
        self.plan = replace(self.plan)  # with a reader that knows it

    def segment(self) -> None:
        """Segment and stage every tile that is not done."""
        with self.report.timed("segment"):
            done = set(self.plan.stage.done())
            order = self.plan.reader.order
            todo = order.ordered([i for i in range(self.report.n_tiles) if i not in done])
            self.report.n_reused += len(done)
            self.report.n_workers = self.executor.n_workers
            # Not before the first tile, for which all wait.
            aside = Thread(target=preload, daemon=True, name="patchworks-preload")
            try:
                for outcomes in self._segmented(todo):
                    self.report.count(outcomes)
                    if aside.ident is None:
                        aside.start()
            finally:
                if self.emptiness is not None and not self.emptiness.maxima.is_complete:
                    occupancy.stage_learned(self.plan, self.emptiness)
            if self.emptiness is not None:
                self.emptiness.keep()
            self.plan.reader.clear()
            return_free_memory()

    def _segmented(self, todo: list[int]) -> Iterator[list[TileOutcome]]:
        n_before = self.report.n_tiles - len(todo)
        return with_progress(
            segmented(self.plan, todo, self.executor, self.engine),
            total=len(todo),
            what="segment",
            unit="tile",
            shown=self.progress if todo else False,
            count=len,
            look=lambda: self.plan.stage.n_done() - n_before,
        )

    def stitch(self) -> Relabeling:
        """Judge every seam, and number the objects."""
        with self.report.timed("stitch"):
            join = self._of_plan(pipeline.join_tiles)
            tiles = range(self.report.n_tiles)
            batches = batched(tiles, 4 * self.others.n_workers)
            joined = list(self.others.map(join, batches))
            relabeling = pipeline.relabel(self.plan, joined)
        self.report.n_objects = relabeling.n_objects
        return relabeling

    def merge(self, relabeling: Relabeling) -> None:
        """Write level 0, and the levels whose cells lie inside its regions."""
        self.lock.check()
        with self.report.timed("merge"):
            todo = pipeline.begin_label_image(self.plan, relabeling)
            finish = self._of_plan(pipeline.finish_regions)
            if not self.others.crosses_processes:
                finish = partial(pipeline.finish_regions, self.plan, spare=[])
            for _ in self._each(finish, todo, "merge", "region", int):
                pass

    def build_pyramid(self, relabeling: Relabeling) -> None:
        """Write the other levels, each from the one above, and put the label image in place."""
        pyramid, image = self.plan.spec.pyramid, self.plan.label_image(relabeling)
        with self.report.timed("pyramid"):
            for level in range(pyramid.n_fused, pyramid.n_levels):
                build = partial(pipeline.build_level, image, level)
                regions = range(pyramid.regions(level).n_tiles)
                for _ in self._each(build, regions, f"level {level}", "region", int):
                    pass
            self.lock.check()
            pipeline.publish(self.plan, relabeling, version("patchworks"))

    def _of_plan(self, fn: Callable[[RunPlan, Batch], Result]) -> Callable[[Batch], Result]:
        """Return a function of the plan and a batch as one of the batch, for the engine."""
        if self.others.crosses_processes:
            return pipeline.FromStage(fn, str(self.plan.stage.root))
        return partial(fn, self.plan)

    def _each(
        self,
        fn: Callable[[Batch], Result],
        indices: Sequence[int],
        what: str,
        unit: str,
        count: Callable[[Any], int],
    ) -> list[Result]:
        batches = shrinking_batches(indices, self.others.n_workers, self.others.max_batches)
        return list(
            with_progress(
                self.others.map(fn, batches),
                total=len(indices),
                what=what,
                unit=unit,
                shown=self.progress if indices else False,
                count=count,
            )
        )
