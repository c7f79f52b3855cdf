"""What the workers of a cluster offer, which tasks go to which of them, and what they can reach."""

from __future__ import annotations

import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import dask.config
import distributed

from flows.errors import ServerError
from patchworks.errors import ClientError

Role = Literal["segment", "other"]
Resources = Mapping[str, float]

GPU = "GPU"
CPU = "CPU"
WITHOUT_GPU = "PATCHWORKS_WITHOUT_GPU"
"""Marks the workers without a GPU of a running scheduler that have no mark of their own."""

_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one worker offers: tasks at a time, and Dask resources."""

    address: str
    name: str
    nthreads: int
    resources: Resources

    def slots(self, wanted: Resources) -> int:
        """Return how many tasks that take `wanted` run here at a time."""
        fits = [int(self.resources.get(name, 0) / amount) for name, amount in wanted.items()]
        return min([self.nthreads, *fits])

    def __str__(self) -> str:
        """Name the worker, its threads and its resources."""
        offered = ", ".join(f"{name}={amount:g}" for name, amount in self.resources.items())
        return (
            f"{self.name} at {self.address}: {self.nthreads} threads, {offered or 'no resources'}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The Dask resources that a task of each role takes; none where any worker will do."""

    segment: Resources
    other: Resources

    def of(self, role: Role) -> Resources:
        """Return the resources of a role."""
        return self.segment if role == "segment" else self.other


def no_scheduler(address: str, error: Exception) -> ClientError:
    """Return the error of an address at which nobody answers."""
    return ClientError(
        f"no Dask scheduler answers at {address} ({error}); start one (`dask scheduler`), or "
        "correct the address"
    )


def offers_of(client: distributed.Client) -> list[Offer]:
    """Return what each worker of the cluster offers now."""
    return [
        Offer(
            address=address,
            name=str(worker["name"]),
            nthreads=int(worker["nthreads"]),
            resources=dict(worker["resources"]),
        )
        for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
    ]


def count_slots(offers: Iterable[Offer], wanted: Resources, n_expected: int = 0) -> int:
    """Return how many tasks run at a time, at least 1.

    Parameters
    ----------
    offers : iterable of Offer
        The workers that are there.
    wanted : mapping
        Resources that one task takes.
    n_expected : int
        Workers that there may be; those still to come count as much as the best that is there.
    """
    slots = [offer.slots(wanted) for offer in offers]
    return max([1, sum(slots), *(each * n_expected for each in slots)])


def place(client: distributed.Client, offers: Iterable[Offer]) -> Placement:
    """Find out which tasks go where: segmentation to GPUs, the rest to the workers without.

    Where there are both kinds and nothing tells those without a GPU apart, they are marked with a
    resource of their own, now and whenever one starts again. A list of their addresses would not
    do: a worker that starts again has another one, and tasks would wait for the old for ever.
    """
    offers = list(offers)
    with_gpu = [offer for offer in offers if offer.resources.get(GPU)]
    without = [offer for offer in offers if not offer.resources.get(GPU)]
    if not with_gpu:
        return Placement(segment={}, other={})
    if not without:
        return Placement(segment={GPU: 1}, other={})
    told_apart = all(offer.resources.get(CPU) for offer in without) and not any(
        offer.resources.get(CPU) for offer in with_gpu
    )
    if told_apart:
        return Placement(segment={GPU: 1}, other={CPU: 1})
    client.register_plugin(MarkWithoutGpu())
    client.run(_mark_without_gpu)
    return Placement(segment={GPU: 1}, other={WITHOUT_GPU: 1})


class MarkWithoutGpu(distributed.NannyPlugin):
    """Have every worker process that a nanny starts from now on say that it has no GPU."""

    name = "patchworks-without-gpu"

    def setup(self, nanny: distributed.Nanny) -> None:
        """Change what the nanny's next worker process offers."""
        offered = nanny.resources or dask.config.get("distributed.worker.resources", None) or {}
        if offered.get(GPU):
            return
        nanny.resources = {**offered, WITHOUT_GPU: nanny.nthreads}
        if nanny.process is not None:  # which it starts again as it was made
            nanny.process.worker_kwargs["resources"] = nanny.resources


