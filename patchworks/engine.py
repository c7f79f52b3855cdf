"""Which engine segments the tiles of a run: threads, worker processes, or a Dask cluster.

Threads share what they decode and start at once, and most functions leave the interpreter's lock
while they compute. One that holds it runs on one core whatever the threads: such functions go to
worker processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import cloudpickle

from patchworks import pipeline
from patchworks.errors import InputError, PatchworksError
from patchworks.execution.executor import Executor, shrinking_batches
from patchworks.execution.interpreter_lock import LockWatch
from patchworks.execution.overlap import Recall
from patchworks.execution.processes import START_S, ProcessExecutor
from patchworks.lazy import make_readable
from patchworks.pipeline import RunPlan
from patchworks.plan import check_reachable
from patchworks.tile_stream import TileOutcome

logger = logging.getLogger("patchworks")

Engine = Literal["auto", "threads", "processes"]
ENGINES: tuple[Engine, ...] = ("auto", "threads", "processes")

WATCH_S = 0.3
"""Seconds of work to watch before it is said whether a function holds the lock."""

Outcomes = Iterator[list[TileOutcome]]


def check_engine(engine: object) -> None:
    """Raise InputError if there is no such engine."""
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r}: expected one of {ENGINES}")


def segmented(plan: RunPlan, todo: list[int], executor: Executor, engine: Engine) -> Outcomes:
    """Yield what becomes of tiles, on the engine that suits the function.

    Parameters
    ----------
    plan : RunPlan
        The run, readable on `executor`.
    todo : list of int
        Indices of the tiles.
    executor : Executor
        Threads, or an active Dask cluster, which is used whatever `engine` says.
    engine : {"auto", "threads", "processes"}
        "auto": threads, until the first tiles show that worker processes are faster.
    """
    if not todo:
        return
    if executor.crosses_processes:
        yield from _in_batches(plan, todo, executor)
    elif engine == "processes":
        check_reachable(plan)
        with ProcessExecutor(min(executor.n_workers, len(todo))) as processes:
            processes.start()
            yield from _in_processes(_for_processes(plan), todo, processes)
    elif engine == "threads" or executor.n_workers == 1 or len(todo) < 2 * executor.n_workers:
        yield from _in_threads(plan, todo, executor.n_workers)
    else:
        yield from _watched(plan, todo, executor.n_workers)


def _in_batches(plan: RunPlan, todo: list[int], executor: Executor) -> Outcomes:
    """Segment in other processes, which read the plan from its stage."""
    segment = pipeline.FromStage(pipeline.segment_tiles, str(plan.stage.root))
    batches = shrinking_batches(todo, executor.n_workers, executor.max_batches)
    yield from executor.map(segment, batches)


def _in_threads(plan: RunPlan, todo: list[int], n_workers: int) -> Outcomes:
    for outcome in pipeline.segment_stream(plan, todo, n_workers=n_workers):
        yield [outcome]


def _for_processes(plan: RunPlan) -> RunPlan:
    """Return the plan with an image that other processes can read."""
    check_reachable(plan)
    return make_readable(plan, by_other_processes=True)


def _in_processes(plan: RunPlan, todo: list[int], processes: ProcessExecutor) -> Outcomes:
    kept_bytes = plan.kept_bytes // processes.n_workers
    plan = replace(plan, kept_bytes=kept_bytes)
    pipeline.save_plan(plan)
    yield from _in_batches(plan, todo, processes)


def _watched(plan: RunPlan, todo: list[int], n_workers: int) -> Outcomes:
    """Segment on threads and watch the lock in the beginning; leave where processes are faster.

    What is looked at are real tiles, whose labels are kept.
    """
    start, n_done, watch = time.perf_counter(), 0, LockWatch()
    threads = _Threads(plan, todo, n_workers)
    with watch:
        for outcome in threads.stream:
            n_done += 1
            yield [outcome]
            if time.perf_counter() - start >= WATCH_S:
                break
    if n_done == len(todo):
        return
    left_s = (time.perf_counter() - start) / n_done * (len(todo) - n_done)
    leaves = watch.is_held and left_s * (1 - 1 / n_workers) > START_S and _can_leave(plan)
    where = f"the other {len(todo) - n_done} tiles ({left_s:.0f} s on threads) go to {n_workers} "
    logger.info(
        "segment: %r holds the interpreter's lock for %.0f %% of its time: %s",
        plan.segmenter_name, 100 * watch.share, f"{where}worker processes" if leaves else "threads",
    )  # fmt: skip
    if leaves:
        yield from _leaving(plan, threads)
        return
    for outcome in threads.stream:
        yield [outcome]


def _leaving(plan: RunPlan, threads: _Threads) -> Outcomes:
    """Go on in threads until worker processes are up, then in those."""
    threads.recall.asked = True
    for outcome in threads.stream:
        yield [outcome]
    # Beside a function that holds the lock, the next lines would take ten times as long.
    with ProcessExecutor(threads.n_workers) as processes:
        processes.start()
        elsewhere = _for_processes(plan)
        threads = _Threads(plan, threads.left(), threads.n_workers)
        for outcome in threads.stream:
            yield [outcome]
            threads.recall.asked = processes.is_ready
        plan.reader.clear()
        if left := threads.left():
            yield from _in_processes(elsewhere, left, processes)


class _Threads:
    """Tiles that are segmented in threads until they are asked back."""

    def __init__(self, plan: RunPlan, tiles: list[int], n_workers: int) -> None:
        self.n_workers = n_workers
        self.recall: Recall[Sequence[int]] = Recall()
        self._todo = iter(tiles)
        self.stream = pipeline.segment_stream(
            plan, self._todo, n_workers=n_workers, recall=self.recall
        )

    def left(self) -> list[int]:
        """Return the tiles that were not segmented, once the stream has ended."""
        returned = [tile for group in self.recall.returned for tile in group]
        return [*returned, *self._todo]


def _can_leave(plan: RunPlan) -> bool:
    """Whether the function can be sent to other processes, and they see where the labels go."""
    with suppress(Exception):  # what cannot be pickled says so in many ways
        cloudpickle.dumps(plan.segmenter)
        with suppress(PatchworksError):
            check_reachable(plan)
            return True
    return False
