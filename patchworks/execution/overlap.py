"""While one item is computed, the next are read and the last are written.

::

    read:     | 0 | 1 | 2 |   | 3 |
    compute:      |   0   |   1   |   2   |
    write:                | 0 |   | 1 |

Reading and writing release the interpreter's lock for most of their time, so a function that waits
for a GPU, or holds the lock itself, does not wait for the disk as well.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from patchworks.geometry.grid import ceil_div

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Result = TypeVar("Result")


def io_threads(n_workers: int) -> int:
    """Return how many threads read and write beside `n_workers` that compute."""
    return max(3, ceil_div(n_workers, 2))


def most_at_once(n_workers: int, n_ahead: int | None = None) -> int:
    """Return how many items are held at a time at most: read ahead, computed, being written."""
    return n_workers + (n_ahead or io_threads(n_workers)) + most_writes(n_workers) - 1


def most_writes(n_workers: int) -> int:
    """Return how many items wait to be written at most; then those who compute wait, too."""
    return max(2, ceil_div(n_workers, 2))


@dataclass
class Recall(Generic[Item]):
    """Asks for items back on which no work was begun, but reading them.

    Parameters
    ----------
    asked : bool
        Whether they are: no further item is taken or computed.
    returned : list
        What was taken and not computed.
    """

    asked: bool = False
    returned: list[Item] = field(default_factory=list)
    take_back: Callable[[], None] = field(default=lambda: None, repr=False)

    def ask(self) -> None:
        """Ask; what comes back is in `returned` when this does. What is computed goes on."""
        self.asked = True
        self.take_back()


def overlapped(
    items: Iterable[Item],
    *,
    read: Callable[[Item], Read],
    compute: Callable[[Read], Computed],
    write: Callable[[Computed], Result],
    n_workers: int = 1,
    n_ahead: int | None = None,
    recall: Recall[Item] | None = None,
) -> Generator[Future[Result], None, None]:
    """Yield what becomes of each item, as it is finished: a future that is done.

    Parameters
    ----------
    items : iterable
        Taken one by one, about as fast as they are computed.
    read, compute, write : callable
        The three parts; what one raises is in the item's future.
    n_workers : int
        Items computed at a time. One is computed in the calling thread, for a function may bring
        up a team of threads, or a context of the GPU, for every thread that calls it.
    n_ahead : int, optional
        Items read ahead, `io_threads` by default: fewer while more than one is being written.
    recall : Recall, optional
        By which the caller may ask for items back.

    Notes
    -----
    Closing the iterator begins no further item and waits for what is at work.
    """
    n_ahead = n_ahead or io_threads(n_workers)
    chain = _Chain(items, read, compute, write, n_ahead, most_writes(n_workers))
    if recall is not None:
        chain.recall, recall.take_back = recall, chain.return_reads
    n_threads = max(n_ahead, most_writes(n_workers))
    with ThreadPoolExecutor(n_threads, thread_name_prefix="patchworks-io") as aside:
        chain.begin(aside, n_workers)
        try:
            yield from (chain.results() if n_workers == 1 else _side_by_side(chain, n_workers))
        finally:
            chain.stop()


class _Chain(Generic[Item, Read, Computed, Result]):
    """The state that all workers share: what is read ahead, what is being written."""

    def __init__(
        self,
        items: Iterable[Item],
        read: Callable[[Item], Read],
        compute: Callable[[Read], Computed],
        write: Callable[[Computed], Result],
        n_ahead: int,
        n_writes: int,
    ) -> None:
        self.todo = iter(items)
        self.read = read
        self.compute = compute
        self.write = write
        self.n_ahead = n_ahead
        self.recall: Recall[Item] = Recall()
        self.reads: deque[tuple[Item, Future[Read]]] = deque()
        self.lock = threading.RLock()  # a read that is done at once says so right away
        self.room = threading.Semaphore(n_writes)
        self.n_writing = 0
        self.stopped = False
        self.limit = n_ahead

    def begin(self, aside: ThreadPoolExecutor, n_workers: int) -> None:
        """Read the first items in the threads of a pool.

        One worker waits for the first items alone, each of which has the disk and the cores for
        itself: one more is read at a time whenever one has been.
        """
        self.aside = aside
        with self.lock:
            self.limit = 1 if n_workers == 1 else self.n_ahead
            self._fill()

    def _has_read(self) -> None:
        with self.lock:
            if self.limit < self.n_ahead:
                self.limit += 1
                self._fill(1 if self.limit < self.n_ahead else inf)

    def _fill(self, at_most: float = inf) -> None:
        # What is being written takes memory as well: while much is, the disk is behind anyway.
        limit: float = max(1, self.limit - max(0, self.n_writing - 1))
        limit = min(limit, len(self.reads) + at_most)
        while not self.stopped and not self.recall.asked and len(self.reads) < limit:
            try:
                item = next(self.todo)
            except StopIteration:
                return
            reading = self.aside.submit(self.read, item)
            self.reads.append((item, reading))
            if self.limit < self.n_ahead:
                reading.add_done_callback(lambda _: self._has_read())

    def _take(self) -> Future[Read] | None:
        """Return the item that was read first, and have another one read."""
        with self.lock:
            if self.recall.asked:
                self._return()
                return None
            if not self.reads:
                self._fill()
            if self.stopped or not self.reads:
                return None
            _, taken = self.reads.popleft()
            if self.limit == self.n_ahead:
                self._fill()
            return taken

    def return_reads(self) -> None:
        """Give back the items that are read, or being read."""
        with self.lock:
            self._return()

    def _return(self) -> None:
        self.recall.returned += [item for item, _ in self.reads]
        self._drop()

    def results(self) -> Iterator[Future[Result]]:
        """Compute items in this thread; yield those that are written."""
        writes: deque[Future[Result]] = deque()
        while (taken := self._take()) is not None:
            writes.append(self._computed(taken))
            del taken  # its voxels may go
            while writes and writes[0].done():
                yield writes.popleft()
        while writes:
            with suppress(Exception):  # whoever asks for the result is told
                writes[0].exception()
            yield writes.popleft()

    def _computed(self, reading: Future[Read]) -> Future[Result]:
        try:
            computed = self.compute(reading.result())
        except Exception as error:  # noqa: BLE001 - whoever asks for the result is told
            failed: Future[Result] = Future()
            failed.set_exception(error)
            return failed
        self.room.acquire()
        with self.lock:
            self.n_writing += 1
        try:
            writing = self.aside.submit(self.write, computed)
        except BaseException:
            self._written()
            raise
        writing.add_done_callback(lambda _: self._written())
        return writing

    def _written(self) -> None:
        self.room.release()
        with self.lock:
            self.n_writing -= 1
            if self.limit == self.n_ahead:
                self._fill()

    def stop(self) -> None:
        """Begin no further item."""
        with self.lock:
            self.stopped = True
            self._drop()

    def _drop(self) -> None:
        for _, reading in self.reads:
            reading.cancel()
        self.reads.clear()


def _side_by_side(chain: _Chain[Any, Any, Any, Result], n_workers: int) -> Iterator[Future[Result]]:
    """Compute in `n_workers` threads; yield what they finish."""
    finished: SimpleQueue[Future[Result] | None] = SimpleQueue()

    def work() -> None:
        try:
            for result in chain.results():
                finished.put(result)
        finally:
            finished.put(None)

    with ThreadPoolExecutor(n_workers, thread_name_prefix="patchworks") as pool:
        working = [pool.submit(work) for _ in range(n_workers)]
        try:
            n_at_work = n_workers
            while n_at_work:
                result = finished.get()
                if result is None:
                    n_at_work -= 1
                else:
                    yield result
        finally:
            chain.stop()
    for ended in working:
        ended.result()  # an error outside the three parts is ours: let it be seen
