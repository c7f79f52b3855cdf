"""What reading all tiles of an image takes, told before it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from patchworks.geometry.grid import TileGrid
from patchworks.geometry.reading_order import ReadingOrder
from patchworks.geometry.reuse import chunk_reuse


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCost:
    """What reading all tiles takes.

    Parameters
    ----------
    max_kept_bytes : int
        Decoded bytes that may be kept at a time for other tiles.
    kept_bytes : int
        Those that are, at most.
    decoding_bytes : int
        Decoded bytes of a tile before it is put together, beside these.
    amplification : float
        Voxels decoded per voxel of the image, about.
    """

    max_kept_bytes: int = 0
    kept_bytes: int = 0
    decoding_bytes: int = 0
    amplification: float = 1.0


def read_cost(
    order: ReadingOrder, block: tuple[int, ...], block_bytes: int, max_kept_bytes: int
) -> ReadCost:
    """Return what it takes where blocks of chunks are kept for the tiles that share them.

    Parameters
    ----------
    order : ReadingOrder
        The tiles, and how they are read.
    block : tuple of int
        Extents of what is decoded at once.
    block_bytes, max_kept_bytes : int
        Bytes of one, and of all that may be kept.
    """
    found = chunk_reuse(order.grid, block, max_kept_bytes / block_bytes, order.axes, order.bands)
    return ReadCost(
        max_kept_bytes=max_kept_bytes,
        kept_bytes=ceil(found.n_waiting * block_bytes),
        decoding_bytes=found.n_per_tile * block_bytes if max_kept_bytes else 0,
        amplification=found.n_decoded / found.n_chunks,
    )


def held_cost(grid: TileGrid) -> ReadCost:
    """Return what it takes to read an image in memory: halos are copied once more."""
    return ReadCost(amplification=grid.n_read_voxels / prod(grid.shape))
