"""A store → the layers that napari shows of it. Knows how napari describes a layer, not napari."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from patchworks.errors import InputError
from patchworks.geometry.image_pyramid import SCREEN
from patchworks.io.find_labels import FoundLabels, find_labels, is_label_image
from patchworks.io.image_source import ImageSource
from patchworks.io.location import Location, open_group
from patchworks.io.ngff import Channel, Level, Multiscale, read_channels, read_multiscale
from patchworks.io.source import NO_STORE, open_source
from patchworks.plugins.napari.lazy_level import lazy_level
from patchworks.readers.ome_zarr import ZarrReader

logger = logging.getLogger(__name__)

KEY = "patchworks"
"""Under which the metadata of a layer say where its voxels lie."""

SAMPLED_VOXELS = 2**18
"""Voxels of the coarsest level by which contrast is chosen where the store says nothing."""

COLORS = ("#00FFFF", "#FF00FF", "#FFFF00", "#FF0000", "#00FF00", "#0000FF")
"""Colours of several channels that have none."""

VOLUME = 2**25
"""Voxels that are easily shown in 3-D."""

MISFIT = 1.5
"""Voxels of a level by which its end may lie off that of the image: what halving leaves over."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What napari is told of a layer.

    Parameters
    ----------
    kind : {"image", "labels"}
        Which kind of layer.
    levels : list of dask.array.Array
        The pyramid, finest first; lazy.
    options : dict
        Keywords of napari's layer.
    """

    kind: Literal["image", "labels"]
    levels: list[Any]
    options: dict[str, Any]

    @property
    def as_tuple(self) -> tuple[Any, dict[str, Any], str]:
        """The layer as napari's readers return it."""
        several = len(self.levels) > 1
        data = self.levels if several else self.levels[0]
        return data, {**self.options, "multiscale": several}, self.kind


def layers_of(place: Location, labels: Sequence[FoundLabels] | None = None) -> list[Layer]:
    """Return the layers of an image and of its labels, or of a label image alone.

    Nothing is read but metadata, and a few chunks of the coarsest level where the store does not
    say how bright the image is.

    Parameters
    ----------
    place : Location
        An OME-Zarr image, a collection of them (`bioformats2raw.layout`), a plain zarr array, or a
        label image.
    labels : sequence of FoundLabels, optional
        The label images to show; by default those that `find_labels` finds.

    Raises
    ------
    SourceNotFoundError, InputError
        If there is no such store, or it cannot be understood.
    """
    _refuse_plate(place)
    if is_label_image(place):
        return [labels_layer(FoundLabels(place.name, place))]
    found: list[Layer] = []
    names = ZarrReader.names_at(place)
    for index, name in enumerate(names):
        image = ZarrReader(place, index).image
        first = open_source(image.url, channel=0, level=0)
        layers = [*_image_layers(image, first, (len(names) > 1 and name) or image.name)]
        shown = find_labels(image) if labels is None else labels
        layers += [labels_layer(one, like=first) for one in shown]
        if index:  # of a collection, one image is seen at a time
            for layer in layers:
                layer.options["visible"] = False
        found += layers
    return found


def labels_layer(labels: FoundLabels, like: ImageSource | None = None) -> Layer:
    """Return the layer of a label image.

    Parameters
    ----------
    labels : FoundLabels
        Which.
    like : ImageSource, optional
        The image, whose place and size in space count where the labels have none of their own.

    Raises
    ------
    InputError
        If its voxels are no integers.
    """
    source = open_source(labels.location.url, channel=None, level=0)
    if source.dtype.kind not in "iu":
        raise InputError(
            f"{labels.location}: labels of dtype {source.dtype}; expected integers, one per object"
        )
    if like is not None and like.shape == source.shape and not _is_calibrated(source):
        source = replace(source, calibration=like.calibration)
    options = {
        "name": labels.name,
        "opacity": 0.6,
        "metadata": {KEY: {"labels": labels.location.url}},
        **_placed(source),
    }
    return Layer(kind="labels", levels=_levels(source), options=options)


def _refuse_plate(place: Location) -> None:
    """Raise InputError if a plate is there: its wells are images of their own."""
    attributes: dict[str, Any] = {}
    with suppress(*NO_STORE):
        attributes = dict(open_group(place).attrs)
    ome = attributes.get("ome", attributes)
    if isinstance(ome, Mapping) and "plate" in ome:
        raise InputError(f"{place}: a plate; give one field of a well, such as {place}/A/1/0")


def _image_layers(place: Location, first: ImageSource, name: str) -> Iterator[Layer]:
    """Yield a layer per channel."""
    channels = _described(place, first)
    for index, channel in enumerate(channels):
        source = _of_channel(first, index)
        levels = [source, *source.coarser_levels()]
        options: dict[str, Any] = {
            "name": channel.name or (name if len(channels) == 1 else f"{name} {index}"),
            "contrast_limits": channel.window or measured_limits(levels[-1]),
            "blending": "additive" if len(channels) > 1 else "translucent_no_depth",
            "metadata": {KEY: {"image": place.url, "channel": index}},
            **_placed(source),
        }
        if color := _color(channel, index, len(channels)):
            options["colormap"] = ["#000000", color]
        yield Layer(kind="image", levels=_levels(source), options=options)


def _described(place: Location, source: ImageSource) -> tuple[Channel, ...]:
    """Return what is known of each channel."""
    axis = _channel_axis(source)
    n_channels = 1 if axis is None else source.stored.array.shape[axis]
    known = () if source.group is None else read_channels(dict(open_group(place).attrs))
    return known if len(known) == n_channels else (Channel(),) * n_channels


