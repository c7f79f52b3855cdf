"""Tiles of an image, read so that chunks which several tiles share are decoded once.

A tile reads its core and a halo, and the halo cuts into chunks that its neighbours need too: tiles
of 64x512x512 with a halo of 16 over chunks of 32x256x256 decode each chunk about four times. What
is decoded is therefore kept until the last tile that reads it has been read, within a budget; when
that is spent, what is needed latest is dropped first (Belady 1966: no other rule decodes less).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from math import prod
from typing import Any

import numpy as np

from patchworks.geometry.blocks import Position, block_shape, boxes_of
from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile, TileGrid, ceil_div
from patchworks.io.image_source import ImageSource

KEPT_BYTES = 2**29
"""Decoded bytes kept for tiles that are still to be read."""

SIDE_BY_SIDE_BYTES = 2**23
"""Blocks of a tile that together hold as much are decoded by several threads."""

MOST_THREADS = 8
"""Threads that decode a tile at most."""

MAX_SPARE = 4
"""Arrays of tiles' voxels that are kept to be used again."""


@dataclass(slots=True)
class _Block:
    """Chunks that are decoded, or being decoded, and the tiles that are still to read them."""

    readers: set[int]
    voxels: Future[np.ndarray] = field(default_factory=Future)
    n_bytes: int = 0
    largest: Any = None


def largest_of(voxels: np.ndarray) -> Any:
    """Return the largest voxel; NaN counts for nothing."""
    return np.fmax.reduce(voxels, axis=None) if voxels.dtype.kind == "f" else voxels.max()


def _part(voxels: np.ndarray, box: Box, whole: Box) -> np.ndarray:
    """Return the voxels of a box, all channels, out of those of a larger one."""
    index: Any = (..., *box.relative_to(whole.start).slices)
    found: np.ndarray = voxels[index]
    return found


def decode_threads() -> int:
    """Return how many threads decode a tile: all cores, or this process's share of them.

    Worker processes are told theirs by OMP_NUM_THREADS, by Dask and by `ProcessExecutor`.
    """
    share = os.environ.get("OMP_NUM_THREADS", "")
    n_threads = int(share) if share.isdigit() and int(share) else MOST_THREADS
    return min(n_threads, MOST_THREADS, os.cpu_count() or 1)


