"""Indices → the batches of a step's task runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np

SEGMENT_RUNS, CONVERT_RUNS, MERGE_RUNS, ESTIMATE_RUNS, LEVEL_RUNS = 96, 40, 24, 12, 6
JOIN_RUNS = 12
"""Most task runs of a step. Each costs Dask and the server 0.15 s, and a page of 200 still reads
well."""

MIN_JOINED = 1024
"""Tiles whose seams are judged in one task run at least; fewer take a second or a few."""

TARGET_S = 12.0
"""Seconds of work in a task run, where the number of runs allows it."""

MAX_BYTES = 2**34
"""Bytes of image that a task run reads, where the number of runs allows it."""

PER_SLOT = 4
"""Task runs for each slot of the cluster, where each lasts long enough: the last ones end
together."""

SHORTEST_S = 4.0
"""Seconds of work below which it is not worth a task run of its own."""

PROBE_TILES = 2
"""Tiles of a batch that is measured: the first may load a model, the second tells."""

MAX_PROBES = 16
"""Batches that are measured at most; there is one for each slot of a small cluster."""

MAX_FAILURES = 3
"""Tiles of a batch, and batches of a step, that may fail before the rest is left: one bad tile does
not cost the night, a function that always fails ends soon."""


@dataclass(frozen=True)
class Batch:
    """The tiles or regions of one task run: those from `first` to `last`, both included."""

    first: int
    last: int

    @property
    def indices(self) -> range:
        """All of them."""
        return range(self.first, self.last + 1)

    @property
    def span(self) -> str:
        """The first and the last of them, for the task run's name.

        Examples
        --------
        >>> Batch(128, 191).span, Batch(4, 4).span
        ('128-191', '4')
        """
        return f"{self.first}-{self.last}" if self.last > self.first else f"{self.first}"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is known of the work before it is cut into batches.

    Parameters
    ----------
    n_slots : int
        Task runs that go on at a time.
    max_runs : int
        Most task runs, unless there are more slots: two for each of these are always allowed.
    seconds : float or None
        Of one worker for all of it, as far as measured.
    n_bytes : int
        Bytes read for all of it.
    """

    n_slots: int
    max_runs: int
    seconds: float | None = None
    n_bytes: int = 0

    @property
    def n_runs(self) -> int:
        """Into how many batches it is cut.

        Examples
        --------
        >>> Work(n_slots=2, max_runs=96, seconds=600.0).n_runs
        50
        >>> Work(n_slots=2, max_runs=96, seconds=40.0).n_runs
        8
        >>> Work(n_slots=2, max_runs=96, seconds=1.0).n_runs
        2
        """
        by_bytes = ceil(self.n_bytes / MAX_BYTES)
        if self.seconds is None:
            wanted = float(max(by_bytes, PER_SLOT * self.n_slots))
        else:
            balanced = min(PER_SLOT * self.n_slots, self.seconds / SHORTEST_S)
            wanted = max(by_bytes, self.seconds / TARGET_S, balanced, self.n_slots)
        return max(1, min(max(self.max_runs, 2 * self.n_slots), ceil(wanted)))


def batches_of(first: int, stop: int, n_runs: int) -> list[Batch]:
    """Cut the indices from `first` up to `stop` into batches of nearly one size.

    Examples
    --------
    >>> [batch.span for batch in batches_of(2, 9, 3)]
    ['2-3', '4-6', '7-8']
    """
    return batches_by_weight(first, np.ones(max(0, stop - first)), n_runs)


def batches_by_weight(first: int, weights: np.ndarray, n_runs: int) -> list[Batch]:
    """Cut indices into batches of nearly one weight.

    Parameters
    ----------
    first : int
        The first index.
    weights : numpy.ndarray
        ``(n,)`` weight of each index: what it costs against the others.
    n_runs : int
        Most batches.
    """
    n = len(weights)
    if n == 0:
        return []
    reached = np.cumsum(weights, dtype=float)
    total = reached[-1]
    if total <= 0:
        return [Batch(first, first + n - 1)]
    goals = total * np.arange(1, n_runs) / n_runs
    cuts = np.searchsorted(reached, goals * (1 - 1e-12), side="left")
    # The index that reaches a goal still belongs to the batch, unless that is closer without it.
    ends = sorted(
        {0, n, *[_nearest(reached, int(cut), goal) for cut, goal in zip(cuts, goals, strict=True)]}
    )
    return [Batch(first + a, first + b - 1) for a, b in pairwise(ends)]


def _nearest(reached: np.ndarray, cut: int, goal: float) -> int:
    before = reached[cut - 1] if cut else 0.0
    return cut if goal - before < reached[cut] - goal else cut + 1


def to_array(batches: Sequence[Batch]) -> np.ndarray:
    """Return batches as ``(n, 2)`` int64, to be kept in a stage."""
    return np.array([(b.first, b.last) for b in batches], np.int64).reshape(-1, 2)


def from_array(array: np.ndarray | None) -> list[Batch]:
    """Return the batches that a stage kept; none if there are none."""
    return [] if array is None else [Batch(int(a), int(b)) for a, b in array]
