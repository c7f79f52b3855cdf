"""Chunks that were never written: what they hold is known without reading them."""

from __future__ import annotations

import os
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from zarr.storage import LocalStore

from patchworks.geometry.grid import ceil_div
from patchworks.io.image_source import ImageSource
from patchworks.io.maximum_map import MaximumMap


def learn_absent(source: ImageSource, maxima: MaximumMap) -> None:
    """Note the fill value as the maximum of boxes all of whose chunks were never written.

    Only where looking for a file is cheap: in a local store.
    """
    array: Any = source.stored.array
    store = getattr(array, "store", None)
    if not isinstance(store, LocalStore) or array.fill_value is None:
        return
    is_there = _stored_objects(array, Path(store.root) / array.path, source.pick)
    stored = array.shards or array.chunks
    extents = [n for n, p in zip(stored, source.pick, strict=True) if p is None]
    for axis, (edges, extent) in enumerate(zip(maxima.grid.edges, extents, strict=True)):
        layers = np.moveaxis(is_there, axis, 0)
        spans = [layers[a // extent : ceil_div(b, extent)] for a, b in pairwise(edges)]
        is_there = np.stack([span.any(axis=0) for span in spans], axis=axis)
    absent = ~is_there & ~maxima.known
    maxima.maxima[absent] = array.fill_value
    maxima.known[absent] = True


def _stored_objects(array: Any, folder: Path, pick: tuple[int | None, ...]) -> np.ndarray:
    """Return which chunks, or shards, have a file: bool, on the axes that are not picked."""
    stored = array.shards or array.chunks
    axes = [
        range(ceil_div(n, s)) if p is None else range(p // s, p // s + 1)
        for n, s, p in zip(array.shape, stored, pick, strict=True)
    ]
    found = np.zeros([len(axis) for axis in axes], bool)
    flat = found.reshape(-1)
    key_of, root = array.metadata.encode_chunk_key, str(folder)
    for index, position in enumerate(product(*axes)):
        flat[index] = os.path.exists(f"{root}/{key_of(position)}")  # noqa: PTH110
    return found.reshape([len(axis) for axis, p in zip(axes, pick, strict=True) if p is None])
