"""How much of its time a function holds the interpreter's lock."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

PAUSE_S = 0.002
LATE_S = 0.0035
"""A thread that holds the lock gives it up after 5 ms if others ask for it. Where all cores are
busy a thread that has slept may wait as long for one of them; that is told apart."""

MIN_LOOKS = 20


SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Where Linux says how long a thread ran, and how long it was ready to and had no core, in ns."""


@contextmanager
def waits_for_a_core() -> Iterator[Callable[[], float]]:
    """Give what tells how many seconds this thread has waited for a core; 0 where nobody knows."""
    try:
        file = os.open(SCHEDSTAT, os.O_RDONLY)
    except OSError:  # no Linux, or one that does not count
        yield lambda: 0.0
        return
    try:
        yield lambda: int(os.pread(file, 100, 0).split()[1]) / 1e9
    finally:
        os.close(file)


class LockWatch:
    """Watches, in a thread that does nothing but wake up, how long it has to wait for the lock.

    Examples
    --------
    >>> with LockWatch() as watch:
    ...     time.sleep(0.2)
    >>> watch.is_held
    False
    """

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="patchworks-lock", daemon=True)

    def __enter__(self) -> LockWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        with waits_for_a_core() as waited_s:
            while not self._ended.is_set():
                start, before = time.perf_counter(), waited_s()
                time.sleep(PAUSE_S)
                late = time.perf_counter() - start - PAUSE_S - (waited_s() - before)
                self.late_s.append(max(0.0, late))

    @property
    def share(self) -> float:
        """Share of the time in which others had to wait for the lock, 0 to 1."""
        held = sum(late for late in self.late_s if late >= LATE_S)
        whole = sum(self.late_s) + PAUSE_S * len(self.late_s)
        return held / whole if whole else 0.0

    @property
    def is_held(self) -> bool:
        """Whether the lock is held for most of the time; False where too little was seen."""
        few = len(self.late_s) < MIN_LOOKS and sum(self.late_s) < 1.0
        return not few and self.share > 0.5 and statistics.median(self.late_s) >= LATE_S
