"""Indices → the batches of a step's task runs; their futures → results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect.futures import PrefectFuture, wait

from flows.tasks import Batch
from patchworks.errors import ClientError
from patchworks.execution.executor import batched

MAX_TASK_RUNS = 64
"""Task runs of one step: each costs Dask and the server 0.15 s, and so many still read well."""


def batches_of(indices: Sequence[int]) -> list[Batch]:
    """Cut indices into the batches of a step's task runs."""
    return [Batch(tuple(part)) for part in batched(indices, MAX_TASK_RUNS)]


def results_of(futures: Sequence[PrefectFuture[Any]]) -> list[Any]:
    """Wait for all tasks and return their results, or raise the first failure.

    All of them run to their end: what the others do meanwhile is kept.
    """
    wait(list(futures))
    for future in futures:
        if not future.state.is_final():
            raise ClientError(
                f"task run {future.task_run_id} never ended: its worker died (most often: out of "
                f"memory); give smaller tiles or fewer workers, and call again"
            )
    return [future.result() for future in futures]