class TileReader:
    """Reads the tiles of a grid, by several threads and about in order.

    Parameters
    ----------
    source : ImageSource
        The image.
    grid : TileGrid
        Its tiles.
    kept_bytes : int
        Decoded bytes to keep at most.
    """

    def __init__(self, source: ImageSource, grid: TileGrid, kept_bytes: int = KEPT_BYTES) -> None:
        self.source = source
        self.grid = grid
        self.kept_bytes = kept_bytes
        self._lock = threading.Lock()
        self._blocks: dict[Position, _Block] = {}
        self._reading: set[int] = set()
        self._turn = threading.Lock()
        self._n_threads = decode_threads()
        self._spare: list[np.ndarray] = []

    @cached_property
    def shares_blocks(self) -> bool:
        """Whether tiles share chunks, and it pays and is possible to keep them."""
        chunks = self.source.chunks
        if chunks is None or isinstance(self.source.stored.array, np.ndarray):
            return False
        if self._block_bytes > self.kept_bytes // 4:
            return False
        return any(
            n > 1 and (halo > 0 or any(edge % chunk for edge in edges[:-1]))
            for n, halo, edges, chunk in zip(
                self.grid.dims, self.grid.halo, self.grid.edges, chunks, strict=True
            )
        )

    @cached_property
    def _block_shape(self) -> tuple[int, ...]:
        """Extents of what is decoded at once: chunks, or several if they are tiny."""
        chunks = self.source.chunks or self.grid.shape
        return block_shape(chunks, self.grid.tile_shape, self.source.voxel_bytes)

    @property
    def _block_bytes(self) -> int:
        return prod(self._block_shape) * self.source.voxel_bytes

    def read(self, tile: Tile, above: float | None = None) -> tuple[np.ndarray | None, int]:
        """Return the voxels a tile reads, and how many bytes of chunks were decoded for it.

        Parameters
        ----------
        tile : Tile
            Of the grid.
        above : float, optional
            Return voxels only if one of them, halo included, lies above this.

        Returns
        -------
        voxels : numpy.ndarray or None
            Shape ``tile.read.shape``, after that of the channels; the caller's own.
        n_bytes : int
            Bytes of the image's chunks, uncompressed; 0 if another tile had it all decoded.
        """
        if not self.shares_blocks:
            voxels = self.source.read(tile.read, self._memory_for(tile.read.shape))
            is_signal = above is None or bool(largest_of(voxels) > above)
            return voxels if is_signal else None, self._bytes_of(tile.read)
        with self._lock:
            self._reading.add(tile.index)
            ours, theirs = self._claim(tile)
        try:
            return self._read(tile, ours, theirs, above)
        except BaseException as error:
            self._give_up(ours, error)
            raise
        finally:
            with self._lock:
                self._reading.discard(tile.index)
                self._release(tile)

    def _read(
        self,
        tile: Tile,
        ours: dict[Position, _Block],
        theirs: dict[Position, _Block],
        above: float | None,
    ) -> tuple[np.ndarray | None, int]:
        """Decode what nobody has decoded yet, and put a tile together."""
        voxels = self._memory_for(tile.read.shape) if above is None else None
        n_bytes = self._decode_all(self._spans(list(ours)), tile, voxels)
        if voxels is None:  # nothing is put together before it is seen that there is signal
            theirs = ours | theirs
            if not any(self._is_above(above, block, at, tile) for at, block in theirs.items()):
                return None, n_bytes
            voxels = self._memory_for(tile.read.shape)
        for position, block in theirs.items():
            self._copy(block.voxels.result(), self._box(position), tile, voxels)
        return voxels, n_bytes

    def _is_above(self, above: float | None, block: _Block, at: Position, tile: Tile) -> bool:
        """Return whether a voxel that a tile reads of a block lies above a threshold."""
        found, box = block.voxels.result(), self._box(at)
        if block.largest is None:
            block.largest = largest_of(found)
        common = tile.read.intersect(box)
        if common is None or not block.largest > above:
            return False
        inside = _part(found, common, box)
        return common == box or bool((inside > above).any())

    def _memory_for(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array for the voxels of a tile, in memory that was given back if there is some.

        Memory that is new to the process has to be cleared by the operating system first.
        """
        shape = (*self.source.lead, *shape)
        size = prod(shape)
        with self._lock:
            fitting = [i for i, memory in enumerate(self._spare) if memory.size >= size]
            memory = self._spare.pop(fitting[0]) if fitting else None
        if memory is None:
            memory = np.empty(self._largest_read, self.source.dtype)
        return memory[:size].reshape(shape)

    @cached_property
    def _largest_read(self) -> int:
        """Entries of the largest array that a tile reads."""
        sizes = zip(self.grid.tile_shape, self.grid.halo, self.grid.shape, strict=True)
        return prod(self.source.lead) * prod([min(t + 2 * h, n) for t, h, n in sizes])

    def give_back(self, voxels: np.ndarray) -> None:
        """Take the memory of what `read` returned, or leave it if it is other memory.

        Nobody may use it any more.
        """
        memory = voxels.base
        if isinstance(memory, np.ndarray) and memory.shape == (self._largest_read,):
            suits = memory.dtype == self.source.dtype and memory.flags.writeable
            with self._lock:
                if suits and len(self._spare) < MAX_SPARE:
                    self._spare.append(memory)

    def clear(self) -> None:
        """Drop all that is kept: no tile will be read for some time."""
        with self._lock:
            self._spare.clear()
            self._blocks = {p: b for p, b in self._blocks.items() if not b.voxels.done()}

    def _claim(self, tile: Tile) -> tuple[dict[Position, _Block], dict[Position, _Block]]:
        """Return the blocks of a tile that nobody has decoded yet, and those that somebody has."""
        ours, theirs = {}, {}
        for position in self._positions(tile.read):
            block = self._blocks.get(position)
            if block is None:
                readers = set(self.grid.readers_of(self._box(position)))
                self._blocks[position] = ours[position] = _Block(readers)
            else:
                theirs[position] = block
        return ours, theirs

    def _spans(self, positions: list[Position]) -> list[Box]:
        """Return boxes of blocks to decode at once: zarr has a price for each call."""
        if self.source.chunk_reader is None:
            return boxes_of(positions)
        return [Box(at, tuple([p + 1 for p in at])) for at in positions]

    def _decode_all(self, spans: list[Box], tile: Tile, voxels: np.ndarray | None) -> int:
        """Decode boxes of blocks; many side by side, and tile after tile.

        Tiles that are decoded at the same time are all late; one after the other, by all cores
        together, the first is there soon.
        """
        decode = partial(self._decode, tile=tile, voxels=voxels)
        is_little = len(spans) * self._block_bytes < SIDE_BY_SIDE_BYTES
        if self.source.chunk_reader is None or is_little or self._n_threads == 1:
            return sum(map(decode, spans))
        with self._turn, ThreadPoolExecutor(self._n_threads, "patchworks-decode") as pool:
            return sum(pool.map(decode, spans))

    def _decode(self, span: Box, tile: Tile, voxels: np.ndarray | None) -> int:
        """Decode a box of blocks into a tile, and for the tiles that share them."""
        box = self._voxels_of(span)
        found = self.source.read(box)
        if voxels is not None:
            self._copy(found, box, tile, voxels)
        for position in product(*map(range, span.start, span.stop)):
            block, part = self._blocks[position], self._box(position)
            inside = _part(found, part, box)
            shared = len(block.readers - {tile.index}) > 0
            block.n_bytes = inside.nbytes if shared else 0
            is_whole = inside.base is None or inside.size == found.size
            block.voxels.set_result(inside if is_whole or not shared else inside.copy())
        return self._bytes_of(box)

    def _copy(self, found: np.ndarray, box: Box, tile: Tile, voxels: np.ndarray) -> None:
        """Copy what a tile reads of a box."""
        common = tile.read.intersect(box)
        if common is not None:
            _part(voxels, common, tile.read)[...] = _part(found, common, box)

    def _give_up(self, ours: dict[Position, _Block], error: BaseException) -> None:
        """Let those who wait for blocks that cannot be decoded fail as well."""
        with self._lock:
            for position, block in ours.items():
                if not block.voxels.done():
                    block.voxels.set_exception(error)
                    del self._blocks[position]

    def _release(self, tile: Tile) -> None:
        """Note that a tile has been read, and drop what no tile, or only a late one, will read."""
        for position in self._positions(tile.read):
            block = self._blocks.get(position)
            if block is None:
                continue
            block.readers.discard(tile.index)
            if not block.readers and block.voxels.done():
                del self._blocks[position]
        excess = sum(block.n_bytes for block in self._blocks.values()) - self.kept_bytes
        if excess > 0:
            self._evict(excess)

    def _evict(self, excess: int) -> None:
        first = min(self._reading, default=0)
        by_next_use = sorted(
            ((min((i for i in b.readers if i >= first), default=self.grid.n_tiles), position, b))
            for position, b in self._blocks.items()
            if b.voxels.done()
        )
        for _, position, block in reversed(by_next_use):
            if excess <= 0:
                return
            excess -= block.n_bytes
            del self._blocks[position]

    def _positions(self, box: Box) -> Iterator[Position]:
        """Yield the positions of the blocks that hold voxels of a box."""
        return product(
            *[
                range(a // n, ceil_div(b, n))
                for a, b, n in zip(box.start, box.stop, self._block_shape, strict=True)
            ]
        )

    def _box(self, position: Position) -> Box:
        return self._voxels_of(Box(position, tuple([p + 1 for p in position])))

    def _voxels_of(self, span: Box) -> Box:
        """Return the voxels of a box of blocks."""
        return Box(
            tuple([a * n for a, n in zip(span.start, self._block_shape, strict=True)]),
            tuple(
                [
                    min(b * n, whole)
                    for b, n, whole in zip(
                        span.stop, self._block_shape, self.grid.shape, strict=True
                    )
                ]
            ),
        )

    def _bytes_of(self, box: Box) -> int:
        """Return the bytes of all chunks that hold voxels of a box."""
        array = self.source.stored.array
        if self.source.chunks is None or isinstance(array, np.ndarray):
            return prod(box.shape) * self.source.voxel_bytes
        n_chunks = prod(
            [
                ceil_div(b, n) - a // n
                for a, b, n in zip(box.start, box.stop, self.source.chunks, strict=True)
            ]
        )
        # With all of the array's axes: a chunk that holds several channels is decoded as a whole.
        chunk_bytes = prod(array.chunks) * self.source.dtype.itemsize
        return int(n_chunks * chunk_bytes * self.source.n_decoded)
