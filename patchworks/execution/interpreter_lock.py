"""How much of its time a function holds the interpreter's lock."""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType

PAUSE_S = 0.002
LATE_S = 0.0035
"""A thread that holds the lock gives it up after 5 ms if others ask for it; the operating system
lets a thread that has slept run again within a fraction of that, even where all cores are busy."""

MIN_LOOKS = 20


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
        while not self._ended.is_set():
            start = time.perf_counter()
            time.sleep(PAUSE_S)
            self.late_s.append(time.perf_counter() - start - PAUSE_S)

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
