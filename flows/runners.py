"""Where the tasks of a flow run: worker processes of this machine, as a Dask cluster."""

import contextvars
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import distributed
from prefect.context import get_run_context
from prefect.exceptions import MissingContextError
from prefect.logging.handlers import APILogHandler
from prefect.settings import get_current_settings
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner

from flows.environment import environment
from flows.errors import ServerError
from patchworks.execution.machine import available_cores, available_memory_bytes

# Spilling writes to disk behind the run's back, and a paused worker waits for memory that the
# allocator may never hand back. A run plans its memory beforehand (MemoryBudgetError); a worker
# that leaves its plan ends, at the 95 % of Dask's default, instead of taking the machine with it.
_WORKER_CONFIG = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
}

LIBRARY_LOGGER = "patchworks"


def local_dask_runner(
    *,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: int | str | None = None,
) -> DaskTaskRunner:
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
    DaskTaskRunner
        For ``flow.with_options(task_runner=...)``.
    """
    workers = n_workers or max(1, available_cores() // threads_per_worker)
    return LocalDaskRunner(
        cluster_kwargs={
            "n_workers": workers,
            "threads_per_worker": threads_per_worker,
            "processes": True,
            "host": "127.0.0.1",
            # The dashboard is off; a scheduler still serves HTTP, by default on port 8787, with a
            # warning where that is taken.
            "dashboard_address": "127.0.0.1:0",
            "scheduler_kwargs": {"dashboard": False},
            "memory_limit": memory_limit or available_memory_bytes() // workers,
        },
    )


class LocalDaskRunner(DaskTaskRunner):
    """A Dask task runner that keeps to a cluster of its own and carries the library's log lines.

    A plain `DaskTaskRunner` runs its tasks on whatever `distributed.Client` the process has.
    """

    @property
    def client(self) -> PrefectDaskClient:
        """The client of this runner's cluster; both start on first use.

        Raises
        ------
        ServerError
            Without a Prefect server that worker processes can reach.
        """
        if self._client is None and not _in_worker():
            settings = get_current_settings()
            _require_server(settings.api.url)
            # In a context of its own: what a cluster's event loop runs keeps the context it was
            # made in, and would carry a `dask.annotate` of this moment to every later graph.
            contextvars.Context().run(self._start, settings.logging.level)
        return super().client

    def _start(self, log_level: str) -> None:
        self._exit_stack.enter_context(_quiet_dask())
        cluster = self._exit_stack.enter_context(
            distributed.LocalCluster(**self.cluster_kwargs, config=_WORKER_CONFIG)
        )
        client = self._exit_stack.enter_context(
            PrefectDaskClient(cluster, **self.client_kwargs)  # type: ignore[no-untyped-call]
        )
        client.register_plugin(LibraryLogs(log_level))
        self._client = client


def _in_worker() -> bool:
    # There, a task that submits tasks goes to the cluster that runs it.
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True


def _require_server(url: str | None) -> None:
    if not url:
        raise ServerError(
            "Tasks in worker processes need a Prefect server that they can reach, and"
            " PREFECT_API_URL is not set: each worker would start a server of its own. Run the flow"
            " inside `with prefect_server():`, or set PREFECT_API_URL."
        )


@contextmanager
def _quiet_dask() -> Iterator[None]:
    """Keep Dask's own log at warnings, here and in the workers.

    Imported after Prefect, Dask finds a console handler and leaves it to tell every step it takes.
    """
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    variable = "DASK_LOGGING__DISTRIBUTED"
    try:
        with environment({variable: os.environ.get(variable, "warning")}):
            yield
    finally:
        logger.setLevel(level)


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


def send_library_logs(level: str) -> None:
    """Send this process's log lines of the library to the run that they are written in.

    Parameters
    ----------
    level : str
        The lowest level that is sent, such as ``"INFO"``.
    """
    library = logging.getLogger(LIBRARY_LOGGER)
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
