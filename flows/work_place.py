"""Where the function of a flow will run, before it starts: what "auto" tiles have to fit."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import distributed
from dask.utils import parse_bytes

from flows.cluster import ClusterSpec
from flows.workers import GPU, no_scheduler
from patchworks.errors import PatchworksError
from patchworks.execution.dask import gpu_workers_of, gpus_of_workers
from patchworks.execution.gpus import Gpu, visible_gpus
from patchworks.execution.machine import available_cores, available_memory_bytes
from patchworks.execution.work_place import WorkPlace, dask_workers, processes_here, scarcest

_CONNECT_S = 30.0


def place_of(spec: ClusterSpec) -> WorkPlace:
    """Return what there will be for the tiles of a run on a cluster.

    Of a scheduler that runs, its workers are looked at. What a cluster class will start is not
    known: its ``memory``, ``cores`` and ``processes``, as job queues call them, are taken if they
    are given, and else workers like those of this machine.
    """
    if spec.kind == "local":
        return _local(spec)
    if spec.kind == "address":
        return _running(str(spec.address))
    return _of_class(spec)


def _local(spec: ClusterSpec) -> WorkPlace:
    gpus = _gpus(spec)
    names = spec.gpus if isinstance(spec.gpus, list) else [gpu.name for gpu in gpus]
    n_cpu = spec.maximum or spec.n_workers or max(1, available_cores() // spec.threads_per_worker)
    limit = (
        int(parse_bytes(spec.memory_limit))
        if spec.memory_limit
        else available_memory_bytes() // (len(names) + n_cpu)
    )
    return WorkPlace(
        n_processes=len(names) or n_cpu,
        n_batches=1 if names else spec.threads_per_worker,
        n_calls=1,
        memory_bytes=limit,
        n_regions=spec.threads_per_worker,
        merge_bytes=limit,
        gpu=scarcest(gpus),
    )


def _gpus(spec: ClusterSpec) -> list[Gpu]:
    if spec.gpus == "none":
        return []
    if spec.gpus == "all":
        return visible_gpus("gpus: all")
    found: list[Gpu] = []
    for name in spec.gpus:
        # A person named them: where nobody can be asked of their memory, it is not counted.
        with suppress(PatchworksError):
            found += visible_gpus("gpus", chosen=name)
    return found


def _running(address: str) -> WorkPlace:
    try:
        client: Any = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise no_scheduler(address, error) from error
    with client:
        workers = gpu_workers_of(client)
        has_gpus = any(worker["resources"].get(GPU) for worker in workers.values())
        gpus = gpus_of_workers(client) if has_gpus else []
        return dask_workers(workers.values(), gpus, is_one_at_a_time=has_gpus)


def _of_class(spec: ClusterSpec) -> WorkPlace:
    asked = spec.cluster_kwargs
    usual = processes_here(available_cores())
    n_workers, memory = spec.scale or spec.maximum or usual.n_processes, usual.memory_bytes
    n_threads = 1
    with suppress(TypeError, ValueError):
        n_each = int(asked.get("processes") or 1)
        n_threads = max(1, int(asked.get("cores") or n_each) // n_each)
        memory = int(parse_bytes(asked["memory"])) // n_each if asked.get("memory") else memory
    return WorkPlace(
        n_processes=n_workers,
        n_batches=n_threads,
        n_calls=1,
        memory_bytes=memory,
        n_regions=n_threads,
        merge_bytes=memory,
    )
