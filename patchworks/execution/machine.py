"""What this machine lets the process have: cores and memory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from patchworks.errors import MissingExtraError

try:
    import psutil
except ImportError as error:
    raise MissingExtraError(
        "psutil is not installed, without which nobody knows how much memory is free; install it "
        "with pip install psutil"
    ) from error


def available_cores() -> int:
    """Return the number of cores for this process, by its affinity and its container's quota."""
    counts = [os.cpu_count() or 1, *_quotas()]
    if hasattr(os, "sched_getaffinity"):  # not on macOS, nor on Windows
        counts.append(len(os.sched_getaffinity(0)))
    return max(1, min(counts))


def cores_of_this_process() -> int:
    """Return how many cores a library may use here: a worker process's share, or all there are.

    Worker processes are told theirs by OMP_NUM_THREADS, by Dask and by `ProcessExecutor`.
    """
    share = os.environ.get("OMP_NUM_THREADS", "")
    n_cores = available_cores()
    return min(int(share), n_cores) if share.isdigit() and int(share) else n_cores


@dataclass(frozen=True)
class Memory:
    """Memory for this process: in all, and what of it is free for use now."""

    limit_bytes: int
    available_bytes: int

    @classmethod
    def of_this_process(cls) -> Memory:
        """Return what the machine, the container and a Dask worker's limit leave."""
        machine = psutil.virtual_memory()
        limits, available = [int(machine.total)], [int(machine.available)]
        for limit, used in _container_limits():
            limits.append(limit)
            available.append(max(0, limit - used))
        worker = _worker_limit()
        if worker is not None:
            limits.append(worker)
            available.append(max(0, worker - held_bytes()))
        return cls(min(limits), min(available))


def held_bytes() -> int:
    """Return the memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def available_memory_bytes() -> int:
    """Return the memory that is free for use now, within the limit of this process's container."""
    return Memory.of_this_process().available_bytes


def return_free_memory() -> None:
    """Give memory that is free back to the system, where its allocator (glibc's) can be asked to.

    Else it is kept in pieces, of which fewer and fewer fit what is asked for next.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


M_ARENA_MAX = -8
"""What glibc calls the number of pools that its allocator makes (malloc.h)."""


def limit_pools() -> None:
    """Let the allocator (glibc's) make as many pools of memory as there are cores.

    It would make eight times as many, one for nearly each thread, and what is free in one is of no
    use to the others: of 430 MiB that a run on two cores took, 60 were such. Whoever starts the
    process may choose otherwise, by MALLOC_ARENA_MAX or GLIBC_TUNABLES.
    """
    chosen = os.environ.get("MALLOC_ARENA_MAX") or os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not chosen:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, cores_of_this_process())


CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
"""Where Linux says what a container may use, and in which of its groups this process is."""

FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use, and the part of the use that is only cached files: of cgroup 2, of cgroup 1."""


def _container_limits() -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of every control group around this process that has a limit.

    `distributed` knows the outermost limit too, but takes half a second to import.
    """
    for folder in _own_groups("memory"):
        for limit_file, use_file, cached in FILES:
            with suppress(OSError, ValueError):  # not Linux, no such group, no limit ("max")
                limit = int((folder / limit_file).read_text())
                used = int((folder / use_file).read_text())
                stat = (folder / "memory.stat").read_text().splitlines()
                freed = dict(line.split() for line in stat if len(line.split()) == 2)
                yield limit, used - int(freed.get(cached, 0))


def _quotas() -> Iterator[int]:
    """Yield how many cores at a time each control group around this process may use.

    `dask.system` knows the outermost group's alone, and takes a while to import.
    """
    for folder in _own_groups("cpu"):
        with suppress(OSError, ValueError):  # cgroup 2, where no quota is "max"
            quota, period = (folder / "cpu.max").read_text().split()
            yield int(quota) // int(period)
        with suppress(OSError, ValueError):  # cgroup 1, where it is -1
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                yield int(quota) // int(period)


def _own_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those around it."""
    yield CGROUPS
    yield CGROUPS / controller
    with suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root = CGROUPS / controller if controller in controllers.split(",") else CGROUPS
            folder = Path(path.lstrip("/"))
            while folder.parts:
                yield root / folder
                folder = folder.parent


def _worker_limit() -> int | None:
    """Return the memory limit of the Dask worker that this process is, if it is one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    with suppress(Exception):  # no worker; or a kind of worker without limits
        workers = distributed.Worker._instances
        limits = [w.memory_manager.memory_limit for w in workers]
        return min([int(limit) for limit in limits if limit], default=None)
    return None
