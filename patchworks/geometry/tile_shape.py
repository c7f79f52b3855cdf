"""From what the user asked for (or did not) to a tile shape and a halo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from numbers import Integral
from typing import Any

import numpy as np

from patchworks.errors import InputError
from patchworks.geometry.grid import TileGrid, ceil_div

DEFAULT_OVERLAP = 16
"""Voxels of halo when nothing is said; the reach of most smoothing and small watersheds."""

MIN_EXTENT = 2 * DEFAULT_OVERLAP
"""Thinner tiles would read more halo than core."""

MIN_VOXELS = 2**20
MAX_VOXELS = 2**26

WORKING_BYTES_PER_VOXEL = 16
"""What a function is assumed to need beside the tile: a float copy, int32 labels, slack."""

ORDERED = (Sequence, np.ndarray)
"""What may give one number per axis."""

TileShapeRule = tuple[int, ...] | str | Callable[[tuple[int, ...], np.dtype], tuple[int, ...]]


def resolve_grid(
    shape: tuple[int, ...],
    dtype: np.dtype,
    *,
    tile_shape: TileShapeRule | None,
    overlap: int | Sequence[int] | None,
    chunks: Sequence[Sequence[int]] | None,
    storage_chunks: tuple[int, ...] | None,
) -> TileGrid:
    """Return the tile grid of a run.

    Parameters
    ----------
    shape, dtype
        The spatial shape of the image, in voxels, and its dtype.
    tile_shape
        As in `patchworks.tile_process`; whoever asks has put a shape in the place of ``"auto"``,
        which depends on the machine.
    overlap
        Voxels of halo; None for the default.
    chunks : sequence of sequence of int, optional
        Extents per axis of a Dask array, whose own chunks are the tiles.
    storage_chunks : tuple of int, optional
        Chunk shape of a store.

    Raises
    ------
    InputError
        If the shape of a tile or a halo is not one.
    """
    if chunks is not None and tile_shape is None:
        grid = TileGrid.from_chunks(chunks, (0,) * len(shape))
    else:
        tiles = _tile_shape(shape, dtype, tile_shape, storage_chunks)
        grid = TileGrid.regular(shape, tiles, (0,) * len(shape))
    return TileGrid(grid.edges, resolve_halo(grid, overlap))


def _tile_shape(
    shape: tuple[int, ...],
    dtype: np.dtype,
    tile_shape: TileShapeRule | None,
    storage_chunks: tuple[int, ...] | None,
) -> tuple[int, ...]:
    if tile_shape is None:
        return default_tile_shape(shape, storage_chunks)
    if isinstance(tile_shape, str):
        raise InputError(f"tile_shape={tile_shape!r}: expected a tuple, a callable or 'auto'")
    if callable(tile_shape):
        try:
            given = tile_shape(shape, dtype)
        except TypeError as error:
            raise InputError(f"tile_shape(shape, dtype) raised TypeError: {error}") from error
        return check_tile_shape(given, shape, "tile_shape(shape, dtype)")
    return check_tile_shape(tile_shape, shape, "tile_shape")


def check_tile_shape(
    tile_shape: Sequence[int], shape: tuple[int, ...], name: str
) -> tuple[int, ...]:
    """Return `tile_shape` clipped to the image, or raise InputError saying what is wrong."""
    entries = list(tile_shape) if isinstance(tile_shape, ORDERED) else []
    if len(entries) != len(shape) or not all(_is_int(t) for t in entries):
        raise InputError(
            f"{name}={tile_shape!r}: expected {len(shape)} integers, one per axis of the image "
            f"of shape {shape}"
        )
    if any(t < 1 for t in entries):
        raise InputError(f"{name}={tuple(entries)}: every extent must be 1 voxel or more")
    return tuple([min(int(t), n) for t, n in zip(entries, shape, strict=True)])


def resolve_halo(grid: TileGrid, overlap: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the halo per axis: none on an axis with one tile or with tiles one voxel thick.

    Examples
    --------
    >>> grid = TileGrid.regular((9, 64, 64), (1, 32, 64), (0, 0, 0))
    >>> resolve_halo(grid, None)
    (0, 16, 0)
    """
    tiles = grid.tile_shape
    split = [n > 1 for n in grid.dims]
    if overlap is None:
        return tuple(
            [
                min(DEFAULT_OVERLAP, t) if s and t > 1 else 0
                for t, s in zip(tiles, split, strict=True)
            ]
        )
    per_axis = isinstance(overlap, ORDERED) and not isinstance(overlap, str)
    entries: list[Any] = list(overlap) if per_axis else [overlap] * grid.ndim  # type: ignore[arg-type]
    if len(entries) != grid.ndim or not all(_is_int(h) and h >= 0 for h in entries):
        raise InputError(
            f"overlap={overlap!r}: expected one integer >= 0, or {grid.ndim} of them "
            f"(one per axis, in voxels)"
        )
    if not per_axis:
        entries = [h if t > 1 else 0 for h, t in zip(entries, tiles, strict=True)]
    for axis, (halo, tile, is_split) in enumerate(zip(entries, tiles, split, strict=True)):
        if halo > tile and is_split:
            raise InputError(
                f"overlap={overlap!r}: {halo} voxels on axis {axis} exceed the tile, which is "
                f"{tile} voxels there; give larger tiles or a smaller overlap"
            )
    return tuple([int(h) if s else 0 for h, s in zip(entries, split, strict=True)])


