"""The engine for an active Dask client, and the check that it can be used."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from patchworks.errors import ClientError
from patchworks.execution.executor import (
    Batch,
    Executor,
    Result,
    ThreadExecutor,
    run_portably,
)
from patchworks.execution.gpus import Gpu, visible_gpus
from patchworks.execution.machine import available_cores

LOST_WORKER = (
    "a Dask worker died while it held {key}, again and again (most often: out of memory); what is "
    "done is kept: give smaller tiles or more memory per worker, and call again"
)


GPU = "GPU"
"""Resource of Dask workers that have a GPU, as `patchworks.make_local_cluster` starts them."""

_one_at_a_time = threading.Lock()


def run_alone(fn: Callable[[Batch], Result], batch: Batch) -> Result:
    """Run a batch in another process when no other runs there: they would share its GPU."""
    with _one_at_a_time:
        return run_portably(fn, batch)


@dataclass(frozen=True)
class DaskExecutor:
    """Worker processes of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        The active client.
    is_on_gpus : bool
        Run one batch at a time in each worker, and where workers offer the resource ``"GPU"``, on
        those alone.
    """

    client: Any
    is_on_gpus: bool = False
    crosses_processes: bool = True
    max_batches: int = 10_000  # a task costs the scheduler about a millisecond

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        """What the scheduler says of each worker that is used, by address."""
        return gpu_workers_of(self.client) if self.is_on_gpus else workers_of(self.client)

    @property
    def n_workers(self) -> int:
        """Threads of all workers; on GPUs, workers."""
        if self.is_on_gpus:
            return max(1, len(self.workers))
        return max(1, int(sum(self.client.nthreads().values())))

    def map(self, fn: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
        """Yield the result of each batch as it comes; an error cancels the rest."""
        from distributed import KilledWorker, as_completed

        run, resources = run_portably, None
        if self.is_on_gpus:
            run = run_alone
            offered = any(_offers_gpu(each) for each in self.workers.values())
            resources = {GPU: 1} if offered else None
        futures = [
            self.client.submit(run, fn, batch, pure=False, resources=resources) for batch in batches
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
                future.release()
        except KilledWorker as error:
            raise ClientError(LOST_WORKER.format(key=error.task)) from error
        finally:
            self.client.cancel(futures)


def active_client() -> Any | None:
    """Return the Dask client that the user made active, or None.

    Raises
    ------
    ClientError
        If its workers are threads of this process: their tasks are lost when a function holds the
        interpreter's lock for long.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        client = distributed.default_client()
        distributed.get_worker()
    except ValueError:
        pass
    else:
        return None  # inside a worker: its cluster is busy with us
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    address = str(client.scheduler_info(n_workers=0)["address"])
    if address.startswith("inproc://"):
        raise ClientError(
            "the active Dask client runs its workers as threads of this process "
            "(processes=False); close it, or make one with worker processes: "
            "patchworks.make_local_cluster() or distributed.Client(processes=True)"
        )
    return client


def workers_of(client: Any) -> dict[str, dict[str, Any]]:
    """Return what the scheduler says of each worker, by address."""
    return dict(client.scheduler_info(n_workers=-1)["workers"])


def gpu_workers_of(client: Any) -> dict[str, dict[str, Any]]:
    """Return the workers that offer the resource ``"GPU"``, by address; all if none does."""
    workers = workers_of(client)
    return {a: w for a, w in workers.items() if _offers_gpu(w)} or workers


def _offers_gpu(worker: dict[str, Any]) -> bool:
    return bool(worker["resources"].get(GPU))


def gpus_of_workers(client: Any) -> list[Gpu]:
    """Return the GPU that each worker of a cluster uses, as far as they can tell.

    Raises
    ------
    ClientError
        If a worker has none, and none says of itself that it has (resource ``"GPU"``): it would
        run the function without.
    """
    workers = gpu_workers_of(client)
    answers = client.run(visible_gpus, workers=list(workers), on_error="return")
    for address, answer in answers.items():
        if isinstance(answer, Exception) and not _offers_gpu(workers[address]):
            raise ClientError(
                f"use_gpu=True: the worker {workers[address]['name']} at {address} has no GPU that "
                f"can be used: {answer}; start workers with one GPU each, such as "
                f"patchworks.make_local_cluster(use_gpu=True), or with --resources GPU=1"
            )
    # A worker that sees several uses the first.
    return [answer[0] for answer in answers.values() if not isinstance(answer, Exception)]


def choose_executor(max_workers: int | None) -> Executor:
    """Return the engine of a run: the active Dask client, or else threads."""
    client = active_client()
    if client is not None:
        return DaskExecutor(client)
    return ThreadExecutor(available_cores() if max_workers is None else max_workers)
