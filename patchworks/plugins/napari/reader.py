"""napari's reader of OME-Zarr: what `view_in_napari` shows, for File > Open and drag and drop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zarr

from patchworks.errors import PatchworksError
from patchworks.io.location import Location
from patchworks.io.ngff import read_multiscale
from patchworks.io.source import open_node
from patchworks.plugins.napari.layers import layers_of
from patchworks.plugins.napari.view import as_layer_data

LayerData = tuple[Any, dict[str, Any], str]


def get_reader(
    path: str | os.PathLike[str] | Sequence[str],
) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return what reads a path for napari, or None if it is no OME-Zarr store.

    Parameters
    ----------
    path : path, URL, or several
        What the user opens.
    """
    paths = _each(path)
    return read_layers if paths and all(_is_ome_zarr(one) for one in paths) else None


def read_layers(path: str | Sequence[str]) -> list[LayerData]:
    """Return the layers of a store, or of several."""
    return [
        as_layer_data(layer)
        for one in _each(path)
        for layer in layers_of(Location.parse(one, "path"))
    ]


def _each(path: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    """Return paths as a list; napari gives one, or several."""
    if isinstance(path, (str, os.PathLike)):
        return [os.fspath(path)]
    return [os.fspath(one) for one in path]


def _is_ome_zarr(path: str) -> bool:
    """Whether a path is an image, a label image, or a collection of them."""
    try:
        place = Location.parse(path, "path")
        node = open_node(place)
        if isinstance(node, zarr.Array):
            return False
        attributes = dict(node.attrs)
        ome = attributes.get("ome", attributes)
        is_collection = isinstance(ome, Mapping) and "bioformats2raw.layout" in ome
        return is_collection or read_multiscale(attributes, path) is not None
    except (PatchworksError, TypeError):
        return False