def asked_overlap(overlap: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return the overlap that was asked for per axis, also where the grid has no use for one.

    Examples
    --------
    >>> asked_overlap(None, 2), asked_overlap((0, 8), 2)
    ((16, 16), (0, 8))
    """
    if overlap is None:
        return (DEFAULT_OVERLAP,) * ndim
    entries = overlap if isinstance(overlap, ORDERED) else [overlap] * ndim
    return tuple(map(int, entries))


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def default_tile_shape(shape: tuple[int, ...], chunks: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the chunks of a store as tiles, or a multiple of tiny ones, or a part of huge ones.

    The answer depends on the store alone, not on the machine: a run can go on elsewhere.

    Examples
    --------
    >>> default_tile_shape((128, 2048, 2048), (32, 256, 256))
    (32, 256, 256)
    >>> default_tile_shape((60, 4096, 4096), (1, 256, 256))
    (32, 256, 256)
    >>> default_tile_shape((30000, 40000), (256, 256))
    (1024, 1024)
    >>> default_tile_shape((30000, 40000), (30000, 40000))
    (7500, 5000)
    """
    if chunks is None:
        chunks = (1,) * max(0, len(shape) - 3) + ((32, 256, 256) if len(shape) > 2 else (1024,) * 2)
        chunks = chunks[-len(shape) :]
    tile = [min(c, n) for c, n in zip(chunks, shape, strict=True)]
    for axis, (c, n) in enumerate(zip(tile, shape, strict=True)):
        tile[axis] = min(n, c * ceil_div(min(MIN_EXTENT, n), c))
    while prod(tile) < MIN_VOXELS and any(t < n for t, n in zip(tile, shape, strict=True)):
        axis = min((t, a) for a, t in enumerate(tile) if t < shape[a])[1]
        tile[axis] = min(shape[axis], tile[axis] * 2)
    return halve_until(tuple(tile), MAX_VOXELS)


def halve_until(tile: tuple[int, ...], max_voxels: int) -> tuple[int, ...]:
    """Return `tile` with its longest axis halved again and again until it fits `max_voxels`."""
    extents = list(tile)
    while prod(extents) > max_voxels:
        axis = max(range(len(extents)), key=lambda a: (extents[a], a))
        extents[axis] = ceil_div(extents[axis], 2)
    return tuple(extents)
