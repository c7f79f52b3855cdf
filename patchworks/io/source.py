"""What a user gives as an image → one spatial array of it, or several channels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal

import numpy as np
import zarr
from zarr.errors import (
    ArrayNotFoundError,
    GroupNotFoundError,
    MetadataValidationError,
    NodeTypeValidationError,
)

from patchworks.errors import InputError, SourceNotFoundError
from patchworks.io.channels import ChannelChoice, several_channels, stack_channels
from patchworks.io.image_source import HeldArray, ImageSource, StoredArray
from patchworks.io.location import Location, ZarrArray, open_array, readable
from patchworks.io.named_array import axis_names, bare_array
from patchworks.io.ngff import (
    Axis,
    Calibration,
    Level,
    Multiscale,
    Version,
    default_axis_names,
    read_multiscale,
)

NOT_ZARR = (
    ArrayNotFoundError,
    GroupNotFoundError,
    NodeTypeValidationError,
    MetadataValidationError,
    FileNotFoundError,
    NotADirectoryError,
    ValueError,
    KeyError,
    TypeError,
)
"""What zarr raises on something that is not a zarr store, or a broken one."""

NO_STORE = (*NOT_ZARR, PermissionError)
"""What is raised by a place that holds no zarr store, none that is whole, or a closed one."""


def source_of_array(array: np.ndarray, channel: ChannelChoice) -> ImageSource:
    """Return the source for a NumPy array, every axis of which is spatial."""
    names = default_axis_names(array.ndim)
    check_channel(channel, None, "the array")
    return ImageSource(
        stored=HeldArray(array),
        pick=(None,) * array.ndim,
        shape=array.shape,
        dtype=array.dtype,
        chunks=None,
        calibration=Calibration.unknown(names),
        name="array",
    )


def picked_by_name(
    image: Any, channel: ChannelChoice
) -> tuple[Any, ChannelChoice, tuple[str, ...] | None]:
    """Return an array, the channel that is left to choose, and the names of the array's axes.

    Where the axes have names, the channel is taken, and the only one of a time axis.
    """
    names, array = axis_names(image), bare_array(image)
    if names is None or set(names).isdisjoint("ct"):
        return array, channel, names
    index: list[slice | int] = [slice(None)] * len(names)
    if "c" in names:
        at = names.index("c")
        index[at] = check_channel(channel, array.shape[at], f"the array with axes {names}")
        channel = 0
    if "t" in names and array.shape[names.index("t")] == 1:
        index[names.index("t")] = 0
    kept = [name for name, taken in zip(names, index, strict=True) if isinstance(taken, slice)]
    return array[tuple(index)], channel, tuple(kept)


def with_names(source: ImageSource, names: tuple[str, ...]) -> ImageSource:
    """Return the source of an array whose axes have these names."""
    at = names.index("t") if "t" in names else None
    return replace(source, calibration=Calibration.unknown(names), time_axis=at)


def source_of_zarr_array(array: ZarrArray, channel: ChannelChoice) -> ImageSource:
    """Return the source for a zarr array; its dimension names, if any, tell the channel axis."""
    name = f"zarr array {array.path or array.store}"
    return _select(array, HeldArray(array), axes_of_array(array), None, channel, name)


def open_source(
    image: str | os.PathLike[str], *, channel: ChannelChoice, level: int
) -> ImageSource:
    """Open a level of an OME-Zarr image, or a plain zarr array, at a path or URL.

    Raises
    ------
    SourceNotFoundError
        If nothing is there, or it is not a zarr store.
    InputError
        If `channel` or `level` is out of range, or the group does not say which array to take.
    """
    found = find_array(Location.parse(image), level)
    axes = found.axes or axes_of_array(found.stored.array)
    placed = None if found.level is None else (found.level.scale, found.level.translation)
    name = str(found.stored.location)
    source = _select(found.stored.array, found.stored, axes, placed, channel, name)
    return replace(source, group=found.group, version=found.version, n_levels=found.n_levels)


@dataclass(frozen=True, slots=True)
class FoundArray:
    """An array that a path names, and what its group's metadata say of it, if there are any."""

    stored: StoredArray
    version: Version
    group: Location | None = None
    axes: tuple[Axis, ...] | None = None
    level: Level | None = None
    n_levels: int = 1