async def _mark_without_gpu(dask_worker: distributed.Worker) -> None:
    offered = dask_worker.state.total_resources
    if not offered.get(GPU) and WITHOUT_GPU not in offered:
        await dask_worker.set_resources(**{WITHOUT_GPU: dask_worker.state.nthreads})


def check_workers_reach(
    client: distributed.Client, url: str, *, within_s: float = _ANSWER_S
) -> None:
    """Make sure that every worker reaches the Prefect server of this run.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    url : str
        The API's, as in `PREFECT_API_URL`.
    within_s : float
        How long the server may take to answer, if it is busy.

    Raises
    ------
    ServerError
        Names the worker, the URL and the way out.
    """
    for worker, problem in _complaints(client, _problem_reaching, url, within_s=within_s):
        host = urlsplit(url).hostname or ""
        loopback = host == "localhost" or host.startswith("127.") or host == "::1"
        raise ServerError(
            f"Worker {worker} cannot reach the Prefect server of this run, {url}: {problem}."
            f"{' The server listens on loopback, for its own machine alone.' if loopback else ''}"
            " Start a server that other machines reach, `prefect server start --host 0.0.0.0`, and"
            f" set PREFECT_API_URL to its address as they see it, such as"
            f" http://{socket.gethostname()}:4200/api; or run on worker processes of this machine"
            " (kind: local)."
        )


def check_workers_see(client: distributed.Client, path: Path, *, within_s: float = 10.0) -> None:
    """Make sure that every worker sees a file or folder that this process has written.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    path : Path
        Absolute.
    within_s : float
        How long a network file system may take to show the workers a new file.

    Raises
    ------
    ClientError
        Names the worker that does not see it.
    """
    for worker, problem in _complaints(client, _problem_seeing, os.fspath(path), within_s=within_s):
        raise ClientError(
            f"Worker {worker} does not see {path}: {problem}. The stage must lie on a file system "
            "that all workers share under the same path; say where with stage_dir=, and keep the "
            "image and the labels on such a file system too."
        )


def _complaints(
    client: distributed.Client,
    question: Callable[[str], str | None],
    subject: str,
    *,
    within_s: float,
) -> list[tuple[str, str]]:
    """Ask every worker until none has a problem or the time is up; (worker, problem) of the rest.

    A worker that ended meanwhile, or came, is no problem: each time those are asked that are there.
    """
    deadline = time.monotonic() + within_s
    while True:
        answers: dict[str, Any] = client.run(question, subject, on_error="return")
        # OSError: the worker has ended since. The questions return what they find, and never raise.
        problems = {a: it for a, it in answers.items() if it and not isinstance(it, OSError)}
        if not problems or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    names = {offer.address: offer.name for offer in offers_of(client)} if problems else {}
    named = {f"{names.get(a, '?')} at {a}": it for a, it in problems.items()}
    for worker, problem in named.items():
        if isinstance(problem, Exception):
            raise ClientError(
                f"Worker {worker} cannot run what patchworks asks of it: {problem}; install the "
                "same version of patchworks there, in the environment that starts the worker"
            ) from problem
    return list(named.items())


def _problem_reaching(url: str) -> str | None:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_ANSWER_S):
            return None
    except urllib.error.HTTPError as error:
        # An answer, if only "not without a key", comes from a server; a proxy says 502 to 504.
        return None if error.code < 500 else f"HTTP {error.code} on {socket.gethostname()}"
    except (OSError, HTTPException) as error:
        return f"{error} on {socket.gethostname()}"


def _problem_seeing(path: str) -> str | None:
    try:
        Path(path).stat()
    except OSError as error:
        return f"{error.strerror} on {socket.gethostname()}"
    return None
