"""Memory of decoded blocks, which comes back by itself when nobody looks at it any more."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np


class LentMemory:
    """Memory of one size, lent out as arrays in any shape that fits. Used by several threads.

    Large pieces that the allocator hands out and takes back among small ones leave gaps that
    nothing fits: of what it held, two fifths were such gaps.

    Parameters
    ----------
    n_bytes : int
        Of the largest array.
    max_spare : int
        Pieces that are kept to be lent again.

    Examples
    --------
    >>> memory = LentMemory(12, max_spare=2)
    >>> lent = memory.lend((2, 3), np.dtype("u2"))
    >>> view = lent[1]
    >>> del lent
    >>> memory.n_spare
    0
    >>> del view
    >>> memory.n_spare
    1
    """

    def __init__(self, n_bytes: int, max_spare: int) -> None:
        self._n_bytes = n_bytes
        self._max_spare = max_spare
        # No lock: it comes back whenever an array is gone, even while this thread would hold it.
        self._spare: list[np.ndarray] = []

    @property
    def n_spare(self) -> int:
        """Pieces that are there to be lent."""
        return len(self._spare)

    def lend(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array, whose memory comes back when it and all views of it are gone."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = np.empty(self._n_bytes, np.uint8)
        owner = _Lent(self, memory[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape))
        return np.asarray(owner)

    def take_back(self, memory: np.ndarray) -> None:
        """Keep a piece, unless there are enough."""
        if len(self._spare) < self._max_spare:
            self._spare.append(memory)

    def clear(self) -> None:
        """Let go of what is there."""
        self._spare.clear()


class _Lent:
    """The owner of an array that is lent; NumPy lets go of it with the last view."""

    def __init__(self, memory: LentMemory, array: np.ndarray) -> None:
        self.__array_interface__: dict[str, Any] = array.__array_interface__
        self._memory = memory
        self._piece: np.ndarray = array.base  # type: ignore[assignment]

    def __del__(self) -> None:
        self._memory.take_back(self._piece)
