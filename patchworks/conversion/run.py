"""The order of a conversion, on any engine: level 0 from the file → other levels → metadata."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from functools import partial
from math import prod

from patchworks.conversion import regions
from patchworks.conversion.collection import (
    CollectionPlan,
    begin_collection,
    is_whole,
    publish_collection,
)
from patchworks.conversion.plan import ConversionPlan, made_from
from patchworks.conversion.regions import StoredPlan
from patchworks.errors import InputError, PatchworksError, TargetInUseError
from patchworks.execution.dask import DaskExecutor, active_client
from patchworks.execution.executor import Executor, ThreadExecutor, batched
from patchworks.execution.machine import available_cores, available_memory_bytes
from patchworks.execution.progress import say, with_progress
from patchworks.io.run_lock import RunLock, lock_path_of

logger = logging.getLogger(__name__)

COPIES = 6
"""Regions' worth of memory that a worker needs: as read, decoded, its levels, compressed."""


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion did.

    Parameters
    ----------
    target : str
        Path or URL of the image.
    n_bytes : int
        Bytes read from the file and written, uncompressed, without the pyramid.
    n_regions, n_reused : int
        Regions of level 0, and those of them that an earlier try had written.
    seconds : float
        Wall time.
    """

    target: str
    n_bytes: int
    n_regions: int
    n_reused: int
    seconds: float

    def __str__(self) -> str:
        if self.n_reused == self.n_regions:
            return f"{self.target}: made from this file already"
        rate = self.n_bytes / 1e6 / max(self.seconds, 1e-9)
        again = f", {self.n_reused} of {self.n_regions} regions done before" * bool(self.n_reused)
        return (
            f"{self.target}: {self.n_bytes / 1e6:.1f} MB in {self.seconds:.1f} s, "
            f"{rate:.0f} MB/s{again}"
        )


def is_finished(plan: ConversionPlan) -> bool:
    """Whether the image of this very conversion is in its place."""
    return made_from(plan.place).get("fingerprint") == plan.fingerprint


def settle_finished(plan: ConversionPlan) -> ConversionReport:
    """Do what a kill right after the image was in its place left undone, and report."""
    plan.stage.remove()
    plan.reader.close()
    lock_of(plan).clear()
    return _nothing_done(plan, plan.target)


def _nothing_done(plan: ConversionPlan, target: str) -> ConversionReport:
    n_regions = plan.pyramid.regions().n_tiles
    return ConversionReport(target, plan.n_bytes(0), n_regions, n_regions, 0.0)


def lock_of(plan: CollectionPlan | ConversionPlan, run: str = "") -> RunLock:
    """Return the lock of the image, or of the collection with all its images.

    `run` is what others are to call this run.
    """
    return RunLock(lock_path_of(plan.place), str(plan.place), run)


def choose_engine(plan: ConversionPlan, max_workers: int | None) -> Executor:
    """Return the engine: an active Dask client's workers where they can read and write, or threads.

    As many threads at a time as the memory that is free allows.
    """
    client = active_client() if plan.reader.crosses_processes else None
    if client is not None:
        check_reachable(plan)
        return DaskExecutor(client)
    if max_workers is not None:
        return ThreadExecutor(max_workers)
    region = prod(map(min, plan.pyramid.region_shape, plan.pyramid.shapes[0]))
    fitting = available_memory_bytes() // (COPIES * region * plan.store.dtype.itemsize)
    return ThreadExecutor(max(1, min(available_cores(), fitting)))


def check_reachable(plan: ConversionPlan) -> None:
    """Raise InputError if worker processes could not read the image or write the target."""
    if not plan.reader.crosses_processes or plan.place.url.startswith("memory://"):
        raise InputError(
            f"{plan.reader.name} to {plan.place}: the workers are other processes, and do not see "
            f"this one's memory; give paths or URLs that they see too"
        )


def run_images(
    plan: CollectionPlan, *, max_workers: int | None = None, progress: bool = True
) -> ConversionReport:
    """Carry out the conversion of one image, or of all images of a file.

    Raises
    ------
    TargetInUseError
        If another run is writing the target.
    """
    if is_whole(plan):
        return settle_whole(plan, progress=progress)
    if not plan.is_collection:
        image = plan.parts[0]
        return run_conversion(image, choose_engine(image, max_workers), progress=progress)
    with ExitStack() as open_files:
        for part in plan.parts:
            open_files.callback(part.reader.close)
        lock = open_files.enter_context(lock_of(plan))
        if is_whole(plan):  # by a run that held the lock until now
            return settle_whole(plan, progress=progress)
        begin_collection(plan)
        reports = [
            run_conversion(part, choose_engine(part, max_workers), progress=progress, lock=lock)
            for part in plan.parts
        ]
        lock.check()
        publish_collection(plan)
    return total_of(plan, reports)


def settle_whole(plan: CollectionPlan, *, progress: bool) -> ConversionReport:
    """Report that a collection is in its place already."""
    for part in plan.parts:
        part.reader.close()
    lock_of(plan).clear()
    report = total_of(plan, [_nothing_done(part, part.target) for part in plan.parts])
    logger.info("%s", report)
    say(str(report), shown=progress)
    return report


def total_of(plan: CollectionPlan, reports: Sequence[ConversionReport]) -> ConversionReport:
    """Return what was done for all images together."""
    return ConversionReport(
        str(plan.place),
        sum(report.n_bytes for report in reports),
        sum(report.n_regions for report in reports),
        sum(report.n_reused for report in reports),
        sum(report.seconds for report in reports),
    )


def run_conversion(
    plan: ConversionPlan,
    executor: Executor,
    *,
    progress: bool = True,
    lock: RunLock | None = None,
) -> ConversionReport:
    """Carry out a conversion; return at once if its image is there already.

    Parameters
    ----------
    plan : ConversionPlan
        What to do.
    executor : Executor
        What runs the batches.
    progress : bool
        Show bars and, at the end, what was done.
    lock : RunLock, optional
        The lock of the collection that the image is a part of, if the caller holds it.

    Raises
    ------
    TargetInUseError
        If another run is writing the image.
    """
    if is_finished(plan):
        report = settle_finished(plan)
    else:
        with ExitStack() as held:
            held.callback(plan.reader.close)
            lock = lock or held.enter_context(lock_of(plan))
            if is_finished(plan):  # by a run that held the lock until now
                report = settle_finished(plan)
            else:
                if not plan.called:  # a part of a collection is nowhere yet
                    plan.check_target()
                report = _convert(plan, executor, lock, progress=progress)
    logger.info("%s", report)
    say(str(report), shown=progress)
    return report


def _convert(
    plan: ConversionPlan, executor: Executor, lock: RunLock, *, progress: bool
) -> ConversionReport:
    """Write an image whose lock is held."""
    with Timed(plan) as timed:
        sent = _stored(plan) if executor.crosses_processes else plan
        try:
            regions.begin(plan)
            for level in plan.passes:
                _one_pass(sent, level, executor, progress=progress)
            lock.check()
            regions.check_source(plan)
            regions.publish(plan)
        except TargetInUseError:
            raise  # what is written is the other's now
        except (PatchworksError, KeyboardInterrupt) as error:
            settle_failed(plan, error, all_ended=not executor.crosses_processes)
            raise
    return timed.made()


def settle_failed(plan: ConversionPlan, error: BaseException, *, all_ended: bool) -> None:
    """Note on an error what is kept of the conversion that it ended, or leave nothing behind.

    Parameters
    ----------
    plan : ConversionPlan
        The conversion.
    error : BaseException
        What ended it.
    all_ended : bool
        Whether nothing writes any longer, so that what is begun may be removed.
    """
    n_regions = plan.pyramid.regions().n_tiles
    n_done = n_regions - len(regions.todo(plan, 0))
    if n_done == 0 and all_ended and plan.place.is_local:
        plan.stage.remove()
        plan.store.building.remove()
        if plan.called:  # a part of a collection, whose folder may be empty now
            with suppress(OSError):
                plan.place.path.parent.rmdir()
        return
    if not plan.stage.exists():
        return  # the source changed: nothing of the conversion is of use
    error.add_note(
        f"{n_done} of {n_regions} regions are written and kept in {plan.store.building}; the same "
        f"call goes on from there"
    )


class Timed:
    """Measure a conversion, and what of it an earlier try had done."""

    def __init__(self, plan: ConversionPlan) -> None:
        self.plan = plan
        self.n_reused = 0
        self.seconds = 0.0

    def __enter__(self) -> Timed:
        self._start = time.perf_counter()
        if self.plan.stage.exists() and self.plan.store.is_begun():
            self.n_reused = self.plan.pyramid.regions().n_tiles - len(regions.todo(self.plan, 0))
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start

    def made(self) -> ConversionReport:
        """Return what was done."""
        plan = self.plan
        n_regions = plan.pyramid.regions().n_tiles
        return ConversionReport(
            plan.target, plan.n_bytes(0), n_regions, self.n_reused, self.seconds
        )


def _one_pass(plan: ConversionPlan, level: int, executor: Executor, *, progress: bool) -> None:
    todo = regions.todo(plan, level)
    if not todo:
        return
    grid = plan.pyramid.regions(level)
    total = sum(grid[i].core.size for i in todo) * plan.store.dtype.itemsize
    batches = batched(todo, executor.max_batches)
    work = partial(regions.write_regions, plan, level)
    bar = with_progress(
        executor.map(work, batches),
        total=total,
        what="convert" if level == 0 else f"level {level}",
        unit="B",
        shown=progress,
        count=int,
    )
    for _ in bar:
        pass


def _stored(plan: ConversionPlan) -> StoredPlan:
    return StoredPlan(**{f.name: getattr(plan, f.name) for f in fields(plan)})
