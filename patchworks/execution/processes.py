"""Worker processes on this machine, for functions that hold the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from importlib import import_module
from typing import Any

from patchworks.errors import ClientError
from patchworks.execution.executor import Batch, Result, run_portably
from patchworks.execution.machine import available_cores

DIED = (
    "a worker process died (most often: out of memory, or the function crashed the interpreter); "
    "what is done is kept: give smaller tiles or fewer max_workers, and call again"
)

START_S = 3.0
"""What it takes until worker processes have started and imported what they need, generously."""

NATIVE_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Variables by which libraries beneath Python are told how many threads to start."""


def share_of_cores(
    n_workers: int, n_cores: int, already_set: Container[str] = os.environ
) -> dict[str, str]:
    """Return the variables that give each worker process its share of the cores.

    Else the libraries of each would start a thread for every core. What the user has set stays.

    Examples
    --------
    >>> share_of_cores(2, 8, already_set=())["OPENBLAS_NUM_THREADS"]
    '4'
    """
    share = str(max(1, n_cores // n_workers))
    return {name: share for name in NATIVE_THREADS if name not in already_set}


class ProcessExecutor:
    """Worker processes that are started when needed and end with the work.

    They do not import the caller's main module, so scripts need no guard, and functions defined in
    a notebook or at a prompt go along by value.

    Parameters
    ----------
    n_workers : int
        Processes.

    Examples
    --------
    >>> with ProcessExecutor(2) as processes:
    ...     print(sorted(processes.map(sum, [[1, 2], [3, 4]])))
    [3, 7]
    """

    crosses_processes: bool = True
    max_batches: int = 10_000

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._is_done = True
        self._starting: list[Future[Any]] = []
        self._pool: Any = None

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            for future in self._starting:
                future.cancel()
            self._pool.shutdown(wait=True, kill_workers=kind is not None or not self._is_done)

    def start(self) -> None:
        """Start the processes, and have them import what tiles need, while others go on here."""
        import loky

        self._pool = loky.ProcessPoolExecutor(
            self.n_workers,
            context=loky.backend.get_context("loky"),
            initializer=_end_with,
            initargs=(os.getpid(),),
            env=share_of_cores(self.n_workers, available_cores()),
        )
        needed = "patchworks.pipeline"
        self._starting = [self._pool.submit(import_module, needed) for _ in range(self.n_workers)]

    @property
    def is_ready(self) -> bool:
        """Whether the processes are up."""
        return all(future.done() for future in self._starting)

    def map(self, fn: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
        """Yield the result of each batch as it comes; after an error no batch is begun."""
        import loky

        if self._pool is None:
            self.start()
        todo = iter(batches)
        running: set[Future[Any]] = set()
        self._is_done = False
        try:
            for batch in todo:
                running.add(self._pool.submit(run_portably, fn, batch))
                if len(running) >= 2 * self.n_workers:
                    break
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    batch = next(todo, ())
                    if batch:
                        running.add(self._pool.submit(run_portably, fn, batch))
                    yield result
            self._is_done = True
        except loky.process_executor.TerminatedWorkerError as error:
            raise ClientError(DIED) from error
        finally:
            for future in running:
                future.cancel()


def _end_with(parent: int) -> None:
    """Have this worker killed when its parent dies, whatever its function is doing then."""
    import ctypes
    import signal
    import sys

    # Ctrl-C goes to all processes of a terminal; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
