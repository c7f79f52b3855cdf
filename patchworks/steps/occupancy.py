"""A tile → whether there is signal in what it reads."""

from __future__ import annotations

from patchworks.geometry.grid import Tile
from patchworks.io.tile_reader import TileReader


def is_occupied(reader: TileReader, tile: Tile, threshold: float) -> bool:
    """Return whether any voxel that a tile reads, halo included, lies above `threshold`.

    The halo counts: an object may reach into the core with nothing but its dim rim.
    """
    return reader.is_signal(tile, threshold)
