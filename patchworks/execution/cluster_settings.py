"""What makes a Dask cluster of this machine's processes fit for long function calls.

Settings reach whom they are for as it is made: the scheduler of this process and the nannies read
Dask's configuration at their start, and nannies hand a worker process its own. Nothing is left
changed in this process.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask.config
import distributed

# Spilling writes to disk behind the run's back, and a paused worker waits for memory that the
# allocator may never hand back. A run plans its memory beforehand (MemoryBudgetError); a worker
# that leaves its plan ends, at 95 %, instead of taking the machine with it.
WORKER_CONFIG = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # Twice a second Dask would ask NVML what the GPU does, which nobody looks at; and where NVML
    # may not be asked, workers that need no GPU would not start.
    "distributed.diagnostics.nvml": False,
}

SCHEDULER_CONFIG = {
    # A worker sends no heartbeat while a function holds the interpreter's lock. By default Dask
    # kills such a worker, with its work, after 5 minutes. A machine that is gone is noticed by its
    # connection within 30 s, whatever stands here.
    "distributed.scheduler.worker-ttl": "2 hours",
    # A task may take so many workers down before it fails: memory that ran out once, because of
    # what else ran there, does not end the run.
    "distributed.scheduler.allowed-failures": 3,
}

NANNY_CONFIG = {"distributed.worker.memory.terminate": 0.95}

# A worker process that died has so long to come back: to start, with the caller's main module and
# what that imports. After Dask's 15 s it would be given up, and the cluster be one worker smaller.
LOST_WORKER_CONFIG = {"distributed.deploy.lost-worker-timeout": "10 minutes"}


@contextmanager
def settled() -> Iterator[None]:
    """Give a scheduler and nannies that are made meanwhile their settings."""
    with dask.config.set({**SCHEDULER_CONFIG, **NANNY_CONFIG}):
        yield


class EndWithParent(distributed.WorkerPlugin):
    """End a worker process at once when the process that started it is gone, even by SIGKILL.

    Dask has a thread for that, which waits for the interpreter's lock: a function that holds it
    would work on for a run that is dead. On Linux the kernel ends the process.
    """

    name = "patchworks-end-with-parent"

    def setup(self, worker: distributed.Worker) -> None:  # noqa: ARG002 - Dask calls it so
        """Ask the kernel for it."""
        if sys.platform == "linux":
            set_parent_death_signal = 1  # PR_SET_PDEATHSIG
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


class _Patient:
    """A cluster that waits longer for workers that died; it reads how long when one does."""

    def _update_worker_status(self, op: Any, msg: Any) -> None:
        with dask.config.set(LOST_WORKER_CONFIG):
            super()._update_worker_status(op, msg)  # type: ignore[misc]


class PatientSpecCluster(_Patient, distributed.SpecCluster):
    """Given workers, which may take long to come back."""


class PatientLocalCluster(_Patient, distributed.LocalCluster):
    """Worker processes of this machine, which may take long to come back."""
