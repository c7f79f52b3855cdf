"""Axes that are taken one voxel at a time and that the function does not see: time, slices.

::

    image (t, z, y, x), axes 0 and 1 apart:  tiles of 1 x 1 x 512 x 512, the function sees 512 x 512
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from patchworks.errors import InputError
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.tile_shape import ORDERED, TileShapeRule, resolve_grid


def resolve_grid_apart(
    shape: tuple[int, ...],
    dtype: np.dtype,
    apart: tuple[int, ...],
    *,
    tile_shape: TileShapeRule | None,
    overlap: int | Sequence[int] | None,
    chunks: Sequence[Sequence[int]] | None,
    storage_chunks: tuple[int, ...] | None,
) -> TileGrid:
    """Return the tile grid of a run in which some axes are apart.

    Parameters
    ----------
    shape, dtype
        Of the image, all axes.
    apart : tuple of int
        Axes on which tiles are one voxel thick, without halo.
    tile_shape, overlap
        As in `patchworks.tile_process`: one entry per axis, 1 and 0 on those that are apart, or for
        the others alone.
    chunks, storage_chunks
        As in `resolve_grid`, all axes.

    Raises
    ------
    InputError
        If the shape of a tile or a halo is not one.

    Examples
    --------
    >>> grid = resolve_grid_apart((9, 64, 64), np.dtype("u1"), (0,), tile_shape=(32, 64), overlap=4,
    ...                           chunks=None, storage_chunks=(4, 32, 32))
    >>> grid.dims, grid.tile_shape, grid.halo, grid.layer
    ((9, 2, 1), (1, 32, 64), (0, 4, 0), (0, 4))
    """
    ndim = len(shape)
    seen = [axis for axis in range(ndim) if axis not in apart]
    if not isinstance(tile_shape, str):
        tile_shape = _of_seen("tile_shape", tile_shape, apart, ndim, 1)
    inner = resolve_grid(
        tuple([shape[axis] for axis in seen]),
        dtype,
        tile_shape=tile_shape,
        overlap=_of_seen("overlap", overlap, apart, ndim, 0),
        chunks=None if chunks is None else [chunks[axis] for axis in seen],
        storage_chunks=storage_chunks and tuple([storage_chunks[axis] for axis in seen]),
    )
    if not apart:
        return inner
    edges = dict(zip(seen, inner.edges, strict=True))
    halo = dict(zip(seen, inner.halo, strict=True))
    return TileGrid(
        tuple([edges.get(axis, tuple(range(shape[axis] + 1))) for axis in range(ndim)]),
        tuple([halo.get(axis, 0) for axis in range(ndim)]),
        apart,
        _layer(apart, storage_chunks),
    )


def _of_seen(name: str, given: Any, apart: tuple[int, ...], ndim: int, alone: int) -> Any:
    """Return what is given per axis for the axes that the function sees alone."""
    if not apart or not isinstance(given, ORDERED) or len(given) != ndim:
        return given
    if any(given[axis] != alone for axis in apart):
        raise InputError(
            f"{name}={tuple(given)}: axes {apart} are taken one voxel at a time, and the function "
            f"sees the others; give {alone} there, or {ndim - len(apart)} entries for the others"
        )
    return tuple([entry for axis, entry in enumerate(given) if axis not in apart])


def spread_overlap(
    overlap: int | Sequence[int] | None, ndim: int, apart: tuple[int, ...]
) -> int | Sequence[int] | None:
    """Return an overlap with an entry for each axis, where it has some for those that are seen.

    Examples
    --------
    >>> spread_overlap((8, 4), 3, (0,)), spread_overlap(8, 3, (0,))
    ((0, 8, 4), 8)
    """
    if not apart or not isinstance(overlap, ORDERED) or len(overlap) != ndim - len(apart):
        return overlap
    entries = iter(overlap)
    return tuple([0 if axis in apart else next(entries) for axis in range(ndim)])


def _layer(apart: tuple[int, ...], chunks: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Return an axis on which several tiles read the same chunks, and how many do."""
    deep = [axis for axis in apart if chunks is not None and chunks[axis] > 1]
    return (deep[-1], chunks[deep[-1]]) if deep and chunks is not None else None
