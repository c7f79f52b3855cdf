"""Image → which tiles hold signal."""

from __future__ import annotations

from patchworks.geometry.grid import Tile
from patchworks.io.source import ImageSource


def is_occupied(source: ImageSource, tile: Tile, threshold: float) -> bool:
    """Return whether any voxel that the tile reads, halo included, lies above `threshold`.

    The halo counts: an object may reach into the core with nothing but its dim rim.
    """
    return bool((source.read(tile.read) > threshold).any())
