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
from patchworks.geometry.image_pyramid import ImageLayout, plan_image_pyramid
from patchworks.io.level_store import storable
from patchworks.io.ngff import Axis, Calibration, default_axis_names, image_attributes
from patchworks.io.source import open_source
from patchworks.plugins.napari.layers import KEY
from patchworks.temporary import temporary_store

KNOWN_AXES = "tzyx"


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
        self.calibration = _calibration(layer)
        self.place = temporary_store().with_name("image.zarr")

    def labels(self, name: str) -> str:
        """Return where labels of a name go beside the copy."""
        return str(self.place.with_name(f"{name}.labels.zarr"))

    def write(self, is_stopped: Callable[[], bool]) -> Path:
        """Write the voxels, chunk by chunk until told to stop; return the store."""
        if self.place.exists():
            return self.place
        shape = tuple(map(int, self.voxels.shape))
        dtype = storable(np.dtype(self.voxels.dtype))
        axes = "".join([axis.name for axis in self.calibration.axes])
        block = (1,) * len(shape)
        plan = plan_image_pyramid(axes, shape, dtype.itemsize, block, ImageLayout(n_levels=1))
        self.place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self.place.with_suffix(".partial")
        group = zarr.open_group(partial, mode="w", zarr_format=3)
        array = group.create_array(
            "0", shape=shape, chunks=plan.chunks[0], dtype=dtype, compressors=None
        )
        layers = (*plan.chunks[0][:-2], *shape[-2:])  # what is copied at a time
        for tile in TileGrid.regular(shape, layers, (0,) * len(shape)):
            if is_stopped():
                return self.place
            array[tile.core.slices] = np.asarray(self.voxels[tile.core.slices])
        group.attrs.update(
            image_attributes("0.5", name="layer", calibration=self.calibration, pyramid=plan)
        )
        partial.rename(self.place)
        return self.place


def _calibration(layer: Any) -> Calibration:
    """Return axes, voxel size and position of a layer, as far as it says them."""
    ndim = len(_shape(layer))
    names = tuple(map(str, layer.axis_labels))
    order = [KNOWN_AXES.find(name) for name in names]
    if min(order) < 0 or sorted(set(order)) != order:  # nothing says what they are: all of space
        names = default_axis_names(ndim)
        kinds = ["space"] * ndim
    else:
        kinds = ["time" if name == "t" else "space" for name in names]
    units = [None if str(unit) == "pixel" else str(unit) for unit in layer.units]
    axes = tuple([Axis(*parts) for parts in zip(names, kinds, units, strict=True)])
    scale = tuple([abs(float(size)) or 1.0 for size in layer.scale])
    return Calibration(axes, scale, tuple(map(float, layer.translate)))


def _shape(layer: Any) -> tuple[int, ...]:
    voxels = layer.data[0] if layer.multiscale else layer.data
    return tuple(map(int, voxels.shape))
