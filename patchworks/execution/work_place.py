"""Where tiles are worked on: how many at a time, in which processes, and with what memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchworks.execution.gpus import Gpu
from patchworks.execution.machine import Memory, available_cores


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPlace:
    """What there is for the tiles that are worked on at a time.

    Parameters
    ----------
    n_processes : int
        Processes that call the function.
    n_batches : int
        Batches of tiles at a time in each; every one reads ahead for itself.
    n_calls : int
        Function calls at a time in a batch.
    memory_bytes : int
        Memory that is free for each process.
    n_regions : int
        Regions of the last pass that a process writes at a time.
    merge_bytes : int
        Memory that is free for those.
    gpu : Gpu, optional
        The GPU with the least free memory, of those in use; each is used by one call at a time.
    """

    n_processes: int
    n_batches: int
    n_calls: int
    memory_bytes: int
    n_regions: int
    merge_bytes: int
    gpu: Gpu | None = None

    @property
    def n_workers(self) -> int:
        """Function calls at a time in all processes."""
        return self.n_processes * self.n_batches * self.n_calls


def threads_here(n_calls: int | None = None, gpus: Sequence[Gpu] = ()) -> WorkPlace:
    """Return this process, with so many function calls at a time; by default one per core."""
    memory, n_cores = Memory.of_this_process(), available_cores()
    return WorkPlace(
        n_processes=1,
        n_batches=1,
        n_calls=n_calls or n_cores,
        memory_bytes=memory.available_bytes,
        n_regions=n_cores,
        merge_bytes=memory.available_bytes,
        gpu=scarcest(gpus),
    )


def processes_here(n_processes: int, gpus: Sequence[Gpu] = ()) -> WorkPlace:
    """Return worker processes of this machine, which share its memory; this one does the rest."""
    memory = Memory.of_this_process()
    return WorkPlace(
        n_processes=n_processes,
        n_batches=1,
        n_calls=1,
        memory_bytes=memory.available_bytes // n_processes,
        n_regions=available_cores(),
        merge_bytes=memory.available_bytes,
        gpu=scarcest(gpus),
    )


def dask_workers(
    workers: Collection[Mapping[str, Any]],
    gpus: Sequence[Gpu] = (),
    *,
    is_one_at_a_time: bool = False,
) -> WorkPlace:
    """Return the workers that a Dask cluster has now; what the smallest of them has counts.

    Parameters
    ----------
    workers : collection of mapping
        What the scheduler says of each: ``nthreads``, ``memory_limit``.
    gpus : sequence of Gpu
        Theirs.
    is_one_at_a_time : bool
        Whether a worker calls the function once at a time, whatever its threads.
    """
    limits = [int(worker["memory_limit"]) for worker in workers if worker["memory_limit"]]
    n_threads = [int(worker["nthreads"]) for worker in workers]
    n_workers, most = max(1, len(n_threads)), max(n_threads, default=1)
    memory = min(limits, default=Memory.of_this_process().available_bytes // n_workers)
    return WorkPlace(
        n_processes=n_workers,
        n_batches=1 if is_one_at_a_time else most,
        n_calls=1,
        memory_bytes=memory,
        n_regions=most,
        merge_bytes=memory,
        gpu=scarcest(gpus),
    )


def scarcest(gpus: Iterable[Gpu]) -> Gpu | None:
    """Return the GPU with the least free memory, or None."""
    return min(gpus, key=lambda gpu: gpu.free_bytes, default=None)
