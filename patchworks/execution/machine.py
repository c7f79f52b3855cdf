"""What this machine lets the process have: cores and memory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import dask.system
import psutil


def available_cores() -> int:
    """Return the number of cores for this process, by its affinity and its container's quota."""
    return max(1, int(dask.system.cpu_count()))


def available_memory_bytes() -> int:
    """Return the memory that is free for use now, within the limit of this process's container."""
    return min([psutil.virtual_memory().available, *_container_limits()])


CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.limit_in_bytes"))
"""Where Linux says what a container may use, cgroup 2 and 1; `distributed` knows it too, but takes
half a second to import."""


def _container_limits() -> list[int]:
    limits = []
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # not Linux, no limit ("max")
            limits.append(int(path.read_text()))
    return limits
