"""How much memory a call takes at its peak, beside what the process held before it."""

from __future__ import annotations

import gc
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from patchworks.execution.machine import held_bytes, return_free_memory

Result = TypeVar("Result")

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
"""Where Linux keeps the highest memory of a process (VmHWM), and where it forgets it."""

LOOK_EVERY_S = 0.002


@dataclass(frozen=True, slots=True)
class Measured(Generic[Result]):
    """What a call returned, and what it took.

    Parameters
    ----------
    result
        What it returned.
    seconds : float
        Wall time.
    peak_bytes : int
        Memory at its peak, beside what the process held before, the result included.
    """

    result: Result
    seconds: float
    peak_bytes: int


def measured(call: Callable[[], Result]) -> Measured[Result]:
    """Call a function and measure its time, and its memory at the peak.

    Where Linux lets a process reset its own highest memory, nothing is missed; elsewhere a thread
    looks every 2 ms. Memory on its way in other threads counts too: measure when nothing else runs.

    Examples
    --------
    >>> found = measured(lambda: b"x" * 2**26)
    >>> 2**25 < found.peak_bytes < 2**28
    True
    """
    gc.collect()
    return_free_memory()
    before = held_bytes()
    start = time.perf_counter()
    with highest_memory() as highest:
        result = call()
        seconds = time.perf_counter() - start
    return Measured(result, seconds, max(0, highest() - before))


@contextmanager
def highest_memory() -> Iterator[Callable[[], int]]:
    """Watch the memory of the process; what is yielded returns, afterwards, the most that it was.

    Examples
    --------
    >>> with highest_memory() as highest:
    ...     size = len(b"x" * 2**26)
    >>> highest() > size
    True
    """
    watch = _Kernel() if _Kernel.is_there() else _Sampler()
    watch.begin()
    found = 0
    try:
        yield lambda: found
    finally:
        found = watch.end()


class _Kernel:
    """The highest memory as Linux keeps it."""

    @staticmethod
    def is_there() -> bool:
        with suppress(OSError):
            return sys.platform == "linux" and CLEAR_REFS.write_text("5") > 0
        return False

    def begin(self) -> None:
        CLEAR_REFS.write_text("5")

    def end(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        return int(found[1]) * 1024 if found else held_bytes()


class _Sampler:
    """The highest memory that a thread has seen."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._highest = 0
        self._thread = threading.Thread(target=self._look, daemon=True)

    def begin(self) -> None:
        self._highest = held_bytes()
        self._thread.start()

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        return max(self._highest, held_bytes())

    def _look(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self._highest = max(self._highest, held_bytes())
