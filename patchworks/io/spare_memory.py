"""Memory that held the voxels of a tile, and is used again for those of another."""

from __future__ import annotations

import threading
from math import prod

import numpy as np

MAX_SPARE = 4
"""Arrays that are kept to be used again."""


class SpareMemory:
    """Arrays of one size, given out in any shape that fits. Used by several threads.

    Memory that is new to the process has to be cleared by the operating system first.

    Parameters
    ----------
    size : int
        Entries of the largest array that is needed.
    dtype : numpy.dtype
        Of all.

    Examples
    --------
    >>> spare = SpareMemory(12, np.dtype("u1"))
    >>> taken = spare.take((2, 5))
    >>> spare.give_back(taken)
    >>> spare.take((3, 4)).base is taken.base
    True
    """

    def __init__(self, size: int, dtype: np.dtype) -> None:
        self._size = size
        self._dtype = dtype
        self._lock = threading.Lock()
        self._spare: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of a shape, in memory that was given back if there is some."""
        with self._lock:
            memory = self._spare.pop() if self._spare else None
        if memory is None:
            memory = np.empty(self._size, self._dtype)
        return memory[: prod(shape)].reshape(shape)

    def give_back(self, array: np.ndarray) -> None:
        """Take the memory of what was given out, or leave it if it is other memory.

        Nobody may use it any more.
        """
        memory = array.base
        if isinstance(memory, np.ndarray) and memory.shape == (self._size,):
            suits = memory.dtype == self._dtype and memory.flags.writeable
            with self._lock:
                if suits and len(self._spare) < MAX_SPARE:
                    self._spare.append(memory)

    def clear(self) -> None:
        """Let go of what is kept."""
        with self._lock:
            self._spare.clear()
