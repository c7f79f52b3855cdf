"""Worker processes on this machine, for functions that hold the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from patchworks.errors import ClientError
from patchworks.execution.executor import Batch, Result, run_portably

DIED = (
    "a worker process died (most often: out of memory, or the function crashed the interpreter); "
    "what is done is kept: give smaller tiles or fewer max_workers, and call again"
)

START_S = 3.0
"""What it takes until worker processes have started and imported what they need, generously."""


@dataclass(frozen=True)
class ProcessExecutor:
    """Worker processes that are started when needed and end with the work.

    They do not import the caller's main module, so scripts need no guard, and functions defined in
    a notebook or at a prompt go along by value.

    Parameters
    ----------
    n_workers : int
        Processes.
    """

    n_workers: int
    crosses_processes: bool = True
    max_batches: int = 10_000

    def map(self, fn: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
        """Yield the result of each batch as it comes; after an error no batch is begun."""
        import loky

        pool = loky.ProcessPoolExecutor(
            min(self.n_workers, max(1, len(batches))),
            context=loky.backend.get_context("loky"),
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        todo = iter(batches)
        running: set[Future[Any]] = set()
        is_done = False
        try:
            for batch in todo:
                running.add(pool.submit(run_portably, fn, batch))
                if len(running) >= 2 * self.n_workers:
                    break
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    batch = next(todo, ())
                    if batch:
                        running.add(pool.submit(run_portably, fn, batch))
                    yield result
            is_done = True
        except loky.process_executor.TerminatedWorkerError as error:
            raise ClientError(DIED) from error
        finally:
            for future in running:
                future.cancel()
            pool.shutdown(wait=True, kill_workers=not is_done)


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
