"""Blocks of chunks that are decoded once for all tiles that read them, as long as there is room.

What is decoded is kept until the last tile that reads it has been read, as far as tiles still to
come need it; when more is kept than may be, what is needed latest is dropped first (Belady 1966: no
other rule decodes less).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchworks.geometry.blocks import BLOCK_BYTES, BlockGrid, Position
from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile
from patchworks.geometry.reading_order import ReadingOrder
from patchworks.geometry.reuse import TRIMMED
from patchworks.io.lent_memory import LentMemory

MOST_READERS = 8
"""Tiles still to read a block, up to which it is asked what they need of it."""


LATE = 16
"""Ranks by which a tile may come later than others: several threads take tiles in turn."""


def part_of(voxels: np.ndarray, box: Box, whole: Box) -> np.ndarray:
    """Return the voxels of a box, all channels, out of those of a larger one."""
    index: Any = (..., *box.relative_to(whole.start).slices)
    found: np.ndarray = voxels[index]
    return found


@dataclass(slots=True)
class Block:
    """Chunks that are decoded, or being decoded.

    Parameters
    ----------
    box : Box
        What is there of them, in the image.
    readers : set of int
        Ranks of the tiles still to read them.
    voxels : Future
        Of the box, all channels.
    n_bytes : int
        What is kept for those tiles.
    """

    box: Box
    readers: set[int]
    voxels: Future[np.ndarray] = field(default_factory=Future)
    n_bytes: int = 0

    def cut(self, box: Box, memory: LentMemory) -> Block:
        """Return a part of a decoded block, in memory of its own."""
        voxels = memory.copy_of(part_of(self.voxels.result(), box, self.box))
        found = Block(box, self.readers, n_bytes=voxels.nbytes)
        found.voxels.set_result(voxels)
        return found


Blocks = dict[Position, Block]


class KeptBlocks:
    """The blocks that are kept, used by several threads.

    Parameters
    ----------
    grid : BlockGrid
        All blocks of the image.
    order : ReadingOrder
        The tiles, and about in which order they are read.
    max_bytes : int
        Decoded bytes to keep at most.
    memory : LentMemory
        For parts of blocks.
    """

    def __init__(
        self, grid: BlockGrid, order: ReadingOrder, max_bytes: int, memory: LentMemory
    ) -> None:
        self.grid = grid
        self.order = order
        self.max_bytes = max_bytes
        self.memory = memory
        self._lock = threading.Lock()
        self._blocks: Blocks = {}
        self._is_past = bytearray(order.grid.n_tiles)
        self._n_past = 0
        self._reading: set[int] = set()
        self._front = 0

    @contextmanager
    def reading(self, tile: Tile) -> Iterator[None]:
        """Note that a tile is being read, and afterwards that it has been."""
        rank = self.order.rank(tile.index)
        with self._lock:
            if self._is_past[rank] and self._begins_anew(rank):
                self._is_past, self._n_past, self._front = bytearray(len(self._is_past)), 0, 0
            self._front = max(self._front, rank)
            self._reading.add(rank)
        try:
            yield
        finally:
            with self._lock:
                self._reading.discard(rank)
                self._n_past += not self._is_past[rank]
                self._is_past[rank] = True
                self._release(tile, rank)

    @property
    def is_over(self) -> bool:
        """Whether every tile has been read."""
        return self._n_past == len(self._is_past)

    def _begins_anew(self, rank: int) -> bool:
        """Whether a tile that was read before is the first of another pass, not read once more."""
        return rank < self._front - LATE or (rank < self._front and self.is_over)

    def claim(self, tile: Tile, positions: Iterable[Position]) -> tuple[Blocks, Blocks]:
        """Return the blocks that the caller is to decode, and those that somebody does, or has."""
        with self._lock:
            ours, theirs = {}, {}
            rank = self.order.rank(tile.index)
            for position in positions:
                block, box = self._blocks.get(position), self.grid.box(position)
                if block is not None and block.box.holds(tile.read.within(box)):
                    theirs[position] = block
                else:
                    self._blocks[position] = ours[position] = Block(box, self._readers(box, rank))
            return ours, theirs

    def _readers(self, box: Box, own: int) -> set[int]:
        """Return the ranks of the tiles that are still to read a block, as far as is known.

        A tile far behind the one that is read was done before, and will not be read.
        """
        ranks = map(self.order.rank, self.order.grid.readers_of(box))
        return {
            r for r in ranks if not self._is_past[r] and (r >= own - LATE or r in self._reading)
        }

    def fill(self, block: Block, tile: Tile, voxels: np.ndarray, *, is_part: bool) -> None:
        """Give the voxels of a block that was decoded for a tile; what stays holds no more memory.

        Parameters
        ----------
        block : Block
            One of the caller's own.
        tile : Tile
            What it was decoded for.
        voxels : numpy.ndarray
            All of the block.
        is_part : bool
            Whether they lie in the memory of a larger array.
        """
        is_shared = len(block.readers - {self.order.rank(tile.index)}) > 0
        block.n_bytes = voxels.nbytes if is_shared else 0
        block.voxels.set_result(self.memory.copy_of(voxels) if is_part and is_shared else voxels)

    def give_up(self, ours: Blocks, error: BaseException) -> None:
        """Let those who wait for blocks that cannot be decoded fail as well."""
        with self._lock:
            for position, block in ours.items():
                if not block.voxels.done():
                    block.voxels.set_exception(error)
                    if self._blocks.get(position) is block:
                        del self._blocks[position]

    def clear(self) -> None:
        """Drop all that is kept: no tile will be read for some time."""
        with self._lock:
            self._blocks = {p: b for p, b in self._blocks.items() if not b.voxels.done()}

    def make_room(self, tile: Tile, done: Iterable[Position], more_bytes: int) -> None:
        """Drop blocks that a tile is done with, and as many others as make room for more.

        Parameters
        ----------
        tile : Tile
            One that is being read.
        done : iterable of tuple of int
            Positions of the blocks whose voxels it has.
        more_bytes : int
            What is about to be decoded for it.
        """
        rank = self.order.rank(tile.index)
        with self._lock:
            self._drop(done, rank)
            self._limit_to(self.max_bytes - more_bytes, rank)

    def _release(self, tile: Tile, rank: int) -> None:
        """Note that a tile has been read, and drop what no tile, or only a late one, will read."""
        whole = self.order.grid[tile.index].read  # of which a part may have been read
        self._drop(self.grid.positions(whole), rank)
        self._limit_to(self.max_bytes, rank)

    def _drop(self, positions: Iterable[Position], rank: int) -> None:
        """Drop what no tile but this one was still to read of blocks."""
        for position in positions:
            block = self._blocks.get(position)
            if block is None:
                continue
            block.readers.discard(rank)
            if block.voxels.done():
                if block.readers:
                    self._blocks[position] = self._trimmed(block)
                else:
                    del self._blocks[position]

    def _limit_to(self, max_bytes: int, rank: int) -> None:
        """Drop what only late tiles will read, as long as more than so much is kept."""
        excess = sum([block.n_bytes for block in self._blocks.values()]) - max_bytes
        if excess > 0:
            self._evict(excess, min(self._reading, default=rank))

    def _trimmed(self, block: Block) -> Block:
        """Return what tiles still to come need of a block, if it is much less than the block.

        Whoever has taken the block before goes on with all of it.
        """
        if len(block.readers) > MOST_READERS or block.n_bytes < BLOCK_BYTES:
            return block
        grid = self.order.grid
        needed = [grid[self.order.index(rank)].read.within(block.box) for rank in block.readers]
        box = Box.hull(needed)
        return block.cut(box, self.memory) if box.size <= TRIMMED * block.box.size else block

    def _evict(self, excess: int, first: int) -> None:
        """Drop what is needed latest by the tiles from rank `first` on."""
        n_tiles = len(self._is_past)
        by_next_use = sorted(
            ((min((r for r in b.readers if r >= first), default=n_tiles), position, b))
            for position, b in self._blocks.items()
            if b.voxels.done()
        )
        for _, position, block in reversed(by_next_use):
            if excess <= 0:
                return
            excess -= block.n_bytes
            del self._blocks[position]
