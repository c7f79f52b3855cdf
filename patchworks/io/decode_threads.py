"""How many threads decode the chunks of a tile."""

from __future__ import annotations

import os

MOST_THREADS = 8
"""Threads that decode a tile at most."""


def decode_threads(n_cores: int | None = None) -> int:
    """Return how many threads decode a tile: all cores, or this process's share of them.

    Worker processes are told theirs by OMP_NUM_THREADS, by Dask and by `ProcessExecutor`.

    Parameters
    ----------
    n_cores : int, optional
        Cores that this process may use; the machine's by default.
    """
    share = os.environ.get("OMP_NUM_THREADS", "")
    n_threads = int(share) if share.isdigit() and int(share) else MOST_THREADS
    return min(n_threads, MOST_THREADS, n_cores or os.cpu_count() or 1)
