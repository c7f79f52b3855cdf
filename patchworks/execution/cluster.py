"""A Dask cluster on this machine that tiled segmentation can rely on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from patchworks.errors import ClientError, MissingExtraError
from patchworks.execution.machine import available_cores, available_memory_bytes

LOOPBACK = "127.0.0.1"


def make_local_cluster(
    use_gpu: bool = False,
    n_workers: int | None = None,
    memory_limit: int | str | None = None,
    *,
    threads_per_worker: int = 1,
    **cluster_kwargs: Any,
) -> tuple[Any, Any]:
    """Start worker processes on this machine and make their client the active one.

    Parameters
    ----------
    use_gpu : bool
        One worker per GPU, each seeing only its own.
    n_workers : int, optional
        Worker processes; by default one per core, or per GPU.
    memory_limit : int or str, optional
        Memory of one worker, in bytes or as ``"8GB"``; by default an even share of what is
        available.
    threads_per_worker : int
        Tiles at a time in one process.
    **cluster_kwargs
        More for `distributed.LocalCluster`.

    Returns
    -------
    client, cluster : distributed.Client, distributed.LocalCluster
        Close both at the end.

    Raises
    ------
    ClientError, MissingExtraError
        If `use_gpu` is True and there is no GPU, or no way to ask for one.
    """
    from distributed import Client, LocalCluster

    gpus = visible_gpus() if use_gpu else []
    workers = n_workers or (len(gpus) if use_gpu else available_cores())
    limit = memory_limit or available_memory_bytes() // workers
    if use_gpu:
        cluster = _gpu_cluster(gpus, workers, limit, **cluster_kwargs)
    else:
        # No dashboard, and no fixed port: with None the scheduler still listens on 8787.
        quiet = {"dashboard_address": f"{LOOPBACK}:0", "scheduler_kwargs": {"dashboard": False}}
        options = {**quiet, "host": LOOPBACK, **cluster_kwargs}
        cluster = LocalCluster(
            processes=True,
            n_workers=workers,
            threads_per_worker=threads_per_worker,
            memory_limit=limit,
            **options,
        )
    return Client(cluster), cluster


def _gpu_cluster(gpus: list[str], n_workers: int, memory_limit: Any, **kwargs: Any) -> Any:
    """Return a cluster of one process and one thread per worker, each seeing one GPU."""
    devices = [gpus[i % len(gpus)] for i in range(n_workers)]
    return spec_cluster(gpu_workers(devices, memory_limit=memory_limit), **kwargs)


def gpu_workers(gpus: Sequence[str], **options: Any) -> dict[str, dict[str, Any]]:
    """Specify one worker process per GPU for `spec_cluster`: one thread, one unit of ``"GPU"``.

    Parameters
    ----------
    gpus : sequence of str
        For each worker, what ``CUDA_VISIBLE_DEVICES`` is in its process.
    **options
        More for each `distributed.Nanny`, such as ``memory_limit``.

    Returns
    -------
    dict
        By the worker's name: ``gpu-0``, ``gpu-1``, ...
    """
    return {
        f"gpu-{i}": worker_process(
            nthreads=1, resources={"GPU": 1}, env={"CUDA_VISIBLE_DEVICES": gpu}, **options
        )
        for i, gpu in enumerate(gpus)
    }


def cpu_workers(
    n_workers: int, *, nthreads: int, resources: Mapping[str, float] | None = None, **options: Any
) -> dict[str, dict[str, Any]]:
    """Specify worker processes for `spec_cluster`, named ``cpu-0``, ``cpu-1``, ...

    Parameters
    ----------
    n_workers, nthreads : int
        Processes; tasks at a time in each.
    resources : mapping, optional
        What each offers, such as ``{"CPU": 2}``.
    **options
        More for each `distributed.Nanny`.
    """
    offered = dict(resources or {})
    return {
        f"cpu-{i}": worker_process(nthreads=nthreads, resources=offered, **options)
        for i in range(n_workers)
    }


def worker_process(**options: Any) -> dict[str, Any]:
    """Specify one worker process for `spec_cluster`, on loopback unless ``host`` is given."""
    from distributed import Nanny

    return {"cls": Nanny, "options": {"host": LOOPBACK, "dashboard": False, **options}}


def spec_cluster(
    workers: Mapping[str, Mapping[str, Any]], *, host: str = LOOPBACK, **kwargs: Any
) -> Any:
    """Start a scheduler in this process and the given workers, and wait until all are there.

    Parameters
    ----------
    workers : mapping
        From `gpu_workers` and `cpu_workers`; merge the two for a cluster of both.
    host : str
        Where the scheduler listens.
    **kwargs
        More for `distributed.SpecCluster`.

    Returns
    -------
    distributed.SpecCluster
        A context manager; close it at the end.
    """
    from distributed import Scheduler, SpecCluster

    # Without an address of its own, what a scheduler serves over HTTP takes port 8787, or warns.
    options = {"host": host, "dashboard": False, "dashboard_address": f"{host}:0"}
    scheduler = {"cls": Scheduler, "options": options}
    return SpecCluster(workers=dict(workers), scheduler=scheduler, **kwargs)


def visible_gpus(asked_by: str = "use_gpu=True") -> list[str]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES would name them.

    Parameters
    ----------
    asked_by : str
        The parameter that asks for GPUs, for the messages.

    Raises
    ------
    MissingExtraError
        If nvidia-ml-py is not installed.
    ClientError
        If there is no GPU.
    """
    try:
        import pynvml
    except ImportError as error:
        raise MissingExtraError(
            f"{asked_by} needs nvidia-ml-py; install it with pip install 'patchworks[gpu]'"
        ) from error
    try:
        pynvml.nvmlInit()
        found = [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise ClientError(
            f"{asked_by}: no NVIDIA GPU answers on this machine ({error}); leave it out"
        ) from error
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = found if chosen is None else [name for name in chosen.split(",") if name.strip()]
    if not gpus:
        raise ClientError(
            f"{asked_by}: no GPU is visible to this process (CUDA_VISIBLE_DEVICES={chosen!r}); "
            "leave it out"
        )
    return gpus
