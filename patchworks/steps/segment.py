"""Tile of the image → its voxels → labels of the tile, as the function gives them, checked.

Axes that are apart (time, slices) are left out here for the function, and put back after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOMEM

import numpy as np

from patchworks.errors import ImageReadError, MemoryBudgetError, SegmenterError, may_heal
from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile
from patchworks.io.tile_reader import TileReader
from patchworks.segmenters import Segmenter, name_of


def read_tile(
    reader: TileReader, tile: Tile, above: float | None = None
) -> tuple[np.ndarray | None, int]:
    """Return the voxels that a tile reads, and the bytes of chunks that were decoded for it.

    No voxels where none lies above the threshold `above`.

    Raises
    ------
    ImageReadError
        If the image cannot be read there.
    """
    with _naming(reader, tile):
        return reader.read(tile, above)


def read_box(reader: TileReader, tile: Tile, box: Box) -> tuple[np.ndarray, int]:
    """Return the voxels of a box within what a tile reads, and the bytes decoded for it.

    Raises
    ------
    ImageReadError
        If the image cannot be read there.
    """
    with _naming(reader, tile):
        return reader.read_box(box)


@contextmanager
def _naming(reader: TileReader, tile: Tile) -> Iterator[None]:
    """Say which tile cannot be read."""
    try:
        yield
    except Exception as error:
        where, said = f"tile {tile.index} at {tile.core.start}", f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or getattr(error, "errno", 0) == ENOMEM:
            raise MemoryBudgetError(
                f"{where}: no memory to read {reader.source.name} there ({said}); give smaller "
                f"tiles (tile_shape=) or fewer at a time (max_workers=)"
            ) from error
        unread = ImageReadError(
            f"{where}: {reader.source.name} cannot be read there ({said}); repair the image, and "
            f"call again"
        )
        unread.heals = isinstance(error, OSError)  # what cannot be decoded stays so
        raise unread from error


def segment_tile(voxels: np.ndarray, tile: Tile, segmenter: Segmenter) -> np.ndarray:
    """Return the labels of everything the tile reads.

    Parameters
    ----------
    voxels : numpy.ndarray
        What the tile reads, halo included, after the axis of several channels if there is one; the
        function may work in it.
    tile : Tile
        The tile.
    segmenter : callable
        The function; called once.

    Returns
    -------
    numpy.ndarray
        Integers, shape ``tile.read.shape``. That none is negative is seen when they are staged: it
        takes a look at each voxel, which is taken there anyway.

    Raises
    ------
    SegmenterError
        If the function raises, or returns anything but one label per voxel.
    """
    segment_view = getattr(segmenter, "segment_view", None)
    if tile.apart:
        lead = voxels.shape[: voxels.ndim - tile.read.ndim]
        voxels = voxels.reshape(lead + tile.seen(tile.read.shape))
    try:
        if segment_view is None:
            labels = segmenter(voxels)
        else:
            labels = segment_view(voxels, tile.seen(tile.margins))
    except Exception as error:
        failure = SegmenterError(
            f"{_where(tile, segmenter)} raised {type(error).__name__}: {error}"
        )
        failure.heals = may_heal(error)
        raise failure from error
    found = check_labels(labels, tile, segmenter)
    return found.reshape(tile.read.shape) if tile.apart else found


def check_labels(labels: object, tile: Tile, segmenter: Segmenter) -> np.ndarray:
    """Return `labels` as an array of integers of the shape seen, or raise SegmenterError."""
    where = f"{_where(tile, segmenter)} returned"
    if labels is None:
        raise SegmenterError(f"{where} None; return the labels (is a `return` missing?)")
    try:
        # What is masked is no object: the mask would be lost.
        found = labels.filled(0) if isinstance(labels, np.ma.MaskedArray) else np.asarray(labels)
    except Exception as error:  # arrays on a GPU raise what they like
        failure = SegmenterError(
            f"{where} a {type(labels).__name__} that is no array ({error}); return one label per "
            f"voxel, as a NumPy array"
        )
        failure.heals = may_heal(error)
        raise failure from error
    seen = tile.seen(tile.read.shape)
    if found.shape != seen:
        raise SegmenterError(
            f"{where} shape {found.shape} for a tile of {seen}; return one label per voxel"
        )
    if found.dtype.kind == "b":
        raise SegmenterError(
            f"{where} booleans; return one integer per object, such as scipy.ndimage.label(mask)[0]"
        )
    if found.dtype.kind not in "iu":
        raise SegmenterError(
            f"{where} {found.dtype}; return integers, 0 for background (labels.astype('int32'))"
        )
    return found


def _where(tile: Tile, segmenter: Segmenter) -> str:
    return f"tile {tile.index} at {tile.core.start}: {name_of(segmenter)!r}"
