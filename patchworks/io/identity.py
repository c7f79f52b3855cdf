"""Which image this is: a digest that changes when the image's voxels were written anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid

MAX_FILES = 20_000
"""Chunk files looked at; beyond it the answer rests on the first so many and the metadata."""

N_SAMPLES = 16
"""Boxes whose voxels are read where there are no files to look at."""


def identity_of_files(folder: Path) -> str:
    """Return the identity of an array in a local store: names, sizes and times of its files.

    Cheap (no voxel is read) and safe: writing any chunk again changes it.
    """
    return digest("files", [list(entry) for entry in islice(_files(folder), MAX_FILES)])


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (path below `folder`, bytes, modification time in ns), in a fixed order."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            status = (Path(root) / name).stat()
            below = os.path.relpath(Path(root) / name, folder)
            yield below, status.st_size, status.st_mtime_ns


def identity_of_array(array: np.ndarray) -> str:
    """Return the identity of an array in memory: all of its values."""
    return digest("array", array)


def identity_of_samples(array: Any, shape: tuple[int, ...], chunks: tuple[int, ...]) -> str:
    """Return the identity of a remote array: shape, dtype and the voxels of a few chunks."""
    samples = [np.asarray(array[box.slices]) for box in sample_boxes(shape, chunks, N_SAMPLES)]
    return digest("samples", shape, str(array.dtype), samples)


def sample_boxes(shape: tuple[int, ...], chunks: tuple[int, ...], n_boxes: int) -> list[Box]:
    """Return up to `n_boxes` chunk-aligned boxes, spread evenly over an array.

    Examples
    --------
    >>> [box.start for box in sample_boxes((8, 8), (4, 4), 2)]
    [(0, 0), (4, 4)]
    """
    grid = TileGrid.regular(shape, chunks, (0,) * len(shape))
    n_boxes = min(n_boxes, grid.n_tiles)
    indices = np.unique(np.linspace(0, grid.n_tiles - 1, n_boxes).round().astype(int))
    return [grid[int(index)].core for index in indices]
