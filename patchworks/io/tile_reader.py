"""Tiles of an image, read so that chunks which several tiles share are decoded once.

A tile reads its core and a halo, and the halo cuts into chunks that its neighbours need too: tiles
of 64x512x512 with a halo of 16 over chunks of 32x256x256 decode each chunk about four times. What
is decoded is therefore kept until the last tile that reads it has been read, as far as tiles still
to come need it, within a budget; when that is spent, what is needed latest is dropped first (Belady
1966: no other rule decodes less).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import product
from math import prod

import numpy as np

from patchworks.geometry.blocks import BlockGrid, Position, block_shape, boxes_of
from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile, TileGrid, ceil_div
from patchworks.geometry.reading_order import ReadingOrder
from patchworks.io.decode_threads import decode_threads
from patchworks.io.image_source import ImageSource
from patchworks.io.kept_blocks import Blocks, KeptBlocks, part_of
from patchworks.io.lent_memory import LentMemory
from patchworks.io.maximum_map import MaximumMap, largest_of
from patchworks.io.read_cost import ReadCost, held_cost, read_cost
from patchworks.io.turns import Turns

KEPT_BYTES = 7 * 2**25
"""Decoded bytes kept for tiles that are still to be read, at most."""

MUCH_LESS = 0.75
"""Twice the memory is taken to decode less than so much of what half of it takes."""

SPARE_BYTES = 2**26
"""Memory of decoded blocks that is kept to be used for others, at most."""

SPARE_TILES = 4
"""Tiles whose memory is kept to be used for others, at most."""

SIDE_BY_SIDE_BYTES = 2**23
"""Blocks of a tile that together hold as much are decoded by several threads."""


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
    maxima : MaximumMap, optional
        What is known of the image's maxima: it is asked before a tile is looked at for signal, and
        learns from what is decoded.
    by_index : bool
        Whether tiles will be asked for in the order of their indices, not in the reader's `order`.
    n_cores : int, optional
        Cores that this process may use; the machine's by default.
    """

    def __init__(
        self,
        source: ImageSource,
        grid: TileGrid,
        kept_bytes: int = KEPT_BYTES,
        maxima: MaximumMap | None = None,
        *,
        by_index: bool = False,
        n_cores: int | None = None,
    ) -> None:
        self.by_index = by_index
        self.source = source
        self.grid = grid
        self.kept_bytes = kept_bytes
        self.maxima = maxima
        self._learns = maxima is not None and not maxima.is_complete
        self._turns = Turns()
        self.n_threads = decode_threads(n_cores)

    @cached_property
    def shares_blocks(self) -> bool:
        """Whether tiles share chunks, and it pays and is possible to keep them."""
        if self.source.chunks is None or isinstance(self.source.stored.array, np.ndarray):
            return False
        return self._block_bytes <= self.kept_bytes // 4 and not self._is_aligned

    @cached_property
    def _is_aligned(self) -> bool:
        """Whether each cell is read by one tile only."""
        return not any(
            n > 1 and (halo > 0 or any(edge % cell for edge in edges[:-1]))
            for n, halo, edges, cell in zip(
                self.grid.dims, self.grid.halo, self.grid.edges, self._cell, strict=True
            )
        )

    @property
    def learns_all(self) -> bool:
        """Whether the map of maxima is complete once all tiles have been looked at."""
        return self.maxima is not None and (self.shares_blocks or self._is_aligned)

    @property
    def _cell(self) -> tuple[int, ...]:
        """Extents of which those of blocks are multiples: a chunk, and whole boxes of the map."""
        chunks = self.source.chunks or self.grid.shape
        return chunks if self.maxima is None else self.maxima.grid.cell

    @cached_property
    def _grid(self) -> BlockGrid:
        """What is decoded at once: chunks, or several if they are tiny."""
        block = block_shape(self._cell, self.grid.tile_shape, self.source.voxel_bytes)
        return BlockGrid(self.grid.shape, block)

    @property
    def order(self) -> ReadingOrder:
        """The order in which tiles should be asked for: about so, by any number of threads."""
        return self._way[0]

    @property
    def cost(self) -> ReadCost:
        """What reading all tiles takes."""
        return self._way[1]

    @cached_property
    def _way(self) -> tuple[ReadingOrder, ReadCost]:
        """How tiles are read, with half of the memory that is allowed if that is nearly as good."""
        if self.source.chunks is None or isinstance(self.source.stored.array, np.ndarray):
            return ReadingOrder(self.grid), held_cost(self.grid)
        if not self.shares_blocks:
            return self._way_with(0)
        half, whole = self._way_with(self.kept_bytes // 2), self._way_with(self.kept_bytes)
        pays = whole[1].amplification < MUCH_LESS * half[1].amplification
        return whole if pays else half

    def _way_with(self, kept_bytes: int) -> tuple[ReadingOrder, ReadCost]:
        order = ReadingOrder(self.grid)
        if kept_bytes and not self.by_index:
            n_kept = kept_bytes / self._block_bytes
            order = ReadingOrder.keeping_least(self.grid, self._grid.block, n_kept)
        return order, read_cost(order, self._grid.block, self._block_bytes, kept_bytes)

    @cached_property
    def _kept(self) -> KeptBlocks:
        return KeptBlocks(self._grid, self.order, self.cost.max_kept_bytes, self._block_memory)

    @property
    def _block_bytes(self) -> int:
        return prod(self._grid.block) * self.source.voxel_bytes

    def read(self, tile: Tile, above: float | None = None) -> tuple[np.ndarray | None, int]:
        """Return the voxels a tile reads, and how many bytes of chunks were decoded for it.

        Parameters
        ----------
        tile : Tile
            Of the grid, or a part of one that all its signal lies in.
        above : float, optional
            Return voxels only if one of them, halo included, lies above this.

        Returns
        -------
        voxels : numpy.ndarray or None
            Shape ``tile.read.shape``, after that of the channels; the caller's own.
        n_bytes : int
            Bytes of the image's chunks, uncompressed; 0 if another tile had it all decoded.
        """
        is_signal = True if above is None else self._signal_on_map(tile, above)
        if not self.shares_blocks:
            return self._read_straight(tile, above, is_signal)
        with self._reading(tile):
            n_looked = 0
            if is_signal is None and above is not None:
                is_signal, n_looked = self._look(tile, above)
            if not is_signal:
                return None, n_looked
            voxels = self._memory_for(tile.read.shape)
            return voxels, n_looked + self._fill(tile, voxels)

    @contextmanager
    def _reading(self, tile: Tile) -> Iterator[None]:
        """Note that a tile is being read; with the last one all memory may go."""
        with self._kept.reading(tile):
            yield
        if self._kept.is_over:
            self.clear()

    def is_signal(self, tile: Tile, above: float) -> bool:
        """Return whether a voxel that a tile reads lies above a threshold.

        No more is decoded for it than the map of maxima leaves open.
        """
        found = self._signal_on_map(tile, above)
        if self.shares_blocks:
            with self._reading(tile):
                return self._look(tile, above)[0] if found is None else found
        if found is None:
            parts = self._open_parts(tile, above)
            return any(bool(largest_of(self.source.read(part)) > above) for part in parts)
        return found

    def leaves_out(self, tile: Tile, above: float) -> bool:
        """Return whether the map says that a tile holds no signal; then it counts as read."""
        if self._signal_on_map(tile, above) is not False:
            return False
        with self._reading(tile):
            return True

    def signal_bounds(self, tile: Tile, above: float) -> Box | None:
        """Return a box of what a tile reads in which all its signal lies; None if unknown."""
        return None if self.maxima is None else self.maxima.bounds(tile.read, above)

    def _signal_on_map(self, tile: Tile, above: float) -> bool | None:
        return None if self.maxima is None else self.maxima.is_signal(tile.read, above)

    def _open_parts(self, tile: Tile, above: float) -> list[Box]:
        """Return the parts of what a tile reads that the map leaves open."""
        return [tile.read] if self.maxima is None else self.maxima.open_parts(tile.read, above)

    def _read_straight(
        self, tile: Tile, above: float | None, is_signal: bool | None
    ) -> tuple[np.ndarray | None, int]:
        """Read a tile whose chunks are kept for no other."""
        if is_signal is False:
            return None, 0
        voxels = self.source.read(tile.read, self._memory_for(tile.read.shape))
        self._learn(tile.read, voxels)
        n_bytes = self._bytes_of(tile.read)
        if is_signal is None and not largest_of(voxels) > above:
            return None, n_bytes
        return voxels, n_bytes

    def _learn(self, box: Box, voxels: np.ndarray) -> None:
        if self._learns and self.maxima is not None:
            self.maxima.learn(box, voxels)

    def _look(self, tile: Tile, above: float) -> tuple[bool, int]:
        """Decode what the map leaves open of a tile; return whether there is signal, and bytes."""
        parts = self._open_parts(tile, above)
        positions = {position for part in parts for position in self._grid.positions(part)}
        ours, theirs, n_bytes = self._obtain(tile, sorted(positions))
        held = ours | theirs
        for block in held.values():
            block.voxels.result()
        found = self._signal_on_map(tile, above)
        if found is not None:
            return found, n_bytes
        for part in self._open_parts(tile, above):
            for position in self._grid.positions(part):
                block = held[position]
                common = part.intersect(self._grid.box(position))
                voxels = block.voxels.result()
                if common and (part_of(voxels, common, block.box) > above).any():
                    return True, n_bytes
        return False, n_bytes

    def read_box(self, box: Box) -> tuple[np.ndarray, int]:
        """Return the voxels of any box, the caller's own, and bytes decoded; nothing is kept."""
        return self.source.read(box), self._bytes_of(box)

    def _fill(self, tile: Tile, voxels: np.ndarray) -> int:
        """Fill in what a tile reads; returns the bytes that were decoded.

        What is there goes first: what only waited for this tile has left before more is decoded.
        """
        ours, theirs = self._kept.claim(tile, self._grid.positions(tile.read))
        there = [position for position, block in theirs.items() if block.voxels.done()]
        with self._decoding(ours):
            for position in there:
                block = theirs.pop(position)
                self._copy(block.voxels.result(), block.box, tile, voxels)
                del block
            self._kept.make_room(tile, there, len(ours) * self._block_bytes)
            n_bytes = self._decode_all(ours, tile, voxels)
        for block in theirs.values():
            self._copy(block.voxels.result(), block.box, tile, voxels)
        return n_bytes

    def _obtain(self, tile: Tile, positions: Iterable[Position]) -> tuple[Blocks, Blocks, int]:
        """Decode the blocks that nobody has decoded yet.

        Returns these blocks, those that somebody else decodes or has decoded, and bytes.
        """
        ours, theirs = self._kept.claim(tile, positions)
        with self._decoding(ours):
            return ours, theirs, self._decode_all(ours, tile, None)

    @contextmanager
    def _decoding(self, ours: Blocks) -> Iterator[None]:
        """Let those who wait for blocks fail if they are not decoded here."""
        try:
            yield
        except BaseException as error:
            self._kept.give_up(ours, error)
            raise

    @cached_property
    def _tile_size(self) -> int:
        """Voxels of the largest tile, of all channels."""
        sizes = zip(self.grid.tile_shape, self.grid.halo, self.grid.shape, strict=True)
        return prod(self.source.lead) * prod([min(t + 2 * h, n) for t, h, n in sizes])

    @cached_property
    def _tile_memory(self) -> LentMemory:
        """Memory for what tiles read."""
        return LentMemory(SPARE_TILES * self._tile_size * self.source.dtype.itemsize)

    def _memory_for(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return memory for what a tile reads: as much for each, so that any suits the next."""
        whole = self._tile_memory.lend((self._tile_size,), self.source.dtype)
        shape = (*self.source.lead, *shape)
        return whole[: prod(shape)].reshape(shape)

    @cached_property
    def _block_memory(self) -> LentMemory:
        return LentMemory(SPARE_BYTES)

    def _memory_of_block(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return memory for a block, where what reads it decodes straight into it."""
        if self.source.chunk_reader is None:
            return None
        return self._block_memory.lend((*self.source.lead, *shape), self.source.dtype)

    def clear(self) -> None:
        """Drop all that is kept: no tile will be read for some time."""
        self._tile_memory.clear()
        self._kept.clear()
        self._block_memory.clear()

    def _spans(self, positions: list[Position]) -> list[Box]:
        """Return boxes of blocks to decode at once: zarr has a price for each call."""
        if self.source.chunk_reader is None:
            return boxes_of(positions)
        return [Box(at, tuple([p + 1 for p in at])) for at in positions]

    def _decode_all(self, ours: Blocks, tile: Tile, voxels: np.ndarray | None) -> int:
        """Decode blocks; many side by side, and tile after tile.

        Tiles that are decoded at the same time are all late; one after the other, by all cores
        together, the first is there soon.
        """
        spans = self._spans(list(ours))
        decode = partial(self._decode, ours, tile=tile, voxels=voxels)
        is_little = len(spans) * self._block_bytes < SIDE_BY_SIDE_BYTES
        if self.source.chunk_reader is None or is_little or self.n_threads == 1:
            return sum(map(decode, spans))
        turn = self._turns.of(self.order.rank(tile.index))
        with turn, ThreadPoolExecutor(self.n_threads, "patchworks-decode") as pool:
            return sum(pool.map(decode, spans))

    def _decode(self, ours: Blocks, span: Box, tile: Tile, voxels: np.ndarray | None) -> int:
        """Decode a box of blocks into a tile, and for the tiles that share them."""
        box = self._grid.voxels_of(span)
        found = self.source.read(box, self._memory_of_block(box.shape))
        self._learn(box, found)
        if voxels is not None:
            self._copy(found, box, tile, voxels)
        for position in product(*map(range, span.start, span.stop)):
            inside = part_of(found, ours[position].box, box)
            self._kept.fill(ours[position], tile, inside, is_part=inside.size < found.size)
        return self._bytes_of(box)

    def _copy(self, found: np.ndarray, box: Box, tile: Tile, voxels: np.ndarray) -> None:
        """Copy what a tile reads of a box."""
        common = tile.read.intersect(box)
        if common is not None:
            part_of(voxels, common, tile.read)[...] = part_of(found, common, box)

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
