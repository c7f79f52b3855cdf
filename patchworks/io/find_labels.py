"""An image → the label images that belong to it: in its store, and beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import zarr

from patchworks.errors import InputError
from patchworks.io.location import Location, open_group
from patchworks.io.ngff import read_multiscale
from patchworks.io.source import NO_STORE, NOT_ZARR, find_array

MOST_BESIDE = 200
"""Folders beside an image that are looked at, at most."""


@dataclass(frozen=True, slots=True)
class FoundLabels:
    """A label image: what it is called, and its group."""

    name: str
    location: Location


def find_labels(image: Location) -> list[FoundLabels]:
    """Return the label images of an image, those in its store first; no voxel is read.

    Parameters
    ----------
    image : Location
        The image's group. Its label images are those that its `labels` group lists. Beside it, on a
        local disk, a label image belongs to it that has its shape in space, and begins with its
        name (``scan.zarr``, ``scan_labels.zarr``) or lies in a folder without another image. What
        may not be looked into is passed over.
    """
    return [*_inside(image), *_beside(image)]


def only_labels(image: Location) -> Location:
    """Return the one label image of an image.

    Raises
    ------
    InputError
        If there is none, or more than one; the message names them.
    """
    found = find_labels(image)
    if len(found) == 1:
        return found[0].location
    if not found:
        raise InputError(
            f"{image}: no label image was found in it or beside it; segment it first, or give the "
            f"path of its labels"
        )
    raise InputError(
        f"{image}: which of its {len(found)} label images is meant? Give labels= as one of "
        f"{', '.join([repr(labels.name) for labels in found])}, or a path"
    )


def labels_named(image: Location, name: str) -> Location:
    """Return the label image that a name or a path means: one of the image's, or what lies there.

    Raises
    ------
    InputError
        If it is no path, and no label image of this image is called so.
    """
    found = find_labels(image)
    for labels in found:
        if labels.name == name:
            return labels.location
    place = Location.parse(name, "labels")
    if not place.exists():
        known = [labels.name for labels in found]
        raise InputError(
            f"labels={name!r}: nothing is at this path, and {image} has no label image of that "
            f"name; it has {known}"
        )
    return place


def _inside(image: Location) -> Iterator[FoundLabels]:
    """Yield the label images of the image's own store."""
    with suppress(*NO_STORE):
        group = open_group(image / "labels")
        listed = _ome(group).get("labels")
        names = listed if isinstance(listed, list) else _members(group, image / "labels")
        for name in dict.fromkeys(map(str, names)):
            place = image / "labels" / name
            if is_label_image(place):
                yield FoundLabels(name, place)


def _members(group: zarr.Group, place: Location) -> list[str]:
    """Return the names of what may be groups in a group."""
    if place.is_local:  # zarr's own list ends at a member that may not be looked into
        return sorted([path.name for path in place.path.iterdir() if path.is_dir()])
    return sorted(group.group_keys())


def _beside(image: Location) -> Iterator[FoundLabels]:
    """Yield the label images in the image's folder that can only be its own."""
    if not image.is_local or not image.path.parent.is_dir():
        return
    stores = [path for path in _stores(image.path.parent) if path != image.path]
    labels = [path for path in stores if is_label_image(Location(str(path)))]
    if not labels:
        return
    images = [Location(str(path)).name for path in stores if path not in labels and _is_image(path)]
    shape = _shape_in_space(image)
    for path in labels:
        place = Location(str(path))
        owner = max(
            [n for n in (image.name, *images) if place.name.startswith(n)], default="", key=len
        )
        is_its = owner == image.name if owner else not images
        if is_its and shape and shape == _shape_in_space(place):
            yield FoundLabels(place.name, place)


def _stores(folder: Path) -> list[Path]:
    """Return the zarr groups in a folder, by name; of a full folder only some."""
    with suppress(PermissionError):  # one may know what is in a folder and not look for more
        return sorted([path for path in islice(folder.iterdir(), MOST_BESIDE) if _is_store(path)])
    return []


def _is_store(path: Path) -> bool:
    """Whether a zarr group is in a folder; of a closed one the name tells."""
    try:
        return (path / "zarr.json").exists() or (path / ".zgroup").exists()
    except PermissionError:
        return path.suffix == ".zarr"


def is_label_image(location: Location) -> bool:
    """Whether a group says of itself that it is a label image."""
    with suppress(*NO_STORE, InputError):
        group = open_group(location)
        known = read_multiscale(dict(group.attrs), str(location)) is not None
        return known and "image-label" in _ome(group)
    return False


def _is_image(path: Path) -> bool:
    """Whether an image is in a folder, or may be: a closed one is somebody's."""
    with suppress(*NOT_ZARR, InputError):
        try:
            attributes = dict(open_group(Location(str(path))).attrs)
        except PermissionError:
            return True
        return read_multiscale(attributes, str(path)) is not None
    return False


def _shape_in_space(location: Location) -> tuple[int, ...]:
    """Return the extents of an image without its channels and single time points."""
    with suppress(InputError):
        found = find_array(location, 0)
        shape = found.stored.array.shape
        kinds = [axis.type for axis in found.axes or ()] or [None] * len(shape)
        return tuple(
            [
                n
                for n, kind in zip(shape, kinds, strict=True)
                if kind != "channel" and not (kind == "time" and n == 1)
            ]
        )
    return ()


def _ome(group: zarr.Group) -> Mapping[str, Any]:
    attributes = dict(group.attrs)
    found = attributes.get("ome", attributes)
    return found if isinstance(found, Mapping) else {}
