"""What this machine lets the process have: cores and memory."""

from __future__ import annotations

import dask.system
import psutil


def available_cores() -> int:
    """Return the number of cores for this process, by its affinity and its container's quota."""
    return max(1, int(dask.system.cpu_count()))


def available_memory_bytes() -> int:
    """Return the memory that is free for use now, within the limit of this process's container."""
    import distributed.system  # half a second, for those who start workers

    return int(min(psutil.virtual_memory().available, distributed.system.memory_limit()))