def _channel_axis(source: ImageSource) -> int | None:
    """Return which stored axis is the channel axis: it is picked, and is not a lone time point."""
    picked = [axis for axis, index in enumerate(source.pick) if index is not None]
    if not picked:
        return None
    if source.group is None:
        names = getattr(source.stored.array.metadata, "dimension_names", None) or ()
        kinds = [{"c": "channel"}.get(str(n)) for n in names]
    else:
        multiscale = _multiscale(source)
        kinds = [axis.type for axis in multiscale.axes] if multiscale else []
    return kinds.index("channel") if "channel" in kinds else None


def _of_channel(source: ImageSource, index: int) -> ImageSource:
    axis = _channel_axis(source)
    if axis is None:
        return source
    return replace(source, pick=(*source.pick[:axis], index, *source.pick[axis + 1 :]))


def _multiscale(source: ImageSource) -> Multiscale | None:
    if source.group is None:
        return None
    return read_multiscale(dict(open_group(source.group).attrs), str(source.group))


def _levels(source: ImageSource) -> list[Any]:
    """Return the pyramid as napari can show it.

    napari stretches every level over the same place. A level that by its metadata lies elsewhere,
    or spans something else, would be shown wrong: it is left out, as is what is coarser than a
    level that is small.
    """
    multiscale, levels = _multiscale(source), [source, *source.coarser_levels()]
    if multiscale is None or len(levels) == 1:
        return [lazy_level(source)]
    good: list[Any] = []
    for level, found in zip(multiscale.levels, levels, strict=True):
        if not _lies_on(multiscale.levels[0], source, level, found):
            logger.warning(
                "%s: level %s lies elsewhere than the image, or spans something else; it is not "
                "shown",
                source.name,
                level.path,
            )
            continue
        good.append(lazy_level(found))
        if _is_small(found.shape):
            break
    return good


def _lies_on(first: Level, source: ImageSource, level: Level, found: ImageSource) -> bool:
    """Whether a level begins and ends, within a voxel or so, where the first does.

    One that ends elsewhere, but has the shape of the whole at another scale, is taken as the whole:
    there are writers that call the levels of slides 1:2, whatever they are.
    """
    kept = [axis for axis, picked in enumerate(source.pick) if picked is None]
    ends = []
    for axis, n, m in zip(kept, source.shape, found.shape, strict=True):
        fine, coarse = first.scale[axis], level.scale[axis]
        start = first.translation[axis] - fine / 2, level.translation[axis] - coarse / 2
        if abs(start[1] - start[0]) > MISFIT * abs(coarse):
            return False
        end = start[0] + fine * n, start[1] + coarse * m
        ends.append(n == m or abs(end[1] - end[0]) <= MISFIT * abs(coarse))
    height, width = source.shape[-2:]
    is_alike = abs(found.shape[-2] * width / height - found.shape[-1]) <= MISFIT
    return all(ends) or (is_alike and all(ends[:-2]))


def _is_small(shape: tuple[int, ...]) -> bool:
    """Whether a level is shown as a whole with ease, so that no coarser one is needed.

    In 3-D napari shows the last level: one that is coarser than it must be would be seen.
    """
    return max(shape[-2:]) <= SCREEN and math.prod(shape[-3:]) <= VOLUME


def _is_calibrated(source: ImageSource) -> bool:
    placed = source.calibration
    return any(axis.unit for axis in placed.axes) or set(placed.scale) != {1.0}


def _placed(source: ImageSource) -> dict[str, Any]:
    """Return voxel size, position, units and names of the axes, as napari wants them."""
    placed = source.calibration
    scale = [s if math.isfinite(s) and s > 0 else 1.0 for s in placed.scale]
    translate = [t if math.isfinite(t) else 0.0 for t in placed.translation]
    names = [axis.name for axis in placed.axes]
    return {
        "scale": scale,
        "translate": translate,
        "units": [_unit(axis.unit) for axis in placed.axes],
        "axis_labels": names,
    }


def _unit(unit: str | None) -> str:
    """Return a unit that napari knows; it raises for others."""
    import pint

    try:
        return str(pint.Unit(unit or "pixel"))
    except (pint.UndefinedUnitError, ValueError, TypeError, AttributeError):
        return "pixel"


def _color(channel: Channel, index: int, n_channels: int) -> str | None:
    """Return the colour of a channel, ``"#RRGGBB"``; None for grey."""
    known = channel.color or ""
    if len(known) == 6 and all(digit in "0123456789ABCDEF" for digit in known):
        return None if known == "FFFFFF" else f"#{known}"
    return COLORS[index % len(COLORS)] if n_channels > 1 else None


def measured_limits(source: ImageSource) -> tuple[float, float]:
    """Return contrast limits by a few voxels of an image: percentiles of what is not empty."""
    if source.dtype.kind == "b":
        return 0.0, 1.0
    sample = source.sample(SAMPLED_VOXELS)
    sample = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample
    if sample.size == 0 or sample.min() == sample.max():
        high = float(np.iinfo(source.dtype).max) if source.dtype.kind in "iu" else 1.0
        return 0.0, high
    low, high = (float(v) for v in np.percentile(sample, [0.5, 99.8]))
    if low == high:
        low, high = float(sample.min()), float(sample.max())
    return low, high
