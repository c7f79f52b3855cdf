"""The steps from a run plan to its label image, as task runs: what several flows share.

::

    set up stage ─► estimate empty tiles ─► segment tiles ─► judge seams ─► stitch ─► merge
    ─► pyramid
"""

from __future__ import annotations

import time
from functools import partial
from math import prod
from typing import Any

import numpy as np
from prefect import get_run_logger

from flows import tasks
from flows.artifacts import Progress
from flows.batches import (
    JOIN_RUNS,
    LEVEL_RUNS,
    MAX_PROBES,
    MERGE_RUNS,
    MIN_JOINED,
    PROBE_TILES,
    SEGMENT_RUNS,
    Batch,
    Work,
    batches_by_weight,
    batches_of,
    from_array,
    to_array,
)
from flows.caching import StageOf, kept_in
from flows.occupancy import find_occupied
from flows.parameters import Run
from flows.task_runs import TICK_S, Call, Place, TaskRuns
from patchworks import joining, pipeline
from patchworks.io.stage import Stage
from patchworks.pipeline import RunPlan
from patchworks.report import RunReport
from patchworks.steps.merge import Relabeling

BATCHES = "batches"
"""Name under which the stage keeps the batches of a run, so that a rerun has the same."""

EMPTY_WEIGHT = 1e-3
"""What an empty tile costs against one that is segmented."""


