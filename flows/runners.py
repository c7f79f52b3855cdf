"""Where the tasks of a flow run: the workers of a Dask cluster."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import distributed
from dask.base import annotate
from prefect.context import get_run_context
from prefect.exceptions import MissingContextError
from prefect.logging.handlers import APILogHandler
from prefect.settings import get_current_settings
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner

from flows.cluster import ClusterSpec
from flows.cluster_start import await_workers, connected
from flows.errors import ServerError
from flows.workers import Placement, Role, check_workers_reach, count_slots, offers_of, place
from patchworks.errors import ClientError

LIBRARY_LOGGER = "patchworks"


def local_dask_runner(
    *,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: int | str | None = None,
) -> ClusterRunner:
    """Make a task runner whose tasks run in worker processes of this machine.

    The processes start with the first task that a flow submits, inherit the environment of that
    moment, and end with the flow. They listen on loopback alone and have no dashboard.

    Parameters
    ----------
    n_workers : int, optional
        Worker processes; by default as many as fill the cores that this process may use.
    threads_per_worker : int
        Tasks at a time in one process.
    memory_limit : int or str, optional
        Memory of one worker, in bytes or as ``"8GB"``; by default an even share of what is
        available now.

    Returns
    -------
    ClusterRunner
        For ``flow.with_options(task_runner=...)``.
    """
    return ClusterRunner(
        ClusterSpec(
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            memory_limit=None if memory_limit is None else str(memory_limit),
        )
    )


class ClusterRunner(DaskTaskRunner):
    """A Dask task runner on the cluster of a `ClusterSpec`, which starts with the first task.

    A plain `DaskTaskRunner` runs its tasks on whatever `distributed.Client` the process has.

    Parameters
    ----------
    spec : ClusterSpec, optional
        By default worker processes of this machine, one per core.
    client_kwargs : dict, optional
        More for the client of the cluster.

    Examples
    --------
    ::

        @flow(task_runner=ClusterRunner())
        def segment(cluster: ClusterSpec) -> None:
            runner = FlowRunContext.get().task_runner
            runner.use(cluster)
            with runner.placed("segment"):
                futures = [segment_tiles.submit(batch) for batch in batches]
    """

    def __init__(
        self, spec: ClusterSpec | None = None, client_kwargs: dict[str, Any] | None = None
    ) -> None:
        super().__init__(client_kwargs=client_kwargs)
        self.spec = ClusterSpec() if spec is None else spec
        self._placement = Placement(segment={}, other={})

    def __eq__(self, other: object) -> bool:
        """Tell whether both stand for the same cluster."""
        if not isinstance(other, ClusterRunner):
            return False
        return self.spec == other.spec and self.client_kwargs == other.client_kwargs

    __hash__ = None  # type: ignore[assignment] # as of DaskTaskRunner

    def duplicate(self) -> ClusterRunner:
        """Return a runner of the same spec that has not started; Prefect makes one per flow run."""
        return type(self)(self.spec, self.client_kwargs)

    def use(self, spec: ClusterSpec) -> None:
        """Take another spec, at the beginning of a flow run.

        Raises
        ------
        ClientError
            If the cluster runs already.
        """
        if self._client is not None:
            raise ClientError(
                f"the cluster of this flow run has started: {self.spec}; call use() before the "
                "first task is submitted"
            )
        self.spec = spec

    @property
    def client(self) -> PrefectDaskClient:
        """The client of this runner's cluster; both start on first use.

        Raises
        ------
        ServerError
            Without a Prefect server that the workers can reach.
        ClientError
            If the cluster cannot be started, or no worker comes in time.
        """
        if self._client is None and not _in_worker():
            settings = get_current_settings()
            url = _require_server(settings.api.url)
            # In a context of its own: what a cluster's event loop runs keeps the context it was
            # made in, and would carry a `dask.annotate` of this moment to every later graph.
            contextvars.Context().run(self._start, url, settings.logging.level)
        return super().client

    def _start(self, url: str, log_level: str) -> None:
        with ExitStack() as stack:
            client = stack.enter_context(connected(self.spec, self.client_kwargs))
            offers = await_workers(client, self.spec)
            check_workers_reach(client, url)
            client.register_plugin(LibraryLogs(log_level))
            given = Placement(segment=self.spec.segment_resources, other=self.spec.other_resources)
            self._placement = given if given.segment or given.other else place(client, offers)
            self.logger.info(
                "%s: %d workers, %d tasks at a time",
                self.spec,
                len(offers),
                sum(offer.nthreads for offer in offers),
            )
            self._exit_stack.push(stack.pop_all())
            self._client = client

    @contextmanager
    def placed(self, role: Role) -> Iterator[None]:
        """Send the tasks that are submitted in this block to the workers that are meant for them.

        Parameters
        ----------
        role : {"segment", "other"}
            Segmentation goes to the workers with a GPU where there are any, and the rest to those
            without.
        """
        self.client  # noqa: B018 - starts the cluster, which knows where what goes
        wanted = self._placement.of(role)
        if not wanted:
            yield
            return
        with annotate(resources=dict(wanted)):
            yield

    def n_slots(self, role: Role) -> int:
        """Return how many tasks of a role can run at a time, at least 1.

        Workers that adaptive scaling may add, or that the cluster was asked for, count as well.
        """
        offers = offers_of(self.client)
        expected = self.spec.maximum or self.spec.scale or 0
        return count_slots(offers, self._placement.of(role), expected)


def _in_worker() -> bool:
    # There, a task that submits tasks goes to the cluster that runs it.
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True


def _require_server(url: str | None) -> str:
    if not url:
        raise ServerError(
            "Tasks in worker processes need a Prefect server that they can reach, and"
            " PREFECT_API_URL is not set: each worker would start a server of its own. Run the flow"
            " inside `with prefect_server():`, or set PREFECT_API_URL."
        )
    return url


class LibraryLogs(distributed.WorkerPlugin):
    """Send the library's log lines to the runs, from every worker, a restarted one as well.

    `PREFECT_LOGGING_EXTRA_LOGGERS` cannot do it: Prefect reads it when it is imported, which a
    worker does with the caller's main module, before Dask sets the worker's environment; and it
    leaves the level at WARNING.
    """

    name = "patchworks-library-logs"

    def __init__(self, level: str) -> None:
        self.level = level

    def setup(self, worker: distributed.Worker) -> None:  # noqa: ARG002 - Dask calls it so
        """Prepare the worker that has just started."""
        send_library_logs(self.level)


def send_library_logs(level: str, name: str = LIBRARY_LOGGER) -> None:
    """Send this process's log lines of the library to the run that they are written in.

    Parameters
    ----------
    level : str
        The lowest level that is sent, such as ``"INFO"``.
    name : str
        The logger whose lines are sent, with those below it.
    """
    library = logging.getLogger(name)
    library.setLevel(level)
    if not any(isinstance(handler, APILogHandler) for handler in library.handlers):
        handler = APILogHandler()
        # A thread that the library or a segmenter started belongs to no run, and Prefect would warn
        # of each of its lines.
        handler.addFilter(_in_run)
        library.addHandler(handler)


def _in_run(_: logging.LogRecord) -> bool:
    try:
        get_run_context()
    except MissingContextError:
        return False
    return True
