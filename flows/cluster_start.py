"""From a `ClusterSpec` to a running cluster with a worker in it."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask.config
import distributed
from prefect_dask.client import PrefectDaskClient

from flows.cluster import ClusterSpec
from flows.environment import environment
from flows.workers import Offer, no_scheduler, offers_of
from patchworks.errors import ClientError, InputError
from patchworks.execution.cluster import (
    cpu_workers,
    gpu_workers,
    spec_cluster,
    worker_process,
)
from patchworks.execution.cluster_settings import SCHEDULER_CONFIG
from patchworks.execution.gpus import visible_gpus
from patchworks.execution.machine import available_cores, available_memory_bytes

_CONNECT_S = 30.0
_LOOK_EVERY_S = 0.2

_LOOK_AT_JOBS = {
    "SLURM": "squeue --me",
    "PBS": "qstat -u $USER",
    "Moab": "showq -u $USER",
    "SGE": "qstat -u $USER",
    "LSF": "bjobs",
    "OAR": "oarstat -u",
    "HTCondor": "condor_q",
    "Kube": "kubectl get pods",
}


@contextmanager
def connected(spec: ClusterSpec, client_kwargs: dict[str, Any]) -> Iterator[PrefectDaskClient]:
    """Start or find the cluster of a spec; yield a client of it, and end both afterwards.

    Parameters
    ----------
    spec : ClusterSpec
        What to start; a scheduler that runs already (``kind: address``) is left alone at the end.
    client_kwargs : dict
        More for `PrefectDaskClient`.

    Raises
    ------
    InputError, ClientError, MissingExtraError
        If there is no such cluster class, it cannot be made, no scheduler answers, or no GPU is
        there.
    """
    with _quiet_scheduler():
        if spec.kind == "address":
            with _client_at(str(spec.address), client_kwargs) as client:
                yield client
            return
        started = _local_cluster(spec) if spec.kind == "local" else _cluster_of_class(spec)
        with started as cluster, _client_of(cluster, client_kwargs) as client:
            if spec.maximum is not None:
                cluster.adapt(minimum=spec.minimum or 1, maximum=spec.maximum)
            yield client


def _client_of(cluster: Any, client_kwargs: dict[str, Any]) -> PrefectDaskClient:
    return PrefectDaskClient(cluster, **client_kwargs)  # type: ignore[no-untyped-call]


@contextmanager
def _client_at(address: str, client_kwargs: dict[str, Any]) -> Iterator[PrefectDaskClient]:
    try:
        client = _client_of(address, {"timeout": _CONNECT_S, **client_kwargs})
    except (OSError, ValueError) as error:
        raise no_scheduler(address, error) from error
    with client:
        yield client


@contextmanager
def _local_cluster(spec: ClusterSpec) -> Iterator[Any]:
    gpus = _gpus(spec)
    n_cpu = spec.n_workers or max(1, available_cores() // spec.threads_per_worker)
    n_most = len(gpus) + (spec.maximum or n_cpu)
    common = {
        "host": spec.host,
        "memory_limit": spec.memory_limit or available_memory_bytes() // n_most,
    }
    n_threads = spec.threads_per_worker
    offered = {"CPU": n_threads} if gpus else {}
    n_first = (spec.minimum or 1) if spec.maximum else n_cpu
    workers = {
        **gpu_workers(gpus, **common),
        **cpu_workers(n_first, nthreads=n_threads, resources=offered, **common),
    }
    added = worker_process(nthreads=n_threads, **common)
    with _quiet_workers(), spec_cluster(workers, host=spec.host, worker=added) as cluster:
        yield cluster


def _gpus(spec: ClusterSpec) -> list[str]:
    if isinstance(spec.gpus, list):
        return spec.gpus
    return [gpu.name for gpu in visible_gpus("gpus: all")] if spec.gpus == "all" else []


@contextmanager
def _cluster_of_class(spec: ClusterSpec) -> Iterator[Any]:
    cluster_class = import_cluster_class(str(spec.cluster_class))
    try:
        with dask.config.set(SCHEDULER_CONFIG):
            cluster = cluster_class(**spec.cluster_kwargs)
    except Exception as error:
        raise _not_started(spec, error) from error
    with cluster:
        if spec.scale is not None:
            try:
                _ask_for_workers(cluster, spec.scale)
            except Exception as error:
                raise _not_started(spec, error) from error
        yield cluster


def _ask_for_workers(cluster: Any, n_workers: int) -> None:
    if not isinstance(cluster, distributed.SpecCluster):
        cluster.scale(n_workers)
        return

    async def submitted() -> None:
        cluster.scale(n_workers)
        # It submits the jobs later on, and where that fails only logs it.
        try:
            await cluster
        except Exception:
            _forget_refused(cluster)
            raise

    cluster.sync(submitted)


def _forget_refused(cluster: distributed.SpecCluster) -> None:
    # A cluster cancels all its jobs when it closes, and fails on those that never were.
    for name, job in list(cluster.workers.items()):
        if job.status == distributed.Status.created:
            job.status = distributed.Status.failed
            del cluster.workers[name], cluster.worker_spec[name]


def _not_started(spec: ClusterSpec, error: Exception) -> ClientError:
    return ClientError(
        f"{spec} could not be started with the given cluster_kwargs "
        f"({', '.join(spec.cluster_kwargs) or 'none'}): {type(error).__name__}: {error}"
    )


def import_cluster_class(path: str) -> Any:
    """Import a Dask cluster class by its path, such as ``dask_jobqueue.SLURMCluster``.

    Raises
    ------
    InputError
        If there is no such module or class.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        package = module.split(".")[0].replace("_", "-")
        raise InputError(
            f"cluster_class {path} cannot be imported: {error}; correct the path, or install the "
            f"package (pip install {package})"
        ) from error
    if not callable(found):
        raise InputError(f"cluster_class {path} is a {type(found).__name__}, not a class")
    return found


