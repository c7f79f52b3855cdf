"""What an engine is, and the one that needs nothing: threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from patchworks.errors import PatchworksError, portable
from patchworks.geometry.grid import ceil_div

Result = TypeVar("Result")
Batch = Sequence[int]


class Executor(Protocol):
    """Runs a function over batches of indices."""

    @property
    def n_workers(self) -> int:
        """Batches that run at a time."""

    @property
    def crosses_processes(self) -> bool:
        """Whether batches run in processes that do not see this one's memory."""

    @property
    def max_batches(self) -> int:
        """Into how many batches work is cut at most."""

    def map(self, fn: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
        """Yield the result of each batch as it comes; the first error ends the rest."""


def run_portably(fn: Callable[[Batch], Result], batch: Batch) -> Result:
    """Run a batch in another process; an error of patchworks' own arrives whatever caused it."""
    try:
        return fn(batch)
    except PatchworksError as error:
        failure = portable(error)
    raise failure


def batched(indices: Sequence[int], max_batches: int) -> list[list[int]]:
    """Cut `indices` into batches of one size, at most `max_batches` of them.

    Examples
    --------
    >>> batched(range(5), 3)
    [[0, 1], [2, 3], [4]]
    """
    size = max(1, ceil_div(len(indices), max_batches))
    return [list(indices[i : i + size]) for i in range(0, len(indices), size)]


LONGEST_BATCH = 64
"""Indices of a batch at most, where that does not make too many batches."""


def shrinking_batches(
    indices: Sequence[int], n_workers: int, max_batches: int = 10_000
) -> list[list[int]]:
    """Cut `indices` into batches that get smaller: long ones first, and all end together.

    Neighbouring tiles share chunks, and within a batch the next tile is read ahead, so batches
    should be long; but the last ones decide how long some workers wait for the others.

    Examples
    --------
    >>> [len(batch) for batch in shrinking_batches(range(32), 2)]
    [4, 4, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    """
    longest = max(LONGEST_BATCH, ceil_div(2 * len(indices), max_batches))
    batches, start = [], 0
    while start < len(indices):
        size = min(longest, ceil_div(len(indices) - start, 4 * n_workers))
        batches.append(list(indices[start : start + size]))
        start += size
    return batches


@dataclass(frozen=True)
class ThreadExecutor:
    """Threads of this process; one worker runs in the calling thread.

    Parameters
    ----------
    n_workers : int
        Batches that run at a time.
    """

    n_workers: int
    crosses_processes: bool = False
    max_batches: int = 2**20

    def map(self, fn: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
        """Yield the result of each batch as it comes; after an error no batch is begun."""
        if self.n_workers == 1 or len(batches) == 1:
            yield from map(fn, batches)
            return
        todo = iter(batches)
        with ThreadPoolExecutor(self.n_workers, thread_name_prefix="patchworks") as pool:
            # A few ahead, not all: what is not begun needs no cancelling.
            running: set[Future[Any]] = set()
            for batch in todo:
                running.add(pool.submit(fn, batch))
                if len(running) >= 2 * self.n_workers:
                    break
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = future.result()
                        batch = next(todo, ())
                        if batch:
                            running.add(pool.submit(fn, batch))
                        yield result
            finally:
                for future in running:
                    future.cancel()
