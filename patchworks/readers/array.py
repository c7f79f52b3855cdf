"""Arrays that a program holds: NumPy, Dask, zarr."""

from __future__ import annotations

import functools
import sys
from itertools import islice
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore

from patchworks.errors import InputError
from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.io.identity import (
    GRAPH_KEYS,
    identity_of_array,
    identity_of_graph,
    identity_of_zarr_array,
)
from patchworks.io.location import Location, ZarrArray
from patchworks.readers.axes import SURE, AxisOrder, axes_of_unplaced
from patchworks.readers.scene import Scene, SceneReader


class ArrayReader(SceneReader):
    """An array in this process's memory, or one that it can slice.

    Parameters
    ----------
    array : numpy.ndarray, dask.array.Array or zarr.Array
        The array.
    axes : str, optional
        Its axes, in its own order; by default the dimension names of a zarr array, else ``"yx"``,
        ``"zyx"`` or ``"tczyx"`` if it has 2, 3 or 5.
    """

    format = "array"

    def __init__(self, array: Any, axes: str | None = None) -> None:
        super().__init__(Path("array"))
        self.array = array
        self.axes = axes

    @functools.cached_property
    def order(self) -> AxisOrder:
        """The array's axes."""
        shape = tuple(self.array.shape)
        if any(isnan(extent) for extent in shape):
            raise InputError(
                f"array of shape {shape}, unknown before it is computed; call its "
                f"compute_chunk_sizes() first"
            )
        if self.axes is None and isinstance(self.array, zarr.Array):
            return AxisOrder.parse(axes_of_unplaced(self.array, "array"), shape, "array")
        if self.axes is None and len(shape) not in SURE:
            raise InputError(
                f"array of shape {shape}: say what its {len(shape)} axes are, such as "
                f"axes='czyx' or axes='tzyx'"
            )
        return AxisOrder.parse(self.axes or SURE[len(shape)], shape, "array")

    @classmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]:  # noqa: ARG003 - an array is one image
        return ("",)

    @property
    def crosses_processes(self) -> bool:
        """False: the array is this process's own."""
        return False

    def identity(self) -> str:
        """Return a digest of the array: of its voxels, its graph, or its files."""
        if isinstance(self.array, np.ndarray):
            found = identity_of_array(self.array)
        elif isinstance(self.array, zarr.Array):
            found = identity_of_zarr_array(self.array)
        else:
            found = identity_of_graph(self.array)
        return digest(found, self.order.held)

    def has_changed(self, identity: str) -> bool:
        """Return whether a store that it reads from was written to; voxels in memory stay."""
        array = self.array
        stored = isinstance(array, zarr.Array) and _place_of(array) is not None
        return (stored or hasattr(array, "__dask_graph__")) and super().has_changed(identity)

    def _describe(self) -> Scene:
        chunks = getattr(self.array, "chunks", None) or (1,) * self.array.ndim
        largest = [c if isinstance(c, int) else max(c) for c in chunks]
        return Scene(
            name="",
            axes=self.order.canonical,
            shapes=(self.order.shape(self.array.shape),),
            dtype=np.dtype(self.array.dtype).newbyteorder("="),
            block=self.order.shape(largest),
        )

    def _read(self, box: Box, level: int) -> np.ndarray:  # noqa: ARG002 - an array has one level
        part = self.array[self.order.box(box).slices]
        if hasattr(part, "__dask_graph__"):
            # Regions are read in threads already; with a client, its workers compute.
            part = part.compute(**({} if _has_client() else {"scheduler": "synchronous"}))
        voxels = self.order.arrange(np.asarray(part))
        return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        """Nothing is open."""


def stores_of(array: Any) -> list[Location]:
    """Return where the zarr arrays lie that an array reads from, as far as its graph shows them."""
    if isinstance(array, zarr.Array):
        return [place for place in [_place_of(array)] if place is not None]
    places = set()
    for layer in getattr(getattr(array, "dask", None), "layers", {}).values():
        for node in islice(getattr(layer, "mapping", {}).values(), GRAPH_KEYS):
            held = [node, getattr(node, "value", None), *getattr(node, "args", ())]
            places |= {_place_of(one) for one in held if isinstance(one, zarr.Array)}
    return sorted([place for place in places if place is not None], key=str)


def _place_of(array: ZarrArray) -> Location | None:
    store = array.store
    if isinstance(store, LocalStore):
        return Location.parse(store.root / array.path)
    if isinstance(store, FsspecStore):
        return Location.parse(f"{store.fs.unstrip_protocol(store.path)}/{array.path}")
    return None


def _has_client() -> bool:
    distributed = sys.modules.get("distributed")
    try:
        return distributed is not None and distributed.default_client() is not None
    except ValueError:
        return False
