"""A layer of napari → the image that a run reads, and where its labels go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from patchworks.errors import InputError, SourceNotFoundError
from patchworks.geometry.grid import TileGrid
from patchworks.io.source import open_source
from patchworks.plugins.napari.layers import KEY
from patchworks.temporary import temporary_store

KNOWN_AXES = {"t", "z", "y", "x"}
CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image that a run can read: where it lies, and which channel of it a layer shows."""

    path: str
    channel: int | None


def stored_image(layer: Any) -> StoredImage | None:
    """Return where an image layer's voxels lie, or None if they are in memory alone.

    Layers that `view_in_napari` made say it. Of others only a store is known: it is taken where it
    holds one channel, of the layer's shape.
    """
    said = layer.metadata.get(KEY, {})
    if "image" in said:
        source = open_source(said["image"], channel=said["channel"], level=0)
        several = any(axis is not None for axis in source.pick)
        return StoredImage(path=said["image"], channel=said["channel"] if several else None)
    path = layer.source.path
    if not path:
        return None
    try:
        source = open_source(path, channel=None, level=0)
    except (InputError, SourceNotFoundError):  # a file of another kind, or of several channels
        return None
    return StoredImage(path=path, channel=None) if source.shape == _shape(layer) else None


def check_layer(layer: Any) -> None:
    """Raise InputError unless a layer can be segmented."""
    if layer is None:
        raise InputError("there is no image layer to segment; open an image first")
    if layer.rgb:
        raise InputError(
            f"layer {layer.name!r} is an RGB picture; split it into channels first (right-click on "
            f"the layer, Split RGB), and segment one of them"
        )
    if not 2 <= len(_shape(layer)) <= 4:
        raise InputError(f"layer {layer.name!r} of shape {_shape(layer)}: expected 2 to 4 axes")


class CopyOfLayer:
    """The voxels of a layer that has no store, in a temporary one; kept as long as the layer is.

    Parameters
    ----------
    layer : napari.layers.Image
        The layer.
    """

    def __init__(self, layer: Any) -> None:
        self.voxels = layer.data[0] if layer.multiscale else layer.data
        self.names = tuple(layer.axis_labels)
        self.place = temporary_store().with_name("image.zarr")

    def labels(self, name: str) -> str:
        """Return where labels of a name go beside the copy."""
        return str(self.place.with_name(f"{name}.labels.zarr"))

    def write(self, is_stopped: Callable[[], bool]) -> Path:
        """Write the voxels, chunk by chunk until told to stop; return the store."""
        if self.place.exists():
            return self.place
        shape = tuple(map(int, self.voxels.shape))
        chunks = tuple([min(n, CHUNK if axis < 2 else 16) for axis, n in _from_last(shape)])
        self.place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self.place.with_suffix(".partial")
        known = set(self.names) <= KNOWN_AXES and len(set(self.names)) == len(shape)
        array = zarr.create_array(
            partial,
            shape=shape,
            chunks=chunks,
            dtype=np.dtype(self.voxels.dtype),
            compressors=None,
            dimension_names=list(self.names) if known else None,
            overwrite=True,
        )
        for tile in TileGrid.regular(shape, _rows(shape, chunks), (0,) * len(shape)):
            if is_stopped():
                return self.place
            array[tile.core.slices] = np.asarray(self.voxels[tile.core.slices])
        partial.rename(self.place)
        return self.place


def _from_last(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(len(shape) - 1 - axis, n) for axis, n in enumerate(shape)]


def _rows(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Return what is copied at a time: all of the last two axes, for a plane is quickly read."""
    return (*chunks[:-2], *shape[-2:])


def _shape(layer: Any) -> tuple[int, ...]:
    voxels = layer.data[0] if layer.multiscale else layer.data
    return tuple(map(int, voxels.shape))
