"""A Dask cluster on this machine that tiled segmentation can rely on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from typing import Any

from patchworks.errors import ClientError, InputError
from patchworks.execution.gpus import Gpu, most_free, visible_gpus
from patchworks.execution.machine import Memory, available_cores
from patchworks.run import whole_number

LOOPBACK = "127.0.0.1"

GUARDED = 'below if __name__ == "__main__":, for every worker reads the script when it starts'


def make_local_cluster(
    use_gpu: bool = False,
    n_workers: int | None = None,
    memory_limit: int | str | None = None,
    *,
    threads_per_worker: int = 1,
    **cluster_kwargs: Any,
) -> tuple[Any, Any]:
    """Start worker processes on this machine and make their client the active one.

    In a script call it below ``if __name__ == "__main__":``, for every worker reads the script once
    more when it starts.

    Parameters
    ----------
    use_gpu : bool
        One worker per GPU, each seeing only its own.
    n_workers : int, optional
        Worker processes; by default one per core, or per GPU. Fewer than there are GPUs take those
        with the most free memory.
    memory_limit : int or str, optional
        Memory of one worker, in bytes or as ``"8GB"``; by default an even share of what is free,
        within the limits of all containers around this process. A worker that exceeds it ends.
    threads_per_worker : int
        Tiles at a time in one process; on a GPU it is one.
    **cluster_kwargs
        More for `distributed.LocalCluster`, or with `use_gpu` for `distributed.SpecCluster`.

    Returns
    -------
    client, cluster : distributed.Client, distributed.SpecCluster
        Close both at the end.

    Raises
    ------
    InputError
        If a number is not one, there are fewer GPUs than workers, or the limits add up to more
        memory than there is.
    ClientError, MissingExtraError
        If `use_gpu` is True and there is no GPU, or no way to ask for one; if the workers do not
        start, as in a script without that line.

    Notes
    -----
    Workers neither spill to disk nor pause, and are not given up while a function holds the
    interpreter's lock, so that they send no heartbeat: see `patchworks.execution.cluster_settings`.
    """
    from distributed import Client

    _check_not_read_by_worker()
    gpus = visible_gpus() if use_gpu else []
    workers = _number_of_workers(n_workers, gpus, use_gpu=use_gpu)
    limit = _limit_of_each(memory_limit, workers)
    n_threads = whole_number("threads_per_worker", threads_per_worker, 1, 2**10)
    try:
        if use_gpu:
            names = [gpu.name for gpu in most_free(gpus, workers)]
            cluster = spec_cluster(gpu_workers(names, memory_limit=limit), **cluster_kwargs)
        else:
            cluster = _local_cluster(workers, n_threads, limit, **cluster_kwargs)
    except RuntimeError as error:  # how Dask says that a worker process ended at its start
        raise ClientError(
            f"make_local_cluster: the workers did not start ({error}); what they printed says why. "
            f"A script has to call it {GUARDED}"
        ) from error
    try:
        return Client(cluster), cluster
    except BaseException:
        cluster.close()
        raise


def _check_not_read_by_worker() -> None:
    """Raise ClientError where a new worker process is only reading the script of its parent."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ClientError(
            f"make_local_cluster: called while a worker reads this script, which must not start "
            f"workers again; call it {GUARDED}"
        )


def _number_of_workers(n_workers: int | None, gpus: Sequence[Gpu], *, use_gpu: bool) -> int:
    if n_workers is None:
        return len(gpus) if use_gpu else available_cores()
    wanted = whole_number("n_workers", n_workers, 1, 2**12)
    if use_gpu and wanted > len(gpus):
        raise InputError(
            f"n_workers={wanted}: {len(gpus)} GPUs are visible to this process, and each has one "
            f"worker; leave n_workers out"
        )
    return wanted


def _limit_of_each(memory_limit: int | str | None, n_workers: int) -> int:
    """Return the memory of one worker: all limits together are no more than there is."""
    from dask.utils import parse_bytes

    memory = Memory.of_this_process()
    if memory_limit is None:
        return max(1, memory.available_bytes // n_workers)
    wrong = f"memory_limit={memory_limit!r}: expected bytes, or a text such as '8GB'"
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, (int, str)):
        raise InputError(wrong)
    try:
        limit = int(parse_bytes(memory_limit))
    except ValueError as error:
        raise InputError(wrong) from error
    if limit < 1 or memory_limit == "":
        raise InputError(wrong)
    if limit * n_workers > memory.limit_bytes:
        wanted, there = limit * n_workers / 2**30, memory.limit_bytes / 2**30
        raise InputError(
            f"memory_limit={memory_limit!r}: {n_workers} workers could take {wanted:.1f} GiB, and "
            f"this process may have {there:.1f} GiB in all; give a smaller limit, fewer workers "
            f"with n_workers=, or leave it out"
        )
    return limit


def _local_cluster(n_workers: int, n_threads: int, memory_limit: int, **kwargs: Any) -> Any:
    from patchworks.execution.cluster_settings import PatientLocalCluster, settled

    # No dashboard, and no fixed port: with None the scheduler still listens on 8787.
    quiet = {"dashboard_address": f"{LOOPBACK}:0", "scheduler_kwargs": {"dashboard": False}}
    with settled():
        return PatientLocalCluster(  # type: ignore[no-untyped-call]
            processes=True,
            n_workers=n_workers,
            threads_per_worker=n_threads,
            memory_limit=memory_limit,
            **{**quiet, "host": LOOPBACK, **_worker_options(), **kwargs},
        )


def _worker_options() -> dict[str, Any]:
    """Return what every nanny is made with."""
    from patchworks.execution.cluster_settings import WORKER_CONFIG, EndWithParent

    return {"config": WORKER_CONFIG, "plugins": (EndWithParent(),)}


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

    fixed = {"host": LOOPBACK, "dashboard": False, **_worker_options()}
    return {"cls": Nanny, "options": {**fixed, **options}}


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
    from distributed import Scheduler

    from patchworks.execution.cluster_settings import PatientSpecCluster, settled

    # Without an address of its own, what a scheduler serves over HTTP takes port 8787, or warns.
    options = {"host": host, "dashboard": False, "dashboard_address": f"{host}:0"}
    scheduler = {"cls": Scheduler, "options": options}
    with settled():
        return PatientSpecCluster(  # type: ignore[no-untyped-call]
            workers=dict(workers), scheduler=scheduler, **kwargs
        )
