"""Work pools and the limit of GPU slots: made where they are missing, left as a person set them."""

from __future__ import annotations

from collections.abc import Mapping

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from patchworks.errors import InputError

POOLS: dict[str, str] = {
    "cpu": "Runs whose tasks need no GPU.",
    "gpu": "Runs with GPU workers.",
    "light": "Runs that look and wait: passes over the inbox, housekeeping.",
}
"""The work pools of deployments/prefect.yaml, by name."""

GPU_LIMIT = "patchworks-gpu"
"""The global concurrency limit that counts GPUs in use, across all runs."""

DEFAULT_RUNS: dict[str, int | None] = {"cpu": 2, "gpu": 1, "light": None}
"""Runs at a time in a pool that is made anew, here or by a worker that was there before."""


def ensure_pools(client: SyncPrefectClient, limits: Mapping[str, int | None]) -> None:
    """Make the work pools that are missing, and set the limits that are given.

    A worker that starts first makes its pool itself, bare: such a one gets what is missing, once.

    Parameters
    ----------
    client : SyncPrefectClient
        Of the server.
    limits : mapping of str to int or None
        Runs at a time, by pool; None leaves a pool as it is.

    Raises
    ------
    InputError
        If a pool of that name runs no processes.
    """
    for name, description in POOLS.items():
        limit = limits.get(name)
        default = DEFAULT_RUNS[name] if limit is None else limit
        try:
            pool = client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(
                WorkPoolCreate(
                    name=name,
                    type="process",
                    description=description,
                    base_job_template=ProcessWorker.get_default_base_job_template(),
                    concurrency_limit=default,
                )
            )
            continue
        if pool.type != "process":
            raise InputError(
                f"work pool {name!r} is of type {pool.type!r}; expected 'process': delete it, or "
                f"name another pool in deployments/prefect.yaml"
            )
        if not pool.description:  # neither from here nor from a person
            if pool.concurrency_limit is not None and limit is None:
                default = pool.concurrency_limit
            update = WorkPoolUpdate(description=description, concurrency_limit=default)
            client.update_work_pool(name, update)
        elif limit is not None and limit != pool.concurrency_limit:
            client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


def ensure_gpu_slots(client: SyncPrefectClient, n_slots: int | None) -> int:
    """Make the limit of GPU slots, one slot for each GPU, and return how many there are.

    Parameters
    ----------
    client : SyncPrefectClient
        Of the server.
    n_slots : int, optional
        GPUs of all machines whose workers take runs of the pool; None leaves the limit as it is,
        and makes one of a single slot where there is none.
    """
    if n_slots is None:
        try:
            return client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit
        except ObjectNotFound:
            n_slots = 1
    client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, n_slots)
    return n_slots


def free_forgotten_slots(client: SyncPrefectClient) -> int:
    """Free the GPU slots that nobody holds, and return how many there were.

    A server keeps in memory who holds a slot: one that is killed forgets it, and the slot would
    stay taken for ever. So where no run is on in the pool ``gpu``, all slots are free.
    """
    try:
        limit = client.read_global_concurrency_limit_by_name(GPU_LIMIT)
    except ObjectNotFound:
        return 0
    at_work = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=at_work))
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=["gpu"])),
        limit=1,
    )
    if runs or not limit.active_slots:
        return 0
    client.update_global_concurrency_limit(GPU_LIMIT, GlobalConcurrencyLimitUpdate(active_slots=0))
    return limit.active_slots
