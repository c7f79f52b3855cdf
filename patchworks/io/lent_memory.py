"""Memory of tiles and decoded blocks, which comes back by itself when nobody looks at it any more.

Memory that is new to the process has to be cleared by the operating system first.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np

from patchworks.geometry.grid import ceil_div

LEAST_BYTES = 2**16
"""Smaller arrays are made by NumPy: they fit in anywhere."""


class LentMemory:
    """Memory that is lent out as arrays, by itself lent again afterwards. Used by several threads.

    It comes from the operating system, not from the allocator: pieces of megabytes, which that
    hands out and takes back among small ones, leave gaps that nothing fits. Of what it held after
    forty seconds of a run, half were such gaps.

    Parameters
    ----------
    max_spare_bytes : int
        What is kept to be lent again, at most.

    Examples
    --------
    >>> memory = LentMemory(2**20)
    >>> lent = memory.lend((2**16,), np.dtype("u2"))
    >>> view = lent[1:]
    >>> del lent
    >>> memory.spare_bytes
    0
    >>> del view
    >>> memory.spare_bytes
    131072
    """

    def __init__(self, max_spare_bytes: int) -> None:
        self._max_spare_bytes = max_spare_bytes
        # By size, what was lent last at the end. No lock: a piece comes back whenever an array is
        # gone, even while this thread would hold it.
        self._spare: dict[int, list[np.ndarray]] = {}

    @property
    def spare_bytes(self) -> int:
        """What is there to be lent."""
        return sum([size * len(pieces) for size, pieces in list(self._spare.items())])

    def lend(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array, whose memory comes back when it and all views of it are gone."""
        n_bytes = prod(shape) * dtype.itemsize
        if n_bytes < LEAST_BYTES:
            return np.empty(shape, dtype)
        size = ceil_div(n_bytes, mmap.PAGESIZE) * mmap.PAGESIZE
        pieces = self._spare.pop(size, [])
        self._spare[size] = pieces
        try:
            piece = pieces.pop()
        except IndexError:
            piece = np.frombuffer(_from_system(size), np.uint8)
        return np.asarray(_Lent(self, piece, piece[:n_bytes].view(dtype).reshape(shape)))

    def copy_of(self, array: np.ndarray) -> np.ndarray:
        """Return a copy of an array in lent memory."""
        copied = self.lend(array.shape, array.dtype)
        copied[...] = array
        return copied

    def take_back(self, piece: np.ndarray) -> None:
        """Keep a piece, in place of others that were not asked for lately, if it is not too much.

        Two threads that do so at the same time may keep a little more.
        """
        excess = self.spare_bytes + piece.size - self._max_spare_bytes
        for size, pieces in list(self._spare.items()):
            while excess > 0 and pieces and size != piece.size:
                with suppress(IndexError):
                    pieces.pop()
                excess -= size
        if excess <= 0 and piece.size in self._spare:
            self._spare[piece.size].append(piece)

    def clear(self) -> None:
        """Let go of what is there, and of what comes back: only sizes lent since are kept."""
        self._spare.clear()


def is_lent(array: np.ndarray) -> bool:
    """Return whether an array is what `LentMemory.lend` returned, not a view of it."""
    return isinstance(array.base, _Lent)


def _from_system(n_bytes: int) -> mmap.mmap:
    """Return memory of the process's own.

    In pages as the system gives them: large ones are not asked for, as NumPy does for what it makes
    itself. On a virtual machine whose host takes back what is free they took up to three times as
    long to be had (docs/design/benchmarks.md).
    """
    if hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, n_bytes)  # on Windows


class _Lent:
    """The owner of an array that is lent; NumPy lets go of it with the last view."""

    def __init__(self, memory: LentMemory, piece: np.ndarray, array: np.ndarray) -> None:
        self.__array_interface__: dict[str, Any] = array.__array_interface__
        self._memory = memory
        self._piece = piece

    def __del__(self) -> None:
        self._memory.take_back(self._piece)
