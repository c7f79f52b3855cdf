"""OME-Zarr images (OME-NGFF 0.1 to 0.5) and plain zarr arrays, at a path or URL."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from patchworks.errors import InputError, SourceNotFoundError
from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.io.identity import identity_of_zarr_array
from patchworks.io.location import Location, ZarrArray, open_array, readable
from patchworks.io.ngff import Multiscale, read_channels, read_multiscale
from patchworks.io.source import component_of, open_node
from patchworks.readers.axes import AxisOrder, axes_of_unplaced, axis_letters
from patchworks.readers.scene import Scene, SceneReader

SAME_PLACE = 1e-6
"""Part of a voxel by which two levels may lie apart and still begin at the same place."""


class ZarrReader(SceneReader):
    """An image in a zarr store.

    Parameters
    ----------
    location : Location
        The store; for a collection of images (`bioformats2raw.layout`), the collection.
    index : int
        Which image of a collection.
    axes : str, optional
        What the axes are, for an array whose metadata do not say it.
    """

    format = "zarr"

    def __init__(self, location: Location, index: int = 0, axes: str | None = None) -> None:
        super().__init__(Path(location.url), index)
        self.location = location
        self.axes = axes

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "location": self.location, "axes": self.axes}

    @property
    def name(self) -> str:
        """The path or URL."""
        return str(self.location)

    @classmethod
    def names_at(cls, location: Location) -> tuple[str, ...]:
        """Return the names of the images at a location: several in a collection."""
        with readable(location):
            series = _series(location)
            if series is None:
                return ("",)
            return tuple([_multiscale_name(location / part) for part in series])

    @classmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]:
        return cls.names_at(Location.parse(path))

    @functools.cached_property
    def image(self) -> Location:
        """Where the image itself lies."""
        series = _series(self.location)
        return self.location if series is None else self.location / series[self.index]

    @functools.cached_property
    def _node(self) -> ZarrArray | zarr.Group:
        return open_node(self.image)

    @functools.cached_property
    def _multiscale(self) -> Multiscale | None:
        if isinstance(self._node, zarr.Array):
            return None
        attributes = dict(self._node.attrs)
        ome = attributes.get("ome", attributes)
        if isinstance(ome, Mapping) and "plate" in ome:
            raise InputError(
                f"{self.image}: a plate; convert one field of a well, such as {self.image}/A/1/0"
            )
        return read_multiscale(attributes, str(self.image))

    @functools.cached_property
    def levels(self) -> list[ZarrArray]:
        """The level arrays."""
        if self._multiscale is not None:
            return [open_array(self.image, level.path) for level in self._multiscale.levels]
        part = "" if isinstance(self._node, zarr.Array) else component_of(self._node, self.image)
        return [open_array(self.image, part)]

    @functools.cached_property
    def order(self) -> AxisOrder:
        """The axes as they are stored."""
        first = self.levels[0]
        if self._multiscale is None:
            axes = self.axes or axes_of_unplaced(first, self.name)
        else:
            axes = axis_letters(self._multiscale.axes)
            if self.axes is not None and self.axes.lower() != axes:
                raise InputError(
                    f"{self.image}: axes={self.axes!r}, but its metadata say {axes!r}; leave axes "
                    f"out"
                )
        return AxisOrder.parse(axes, first.shape, self.name)

    @property
    def is_labels(self) -> bool:
        """Whether this is a label image."""
        return not isinstance(self._node, zarr.Array) and "image-label" in _ome(self._node)

    def identity(self) -> str:
        """Return a digest that changes when the image is written anew."""
        levels = [identity_of_zarr_array(level) for level in self.levels]
        return digest(levels, self.order.held)

    def _describe(self) -> Scene:
        first, order, multiscale = self.levels[0], self.order, self._multiscale
        shape = order.shape(first.shape)
        channels = () if multiscale is None else read_channels(dict(self._node.attrs))
        n_channels = dict(zip(order.canonical, shape, strict=True)).get("c", 1)
        spacing, origin, pooled = _placed(multiscale, order)
        return Scene(
            name="" if multiscale is None else multiscale.name,
            axes=order.canonical,
            shapes=tuple([order.shape(level.shape) for level in self.levels]),
            dtype=first.dtype.newbyteorder("="),
            block=order.shape(first.chunks),
            spacing=spacing,
            origin=origin,
            channels=channels if len(channels) == n_channels else (),
            pooled=pooled,
        )

    def _read(self, box: Box, level: int) -> np.ndarray:
        voxels = self.order.arrange(np.asarray(self.levels[level][self.order.box(box).slices]))
        return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        """Forget the arrays; zarr holds no file open."""
        for name in ("levels", "order", "_multiscale", "_node", "image"):
            self.__dict__.pop(name, None)


def _series(location: Location) -> list[str] | None:
    """Return the paths of the images of a collection, or None if it is none."""
    node = open_node(location)
    if isinstance(node, zarr.Array):
        return None
    ome = _ome(node)
    if "bioformats2raw.layout" not in ome or "multiscales" in ome:
        return None
    try:
        listed = _ome(zarr.open_group((location / "OME").store(read_only=True), mode="r"))
        series = [str(part) for part in listed["series"]]
    except (FileNotFoundError, KeyError, ValueError):
        series = sorted([name for name in node.group_keys() if name.isdigit()], key=int)
    if not series:
        raise SourceNotFoundError(f"{location}: a collection without an image in it")
    return series


def _ome(group: zarr.Group) -> Mapping[str, Any]:
    attributes = dict(group.attrs)
    found = attributes.get("ome", attributes)
    return found if isinstance(found, Mapping) else {}


def _multiscale_name(location: Location) -> str:
    node = open_node(location)
    found = read_multiscale(dict(node.attrs), str(location))
    return "" if found is None else found.name


def _placed(
    multiscale: Multiscale | None, order: AxisOrder
) -> tuple[dict[str, tuple[float, str | None]], dict[str, float], bool]:
    """Return spacing and origin where the metadata give them, and how levels were sampled.

    A scale of 1 without a unit is what a writer puts that knows no size: it is left out, as is one
    that can be no size.
    """
    if multiscale is None:
        return {}, {}, True
    first = multiscale.levels[0]
    spacing: dict[str, tuple[float, str | None]] = {}
    origin = {}
    for name, axis, scale, shift in zip(
        order.held, multiscale.axes, first.scale, first.translation, strict=True
    ):
        if name == "c" or not (isfinite(scale) and scale > 0):
            continue
        if axis.unit is not None or scale != 1:
            spacing[name] = (scale, axis.unit)
        if shift and isfinite(shift):
            origin[name] = shift
    pooled = True
    if len(multiscale.levels) > 1:
        second = multiscale.levels[1]
        moved = [
            abs(b - a) > SAME_PLACE * s
            for a, b, s in zip(first.translation, second.translation, first.scale, strict=True)
        ]
        pooled = any(moved)
    return spacing, origin, pooled
