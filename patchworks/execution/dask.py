"""The engine for an active Dask client, and the check that it can be used."""

from __future__ import annotations

import sys
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
from patchworks.execution.machine import available_cores

LOST_WORKER = (
    "a Dask worker died while it held {key}, again and again (most often: out of memory); what is "
    "done is kept: give smaller tiles or more memory per worker, and call again"
)


@dataclass(frozen=True)
class DaskExecutor:
    """Worker processes of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        The active client.
    """

    client: Any
    crosses_processes: bool = True
    max_batches: int = 10_000  # a task costs the scheduler about a millisecond

    @property
    def n_workers(self) -> int:
        """Threads of all workers."""
        return max(1, int(sum(self.client.nthreads().values())))

    def map(self, fn: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
        """Yield the result of each batch as it comes; an error cancels the rest."""
        from distributed import KilledWorker, as_completed

        futures = [self.client.submit(run_portably, fn, batch, pure=False) for batch in batches]
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


def choose_executor(max_workers: int | None) -> Executor:
    """Return the engine of a run: the active Dask client, or else threads."""
    client = active_client()
    if client is not None:
        return DaskExecutor(client)
    return ThreadExecutor(available_cores() if max_workers is None else max_workers)