class Segmentation:
    """The steps of one run, in order; what passes between them is on disk or a small record.

    Parameters
    ----------
    plan : RunPlan
        What to do.
    runs : TaskRuns
        Makes the task runs.
    report : RunReport
        Counts what was done.
    options : Run
        What was asked for beside the plan.
    """

    def __init__(self, plan: RunPlan, runs: TaskRuns, report: RunReport, options: Run) -> None:
        self.plan = plan
        self.runs = runs
        self.report = report
        self.options = options
        self.stage = StageOf("", "")
        self.itemsize = 4
        self.n_unread = 0

    @property
    def n_tiles(self) -> int:
        """Tiles of the run."""
        return self.plan.spec.grid.n_tiles

    @property
    def n_bytes_read(self) -> int:
        """Bytes of image that all tiles read, halos included."""
        return self.plan.spec.grid.n_read_voxels * self.plan.source.voxel_bytes

    @property
    def n_bytes_written(self) -> int:
        """Bytes of the label image on disk; 0 where it lies on no local disk."""
        place = self.plan.target.location
        if not place.is_local:
            return 0
        return sum(path.stat().st_size for path in place.path.rglob("*") if path.is_file())

    @property
    def n_tiles_of(self) -> dict[str, int]:
        """Tiles, or regions, of each step."""
        pyramid = self.plan.spec.pyramid
        return {
            "estimate empty tiles": self.n_tiles,
            "segment": self.report.n_segmented,
            "stitch": self.n_tiles,
            "merge": pyramid.regions().n_tiles,
        }

    @property
    def n_bytes_of(self) -> dict[str, int]:
        """Bytes that each step went through, uncompressed."""
        share = self.report.n_segmented / max(1, self.n_tiles)
        return {
            "segment": int(self.n_bytes_read * share),
            "merge": prod(self.plan.spec.grid.shape) * self.itemsize,
        }

    def set_up(self) -> None:
        """Make the stage; the image of this process is copied there, so it runs in it."""
        with self.report.timed("set up stage"):
            task = tasks.set_up_stage.with_options(**self.runs.options)
            self.stage = task(tasks.Opaque(self.plan))

    def estimate_empty_tiles(self) -> None:
        """Find the tiles without signal, if they are to be left out."""
        plan = self.plan
        if not plan.spec.skip_empty or plan.stage.read_array(pipeline.OCCUPANCY) is not None:
            return
        with self.report.timed("estimate empty tiles"):
            self.n_unread = find_occupied(self.stage, self.runs)

    def segment(self) -> None:
        """Segment and stage every tile, in batches that last some seconds each."""
        with self.report.timed("segment"):
            done = self.plan.stage.done()
            if len(done) < self.n_tiles:  # what was judged before, was judged on other tiles
                self.plan.stage.remove_arrays(joining.JOINED)
            self.report.n_workers = self.runs.runner.n_slots("segment")
            progress = Progress("segment tiles", "tiles", self.n_tiles, len(done))
            try:
                batches = from_array(self.plan.stage.read_array(BATCHES))
                if not batches:
                    probes, batches = self._probe(progress)
                    self.plan.stage.write_array(BATCHES, to_array([*probes, *batches]))
                self._segment(batches, progress)
                progress.update(self.n_tiles)
            finally:
                progress.close()
        self._count(done)

    def _count(self, done_before: list[int]) -> None:
        """Count tiles by what the stage says: one whose batch ran twice is one tile."""
        todo = np.ones(self.n_tiles, bool)
        todo[done_before] = False
        occupied = self.plan.stage.read_array(pipeline.OCCUPANCY)
        empty = np.zeros_like(todo) if occupied is None else ~occupied.ravel()
        self.report.n_reused = len(done_before)
        self.report.n_empty = int(np.count_nonzero(todo & empty))
        self.report.n_unread = min(self.n_unread, self.report.n_empty)
        self.report.n_segmented = int(np.count_nonzero(todo & ~empty))

    def _probe(self, progress: Progress) -> tuple[list[Batch], list[Batch]]:
        """Segment a few tiles to measure the function; return their batches, and all others."""
        weights = self._weights()
        n_slots = self.runs.runner.n_slots("segment")
        probes = _probes(weights, min(n_slots, MAX_PROBES))
        found = self._segment(probes, progress)
        rest = probes[-1].last + 1 if probes else 0
        seconds = [result["last_s"] for result in found if result["last_s"] is not None]
        left = float(weights[rest:].sum())
        work = Work(
            n_slots=n_slots,
            max_runs=SEGMENT_RUNS - len(probes),
            seconds=min(seconds) * left if seconds else None,
            n_bytes=int(self.n_bytes_read * left / max(1.0, weights.sum())),
        )
        if seconds:
            get_run_logger().info(
                "%.3g s a tile: the other %d tiles in %d batches",
                min(seconds),
                self.n_tiles - rest,
                work.n_runs if rest < self.n_tiles else 0,
            )
        return probes, batches_by_weight(rest, weights[rest:], work.n_runs)

    def _weights(self) -> np.ndarray:
        """Return what each tile costs: next to nothing where it is empty."""
        occupied = self.plan.stage.read_array(pipeline.OCCUPANCY)
        if occupied is None:
            return np.ones(self.n_tiles)
        return np.where(occupied.ravel(), 1.0, EMPTY_WEIGHT)

    def _segment(self, batches: list[Batch], progress: Progress) -> list[dict[str, Any]]:
        done = set(self.plan.stage.done())
        calls = [
            Call(
                task=tasks.segment_tiles,
                arguments={"stage": self.stage, "batch": batch},
                options=kept_in(self.stage, is_done=done.issuperset(batch.indices)),
                n_done=partial(self._n_done, batch),
                limit_s=self.options.tile_timeout_s,
            )
            for batch in batches
        ]
        found = self.runs.each(calls, "segment", _Look(self.plan.stage, progress))
        for batch, result in zip(batches, found, strict=True):
            if not done.issuperset(batch.indices):  # else it is what an earlier try said
                self.report.add(result)
        return found

    def _n_done(self, batch: Batch) -> int:
        return sum(map(self.plan.stage.is_done, batch.indices))

    def stitch(self) -> Relabeling:
        """Judge every seam, and number the objects."""
        with self.report.timed("stitch"):
            n_slots = self.runs.runner.n_slots("other")
            n_runs = min(max(JOIN_RUNS, n_slots), self.n_tiles // MIN_JOINED)
            batches = batches_of(0, self.n_tiles, max(1, n_runs))
            if len(batches) > 1:
                self.runs.each([self._judging(batch) for batch in batches])
            arguments = {"stage": self.stage, "batches": batches}
            self.report.n_objects = self.runs.one(tasks.stitch, arguments)
        relabeling = Relabeling.load(self.plan.stage)
        self.itemsize = relabeling.dtype.itemsize
        return relabeling

    def _judging(self, batch: Batch) -> Call:
        name = tasks.joined_name(self.plan, batch)
        is_done = joining.load_joined(self.plan.stage, name) is not None
        arguments = {"stage": self.stage, "batch": batch}
        options = kept_in(self.stage, is_done=is_done)
        return Call(task=tasks.judge_seams, arguments=arguments, options=options)

    def merge(self, relabeling: Relabeling) -> None:
        """Write level 0, and the levels whose cells lie inside its regions."""
        with self.report.timed("merge"):
            todo = set(pipeline.begin_label_image(self.plan, relabeling))
            spec = self.plan.spec
            self._each_region(
                tasks.merge_regions,
                {},
                spec.pyramid.regions().n_tiles,
                MERGE_RUNS,
                n_bytes=prod(spec.grid.shape) * relabeling.dtype.itemsize,
                todo=todo,
            )

    def build_pyramid(self) -> None:
        """Write the other levels, each from the one above, and put the label image in place."""
        pyramid = self.plan.spec.pyramid
        with self.report.timed("pyramid"):
            for level in range(pyramid.n_fused, pyramid.n_levels):
                n_regions = pyramid.regions(level).n_tiles
                arguments = {"level": level}
                self._each_region(tasks.build_level, arguments, n_regions, LEVEL_RUNS)
            self.runs.one(tasks.finish_pyramid, {"stage": self.stage})

    def _each_region(
        self,
        task: Any,
        arguments: dict[str, Any],
        n_regions: int,
        max_runs: int,
        *,
        n_bytes: int = 0,
        todo: set[int] | None = None,
        place: Place = "other",
    ) -> None:
        """Make task runs over batches of regions of the label image that was begun."""
        stage = StageOf.of(self.stage.root, self.stage.id, self.plan.stage.regions_id())
        n_slots = self.runs.runner.n_slots(place)
        batches = batches_of(
            0, n_regions, Work(n_slots=n_slots, max_runs=max_runs, n_bytes=n_bytes).n_runs
        )
        calls = []
        for batch in batches:
            is_done = todo is None or todo.isdisjoint(batch.indices)
            calls.append(
                Call(
                    task=task,
                    arguments={"stage": stage, "batch": batch, **arguments},
                    options=kept_in(stage, is_done=is_done),
                )
            )
        self.runs.each(calls, place)


class _Look:
    """Shows how many tiles are done, as often as counting them costs little."""

    def __init__(self, stage: Stage, progress: Progress) -> None:
        self.stage = stage
        self.progress = progress
        self.next_s = 0.0

    def __call__(self) -> None:
        """Count and show, unless it is too early."""
        start = time.monotonic()
        if start < self.next_s:
            return
        self.progress.update(self.stage.n_done())
        self.next_s = time.monotonic() + max(TICK_S, 20 * (time.monotonic() - start))


def _probes(weights: np.ndarray, n_probes: int) -> list[Batch]:
    """Return the first batches, of a few tiles that hold signal each.

    None where there are too few tiles for measuring to pay.
    """
    if len(weights) <= 4 * PROBE_TILES * n_probes:
        return []
    reached = np.cumsum(weights >= 1.0)
    wanted = PROBE_TILES * np.arange(1, n_probes + 1)
    stops = np.searchsorted(reached, wanted) + 1
    if stops[-1] > len(weights):
        return []
    starts = [0, *stops[:-1]]
    return [Batch(int(a), int(b) - 1) for a, b in zip(starts, stops, strict=True)]
