"""One at a time, and of those who wait the one who comes first in the order of reading."""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock that goes to the lowest rank that waits for it; a plain lock goes to any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._is_taken = False

    @contextmanager
    def of(self, rank: int) -> Iterator[None]:
        """Hold the lock."""
        with self._changed:
            insort(self._waiting, rank)
            try:
                self._changed.wait_for(lambda: not self._is_taken and self._waiting[0] == rank)
                self._is_taken = True
            finally:
                self._waiting.remove(rank)
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()
