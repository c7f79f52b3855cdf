"""Which engine segments the tiles of a run: threads, worker processes, or a Dask cluster.

Threads share what they decode and start at once, and most functions leave the interpreter's lock
while they compute. One that holds it runs on one core whatever the threads: such functions go to
worker processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from patchworks import pipeline
from patchworks.errors import InputError, PatchworksError
from patchworks.execution.dask import DaskExecutor, active_client, gpus_of_workers
from patchworks.execution.executor import Executor, ThreadExecutor, shrinking_batches
from patchworks.execution.gpus import VISIBLE, Gpu, most_free, visible_gpus
from patchworks.execution.interpreter_lock import LockWatch
from patchworks.execution.machine import available_cores
from patchworks.execution.overlap import Recall
from patchworks.execution.processes import START_S, ProcessExecutor
from patchworks.execution.work_place import WorkPlace, dask_workers, processes_here, threads_here
from patchworks.lazy import make_readable
from patchworks.memory import PROCESS_BYTES, SHARE
from patchworks.pipeline import RunPlan
from patchworks.plan import check_reachable
from patchworks.run import whole_number
from patchworks.segmenters import check_sendable, pickled
from patchworks.tile_stream import TileOutcome

logger = logging.getLogger("patchworks")

Engine = Literal["auto", "threads", "processes"]
ENGINES: tuple[Engine, ...] = ("auto", "threads", "processes")

WATCH_S = 0.3
"""Seconds of work to watch before it is said whether a function holds the lock."""

Outcomes = Iterator[list[TileOutcome]]


@dataclass(frozen=True)
class OnGpus:
    """One worker process for each GPU, which sees no other.

    Parameters
    ----------
    names : tuple of str
        What ``CUDA_VISIBLE_DEVICES`` is in each.
    """

    names: tuple[str, ...]


@dataclass(frozen=True)
class Workers:
    """What calls the function of a run.

    Parameters
    ----------
    executor : Executor
        Threads, or an active Dask cluster.
    engine : {"auto", "threads", "processes"} or OnGpus
        What is made of threads.
    place : WorkPlace
        What there is of processes and memory.
    """

    executor: Executor
    engine: Engine | OnGpus
    place: WorkPlace

    @property
    def are_threads(self) -> bool:
        """Whether the function is called in this process, at least in the beginning."""
        return not self.executor.crosses_processes and self.engine in ("auto", "threads")


def choose_workers(max_workers: int | None, engine: Engine, *, use_gpu: bool) -> Workers:
    """Return what calls the function of a run; nothing is started.

    An active Dask client goes before all else. GPUs are used by one call at a time each: the only
    one by this process, several by a process each.

    Parameters
    ----------
    max_workers : int, optional
        Function calls at a time.
    engine : {"auto", "threads", "processes"}
        What was asked for.
    use_gpu : bool
        Whether the function uses a GPU.

    Raises
    ------
    InputError
        If there is no such engine, or a number of workers is none.
    ClientError, MissingExtraError
        If a GPU is asked for and there is none.
    """
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r}: expected one of {ENGINES}")
    if max_workers is not None:
        max_workers = whole_number("max_workers", max_workers, 1, 2**16)
    client = active_client()
    if client is not None:
        gpus = gpus_of_workers(client) if use_gpu else []
        executor = DaskExecutor(client, is_on_gpus=use_gpu)
        place = dask_workers(executor.workers.values(), gpus, is_one_at_a_time=use_gpu)
        return Workers(executor, engine, place)
    if use_gpu:
        return _on_gpus(visible_gpus(), max_workers, engine)
    n_calls = available_cores() if max_workers is None else max_workers
    threads = ThreadExecutor(n_calls)
    if engine != "threads" and n_calls > 1:
        # Processes share nothing of what they read ahead: if they fit, so do threads.
        place = processes_here(n_calls)
        if engine == "processes" or SHARE * place.memory_bytes > 2 * PROCESS_BYTES:
            return Workers(threads, engine, place)
    return Workers(threads, engine, threads_here(n_calls))


def _on_gpus(visible: Sequence[Gpu], max_workers: int | None, engine: Engine) -> Workers:
    gpus = most_free(visible, max_workers)
    if len(gpus) > 1 and engine != "threads":
        names = tuple([gpu.name for gpu in gpus])
        return Workers(ThreadExecutor(len(gpus)), OnGpus(names), processes_here(len(gpus), gpus))
    # Processes would share the GPU's memory. Which of several this process takes is CUDA's choice.
    alone: Engine = "threads" if engine == "auto" else engine
    return Workers(ThreadExecutor(1), alone, threads_here(1, visible))


def kept_here(workers: Workers, plan: RunPlan) -> Workers:
    """Return the workers, or this process alone on one GPU if the run cannot be sent to others."""
    if not isinstance(workers.engine, OnGpus) or not _why_it_stays(plan):
        return workers
    logger.warning(
        "segment: %r, or what it is to write, cannot be sent to other processes: one of %d GPUs is "
        "used, by this process; give a function that can be pickled, and write_to= a path",
        plan.segmenter_name, len(workers.engine.names),
    )  # fmt: skip
    return Workers(ThreadExecutor(1), "threads", workers.place)


def check_can_go(plan: RunPlan, executor: Executor, engine: Engine | OnGpus) -> None:
    """Raise InputError if the run is to go to other processes, and its function cannot."""
    if executor.crosses_processes:
        check_reachable(plan)
        check_sendable(plan.segmenter)
    elif engine == "processes":
        check_sendable(plan.segmenter, ", or give engine='threads'")


def segmented(
    plan: RunPlan, todo: list[int], executor: Executor, engine: Engine | OnGpus
) -> Outcomes:
    """Yield what becomes of tiles, on the engine that suits the function.

    Parameters
    ----------
    plan : RunPlan
        The run, readable on `executor`.
    todo : list of int
        Indices of the tiles.
    executor : Executor
        Threads, or an active Dask cluster, which is used whatever `engine` says.
    engine : {"auto", "threads", "processes"} or OnGpus
        "auto": threads, until the first tiles show that worker processes are faster.
    """
    if not todo:
        return
    if executor.crosses_processes:
        yield from _in_batches(plan, todo, executor)
    elif isinstance(engine, OnGpus):
        names = engine.names[: min(executor.n_workers, len(todo))]
        logger.info(
            "segment: %d tiles on %d GPUs, a worker process on each (%s)",
            len(todo), len(names), ", ".join(names),
        )  # fmt: skip
        with ProcessExecutor(len(names), [{VISIBLE: name} for name in names]) as processes:
            processes.start()
            yield from _in_processes(_for_processes(plan), todo, processes)
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
    tiles = plan.reader.order.ordered(todo)  # that of processes which keep as much as this plan
    batches = shrinking_batches(tiles, executor.n_workers, executor.max_batches)
    yield from executor.map(segment, batches)


def _in_threads(plan: RunPlan, todo: list[int], n_workers: int) -> Outcomes:
    for outcome in pipeline.segment_stream(plan, todo, n_workers=n_workers):
        yield [outcome]


def _for_processes(plan: RunPlan) -> RunPlan:
    """Return the plan with an image that other processes can read."""
    check_reachable(plan)
    return make_readable(plan, by_other_processes=True)


def _in_processes(plan: RunPlan, todo: list[int], processes: ProcessExecutor) -> Outcomes:
    yield from _in_batches(_saved(plan, processes), todo, processes)


def _saved(plan: RunPlan, processes: ProcessExecutor) -> RunPlan:
    """Return the plan for processes that share the memory, where they find it."""
    plan = replace(plan, kept_bytes=plan.kept_bytes // processes.n_workers)
    pipeline.save_plan(plan)
    return plan


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
    leaves, where = watch.is_held and left_s * (1 - 1 / n_workers) > START_S, "threads"
    if leaves:
        why = _why_it_stays(plan)
        others = f"the other {len(todo) - n_done} tiles ({left_s:.0f} s on threads)"
        where = f"{others} go to {n_workers} worker processes"
        if why:
            leaves, where = False, f"threads, though processes would be faster: {why}"
    logger.info(
        "segment: %r holds the interpreter's lock for %.0f %% of its time: %s",
        plan.segmenter_name, 100 * watch.share, where,
    )  # fmt: skip
    if leaves:
        yield from _leaving(plan, threads)
        return
    for outcome in threads.stream:
        yield [outcome]


def _leaving(plan: RunPlan, threads: _Threads) -> Outcomes:
    """Go on in threads until worker processes are up, then in those."""
    threads.recall.ask()
    for outcome in threads.stream:
        yield [outcome]
    # Beside a function that holds the lock, the next lines would take ten times as long.
    with ProcessExecutor(threads.n_workers) as processes:
        processes.start()
        elsewhere = _saved(_for_processes(plan), processes)
        threads = _Threads(plan, threads.left(), threads.n_workers)
        for outcome in threads.stream:
            yield [outcome]
            if processes.is_ready:
                break
        threads.recall.ask()
        left = threads.left()
        with ThreadPoolExecutor(1, thread_name_prefix="patchworks") as aside:
            last = aside.submit(list, threads.stream)  # those that are at work
            yield from _in_batches(elsewhere, left, processes)
            yield last.result()
        plan.reader.clear()


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
        """Return the tiles that are not segmented, and nobody is at, once they were asked back."""
        returned = [tile for group in self.recall.returned for tile in group]
        return [*returned, *self._todo]


def _why_it_stays(plan: RunPlan) -> str:
    """Return why other processes cannot get the function, or not write; empty if they can."""
    try:
        pickled(plan.segmenter)
        check_reachable(plan)
    except PatchworksError as error:
        return str(error)
    return ""