def find_array(location: Location, level: int) -> FoundArray:
    """Return the array that `location` names: a level of an OME-Zarr image, or a plain one."""
    node = open_node(location)
    version: Version = "0.4" if node.metadata.zarr_format == 2 else "0.5"
    if isinstance(node, zarr.Array):
        _check_level(level, 1, location)
        return FoundArray(StoredArray(location), version)
    multiscale = read_multiscale(dict(node.attrs), str(location))
    with readable(location):
        component = _level_path(node, multiscale, level, location)
        stored = StoredArray(location, component)
        try:
            rank = stored.array.ndim
        except NOT_ZARR as error:
            raise SourceNotFoundError(
                f"{location}: the group names an array {component!r} that cannot be opened "
                f"({error}); restore it, or repair the group's metadata"
            ) from error
    if multiscale is None:
        return FoundArray(stored, version, location)
    if len(multiscale.axes) != rank:
        raise InputError(
            f"{location}: {component!r} has {rank} axes, the metadata names "
            f"{len(multiscale.axes)}; repair the store's multiscales metadata"
        )
    chosen, n_levels = multiscale.levels[level], len(multiscale.levels)
    return FoundArray(stored, version, location, multiscale.axes, chosen, n_levels)


def open_component(
    store: str | os.PathLike[str], component: str, asked_by: str = "component"
) -> ImageSource:
    """Return the source for one array of a store, such as labels; every axis is kept.

    Parameters
    ----------
    store : path or URL
        The store: an array, or a group that holds it.
    component : str
        The path of the array in a group.
    asked_by : str
        The argument that names it, for the message.

    Raises
    ------
    SourceNotFoundError
        If there is no such store or array.
    """
    location = Location.parse(store)
    node = open_node(location)
    if isinstance(node, zarr.Array):
        stored, array = StoredArray(location), node
    else:
        stored = StoredArray(location, component)
        array = array_in(node, location, component, asked_by)
    axes = tuple([Axis(axis.name, "space") for axis in axes_of_array(array)])
    source = _select(array, stored, axes, None, None, f"{location}/{component}")
    return replace(source, version="0.4" if array.metadata.zarr_format == 2 else "0.5")


def array_in(group: zarr.Group, location: Location, component: str, asked_by: str) -> ZarrArray:
    """Return an array of a group, or raise SourceNotFoundError saying what the group holds.

    `asked_by` is the argument that names another.
    """
    with readable(location):
        try:
            return open_array(location, component)
        except NOT_ZARR as error:
            names = sorted(group.array_keys())[:8]
            said = f"say which with {asked_by}={names[0]!r}" if names else f"name it by {asked_by}="
            raise SourceNotFoundError(
                f"{location}: there is no array {component!r} in it; it holds {names}; {said}"
            ) from error


def open_node(location: Location) -> ZarrArray | zarr.Group:
    """Return the zarr array or group at a location, or raise SourceNotFoundError."""
    if not location.exists():
        raise SourceNotFoundError(f"{location}: there is nothing at this path")
    with readable(location):
        try:
            return zarr.open(location.store(read_only=True), mode="r")
        except NOT_ZARR as error:
            raise SourceNotFoundError(
                f"{location}: not a zarr store ({type(error).__name__}); give the folder of an "
                f"OME-Zarr or plain zarr image, or convert the file first with "
                f"patchworks.plugins.ome_zarr.to_ome_zarr"
            ) from error


def _level_path(
    group: zarr.Group, multiscale: Multiscale | None, level: int, location: Location
) -> str:
    """Return the path of the array to read below a group."""
    if multiscale is not None:
        _check_level(level, len(multiscale.levels), location)
        return multiscale.levels[level].path
    _check_level(level, 1, location)
    return component_of(group, location)


def component_of(group: zarr.Group, location: Location) -> str:
    """Return the one array that a group without metadata can mean, or raise InputError."""
    names = sorted(group.array_keys())
    if len(names) == 1 or "0" in names:
        return "0" if "0" in names else names[0]
    raise InputError(
        f"{location}: a group without OME-NGFF metadata and with {len(names)} arrays {names[:8]}; "
        f"give the path of one array, such as {location}/{names[0] if names else 'NAME'}"
    )


