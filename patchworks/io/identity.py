"""Which image this is: a digest that changes when the image's voxels were written anew."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from fsspec.core import url_to_fs
from zarr.storage import FsspecStore, LocalStore

from patchworks.errors import ImageReadError
from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.io.location import ZarrArray

GRAPH_KEYS = 100_000
"""Keys of a Dask graph's layer that are looked at for arrays in stores."""


def identity_of_zarr_array(array: ZarrArray) -> str:
    """Return the identity of an array in a store: files where there are any, else its voxels."""
    store = array.store
    if isinstance(store, LocalStore):
        return identity_of_files(store.root / array.path)
    if isinstance(store, FsspecStore):
        return identity_of_url(store, array.path)
    return identity_of_array(np.asarray(array[...]))


def identity_of_graph(array: Any) -> str:
    """Return the identity of a Dask array: its name, and that of the stores it reads from.

    Dask names an array over a store by where the store lies, not by what is in it.
    """
    stores = []
    for layer in array.dask.layers.values():
        mapping = getattr(layer, "mapping", {})
        for node in islice(mapping.values(), GRAPH_KEYS):
            held = [node, getattr(node, "value", None), *getattr(node, "args", ())]
            stores += [identity_of_zarr_array(a) for a in held if isinstance(a, zarr.Array)]
    return digest("dask", str(array.name), array.shape, str(array.dtype), sorted(set(stores)))


def identity_of_url(store: FsspecStore, path: str) -> str:
    """Return the identity of an array in an object store: names, sizes and times of its objects."""
    filesystem, _ = url_to_fs(store.fs.unstrip_protocol(store.path), use_listings_cache=False)
    objects = filesystem.find(f"{store.path}/{path}", detail=True)
    keys = ("size", "ETag", "etag", "LastModified", "mtime", "modified", "created")
    return digest(
        "objects", [[name, *[str(objects[name].get(k)) for k in keys]] for name in sorted(objects)]
    )


def identity_of_files(folder: Path) -> str:
    """Return the identity of an array in a local store: names, sizes and times of its files.

    Cheap beside a run (no voxel is read) and safe: writing any chunk again changes it.
    """
    found = hashlib.blake2b(digest_size=16)
    for entry in _files(folder):
        found.update(repr(entry).encode("utf-8", "surrogatepass"))
    return f"files {found.hexdigest()}"


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (path below `folder`, bytes, modification time in ns), in a fixed order."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(root) / name
            try:
                status = path.stat()
            except FileNotFoundError as error:
                raise ImageReadError(
                    f"{path}: nothing is there any more, or only a link to nothing; bring the file "
                    f"back, or remove the link if these voxels are to be empty"
                ) from error
            below = os.path.relpath(path, folder)
            yield below, status.st_size, status.st_mtime_ns


def identity_of_array(array: np.ndarray) -> str:
    """Return the identity of an array in memory: all of its values."""
    return digest("array", array)


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
