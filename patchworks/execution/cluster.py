"""A Dask cluster on this machine that tiled segmentation can rely on."""

from __future__ import annotations

import os
from typing import Any

from patchworks.errors import ClientError, MissingExtraError
from patchworks.execution.machine import available_cores, available_memory_bytes


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
        quiet = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
        options = {**quiet, "host": "127.0.0.1", **cluster_kwargs}
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
    from distributed import Nanny, Scheduler, SpecCluster

    workers = {
        i: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "memory_limit": memory_limit,
                "resources": {"GPU": 1},
                "env": {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]},
            },
        }
        for i in range(n_workers)
    }
    options = {"host": "127.0.0.1", "dashboard": False}
    return SpecCluster(workers, scheduler={"cls": Scheduler, "options": options}, **kwargs)


def visible_gpus() -> list[str]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES would name them.

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
            "use_gpu=True needs nvidia-ml-py; install it with pip install 'patchworks[gpu]'"
        ) from error
    try:
        pynvml.nvmlInit()
        found = [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise ClientError(
            f"use_gpu=True: no NVIDIA GPU answers on this machine ({error}); leave use_gpu out"
        ) from error
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = found if chosen is None else [name for name in chosen.split(",") if name.strip()]
    if not gpus:
        raise ClientError("use_gpu=True: no GPU is visible to this process; leave use_gpu out")
    return gpus