def _check_level(level: object, n_levels: int, location: Location) -> None:
    if isinstance(level, bool) or not isinstance(level, Integral) or not 0 <= int(level) < n_levels:
        raise InputError(
            f"level={level!r}: {location} has {n_levels} level(s), 0 to {n_levels - 1}"
        )


def check_channel(channel: object, n_channels: int | None, where: str) -> int:
    """Return the channel index to take, or raise InputError saying what there is."""
    if n_channels is None:
        if isinstance(channel, (list, tuple, np.ndarray)):
            raise InputError(
                f"channel={channel!r}: {where} does not say which of its axes are channels; give "
                f"an OME-Zarr image, or a zarr array with dimension names such as ('c', 'y', 'x')"
            )
        if channel not in (None, 0):
            raise InputError(f"channel={channel!r}: {where} has no channel axis; leave it out")
        return 0
    if channel is None and n_channels == 1:
        return 0
    if isinstance(channel, bool) or not isinstance(channel, (int, np.integer)):
        raise InputError(f"channel={channel!r}: expected an index from 0 to {n_channels - 1}")
    if not 0 <= channel < n_channels:
        raise InputError(
            f"channel={channel}: {where} has {n_channels} channel(s), 0 to {n_channels - 1}"
        )
    return int(channel)


def axes_of_array(array: ZarrArray) -> tuple[Axis, ...]:
    """Return the axes of an array without metadata: by its dimension names, if it has any."""
    names = getattr(array.metadata, "dimension_names", None) or ()
    if len(names) != array.ndim or any(not n for n in names) or len(set(names)) != array.ndim:
        names = default_axis_names(array.ndim)
        if array.ndim > 3:  # nothing says what they are: all of them are space
            return tuple([Axis(n, "space") for n in names])
    return Calibration.unknown(tuple([str(n) for n in names])).axes


def _select(
    array: ZarrArray,
    stored: StoredArray | HeldArray,
    axes: tuple[Axis, ...],
    placed: tuple[tuple[float, ...], tuple[float, ...]] | None,
    channel: ChannelChoice,
    name: str,
) -> ImageSource:
    """Return the spatial part of a stored array, of one channel or several, and its time axis."""
    kinds, several = [axis.type for axis in axes], several_channels(channel)
    if "channel" not in kinds:
        check_channel(channel, None, name)
    extents = zip(axes, array.shape, strict=True)
    wanted = several or (channel,)
    pick = tuple([_pick(axis, n, wanted, name) for axis, n in extents])
    kept = [i for i, p in enumerate(pick) if p is None]
    scale, translation = placed or ((1.0,) * array.ndim, (0.0,) * array.ndim)
    calibration = Calibration(
        tuple([axes[i] for i in kept]),
        tuple([scale[i] for i in kept]),
        tuple([translation[i] for i in kept]),
    )
    source = ImageSource(
        stored=stored,
        pick=pick,
        shape=tuple([array.shape[i] for i in kept]),
        dtype=array.dtype,
        chunks=tuple([array.chunks[i] for i in kept]),
        calibration=calibration,
        name=name,
        time_axis=next((place for place, i in enumerate(kept) if kinds[i] == "time"), None),
        has_one_time_point=any(k == "time" and i not in kept for i, k in enumerate(kinds)),
    )
    if several is None:
        return source
    return stack_channels(source, kinds.index("channel"), several)


def _pick(axis: Axis, extent: int, channels: Sequence[object], name: str) -> int | None:
    """Return the index taken on one axis (of several channels the first), or None to keep it."""
    if axis.type == "channel":
        first, *_ = [check_channel(index, extent, name) for index in channels]
        return first
    return 0 if axis.type == "time" and extent == 1 else None


Kind = Literal["numpy", "zarr", "dask", "path"]


def kind_of(image: object) -> Kind:
    """Return which kind of input `image` is, or raise InputError."""
    given, image = image, bare_array(image)
    if isinstance(image, np.ndarray):
        return "numpy"
    if isinstance(image, zarr.Array):
        return "zarr"
    if isinstance(image, (str, os.PathLike)):
        return "path"
    if hasattr(image, "__dask_graph__") and isinstance(getattr(image, "chunks", None), tuple):
        return "dask"
    raise InputError(
        f"image of type {type(given).__name__}: expected a path or URL, a zarr array, a Dask "
        f"array, a NumPy array, or an xarray.DataArray of one of the last two"
    )