def await_workers(client: distributed.Client, spec: ClusterSpec) -> list[Offer]:
    """Wait until there is a worker for every task, and return what all workers offer.

    Raises
    ------
    ClientError
        If none comes in time; names the spec, what is there, and how to look at the jobs.
    """
    needs = [spec.segment_resources, spec.other_resources]
    deadline = time.monotonic() + spec.wait_for_workers_s
    while True:
        offers = offers_of(client)
        if all(any(offer.slots(need) for offer in offers) for need in needs):
            return offers
        if time.monotonic() > deadline:
            raise ClientError(_nobody_came(client, spec, offers))
        time.sleep(_LOOK_EVERY_S)


def _nobody_came(client: distributed.Client, spec: ClusterSpec, offers: list[Offer]) -> str:
    address = client.scheduler_info(n_workers=0)["address"]
    waited = f"within {spec.wait_for_workers_s:g} s (wait_for_workers_s)"
    if offers:
        there = "\n".join(f"  {offer}" for offer in offers)
        return (
            f"{spec}: no worker came {waited} that offers what the tasks take: segmentation "
            f"{spec.segment_resources}, others {spec.other_resources}. There are:\n{there}\nStart "
            "workers with --resources, or correct segment_resources and other_resources."
        )
    if spec.kind == "address":
        return f"{spec}: no worker came {waited}; start some, on any machine: dask worker {address}"
    name = str(spec.cluster_class).rpartition(".")[2]
    look = next((do for start, do in _LOOK_AT_JOBS.items() if name.startswith(start)), None)
    hint = f"Look at its jobs (`{look}`) and their logs. " if look else ""
    return (
        f"{spec}: no worker came {waited}. {hint}Where jobs wait in a queue for longer, raise "
        f"wait_for_workers_s; where they end at once, their machines must reach the scheduler at "
        f"{address} and have this Python environment"
    )


@contextmanager
def _quiet_scheduler() -> Iterator[None]:
    """Keep Dask's own log at warnings in this process.

    Imported after Prefect, Dask finds a console handler and leaves it to tell every step it takes.
    """
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _quiet_workers() -> Iterator[None]:
    """Keep Dask's own log at warnings in worker processes that start meanwhile."""
    variable = "DASK_LOGGING__DISTRIBUTED"
    with environment({variable: os.environ.get(variable, "warning")}):
        yield
