"""Worker processes on this machine, for functions that hold the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
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
    environments : sequence of mapping, optional
        For each process, variables that are set in it alone, such as the GPU it is to see.

    Examples
    --------
    >>> with ProcessExecutor(2) as processes:
    ...     print(sorted(processes.map(sum, [[1, 2], [3, 4]])))
    [3, 7]
    """

    crosses_processes: bool = True
    max_batches: int = 10_000

    def __init__(self, n_workers: int, environments: Sequence[Mapping[str, str]] = ()) -> None:
        self.n_workers = n_workers
        self.environments = environments
        self._is_done = True
        self._starting: list[Future[Any]] = []
        # One of all processes, or one of each, for the processes of a pool are all alike.
        self._pools: list[Any] = []

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for future in self._starting:
            future.cancel()
        for pool in self._pools:
            pool.shutdown(wait=True, kill_workers=kind is not None or not self._is_done)

    def start(self) -> None:
        """Start the processes, and have them import what tiles need, while others go on here."""
        share = share_of_cores(self.n_workers, available_cores())
        if self.environments:
            self._pools = [_pool_of(1, {**share, **each}) for each in self.environments]
        else:
            self._pools = [_pool_of(self.n_workers, share)]
        needed, n_each = "patchworks.pipeline", self.n_workers // len(self._pools)
        self._starting = [
            pool.submit(import_module, needed) for pool in self._pools for _ in range(n_each)
        ]

    @property
    def is_ready(self) -> bool:
        """Whether the processes are up."""
        return all(future.done() for future in self._starting)

    def map(self, fn: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
        """Yield the result of each batch as it comes; after an error no batch is begun."""
        import loky

        if not self._pools:
            self.start()
        todo = iter(batches)
        running: dict[Future[Any], Any] = {}
        self._is_done = False
        try:
            # One at work and one waiting for each process.
            for pool, batch in zip(self._slots(), todo, strict=False):
                running[pool.submit(run_portably, fn, batch)] = pool
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    pool = running.pop(future)
                    result = future.result()
                    batch = next(todo, ())
                    if batch:
                        running[pool.submit(run_portably, fn, batch)] = pool
                    yield result
            self._is_done = True
        except loky.process_executor.TerminatedWorkerError as error:
            raise ClientError(DIED) from error
        finally:
            for future in running:
                future.cancel()

    def _slots(self) -> list[Any]:
        """Return the pools, each twice for every process, all processes in turn."""
        return self._pools * (2 * self.n_workers // len(self._pools))


def _pool_of(n_workers: int, env: Mapping[str, str]) -> Any:
    import loky

    return loky.ProcessPoolExecutor(
        n_workers,
        context=loky.backend.get_context("loky"),
        initializer=_end_with,
        initargs=(os.getpid(),),
        env=dict(env),
    )


def _end_with(parent: int) -> None:
    """Have this worker killed when its parent dies, whatever its function is doing then.

    And have it stay until then: loky takes memory of 300 MB for a leak, ends the worker after its
    batch and starts another, which would have to load the function's model again.
    """
    import ctypes
    import signal
    import sys

    import loky

    loky.process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    # Ctrl-C goes to all processes of a terminal; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
