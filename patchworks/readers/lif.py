"""Leica LIF: liffile finds the images and their memory blocks, the voxels are mapped."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from liffile import LifFile

from patchworks.geometry.box import Box
from patchworks.readers.scene import ORDER, Channel, Scene, SceneReader

AXES = {1: "x", 2: "y", 3: "z", 4: "t"}
"""Axes by Leica's number for them; every other one is cut into scenes."""
OTHER_AXES = {5: "λ", 6: "rotation", 9: "excitation λ", 10: "position", 11: "loop"}
UNITS = {"m": (Decimal(10**6), "micrometer"), "s": (Decimal(1), "second")}
COLORS = {
    "red": "FF0000",
    "green": "00FF00",
    "blue": "0000FF",
    "cyan": "00FFFF",
    "magenta": "FF00FF",
    "yellow": "FFFF00",
    "gray": "FFFFFF",
    "grey": "FFFFFF",
}
"""Colours of the look-up tables that LAS names after them."""
DESCRIPTION = "./Data/Image/ImageDescription"


@dataclass(frozen=True, slots=True)
class Dimension:
    """One axis of a memory block: its extent, its stride in bytes, and what calibrates it."""

    number: int
    extent: int
    stride: int
    calibration: tuple[str, str, str]
    """Position of the first element, distance from the first to the last, and unit."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How the voxels of one image lie in the file.

    Parameters
    ----------
    offset, n_bytes : int
        Where its memory block begins in the file, and how long it is.
    dtype : numpy.dtype
        As stored.
    dimensions : dict of str to Dimension
        Those of t, z, y and x that the image has.
    channels : tuple of int
        Where each channel begins in the block, in bytes.
    """

    offset: int
    n_bytes: int
    dtype: np.dtype
    dimensions: dict[str, Dimension]
    channels: tuple[int, ...]

    @property
    def extents(self) -> dict[str, int]:
        """Extent per axis; 1 for those that the image does not have."""
        found = {axis: d.extent for axis, d in self.dimensions.items()}
        return {axis: found.get(axis, 1) for axis in ORDER} | {"c": len(self.channels)}


class LifReader(SceneReader):
    """One image of a LIF file, in the axes in which it was scanned.

    A scan without a y axis (xz, xzt) is an image one voxel wide along y, without spacing there; its
    z axis is its z axis. The positions of a tile scan are scenes of their own, since where LAS
    would stitch them is not in the file; so are the steps on every other axis (wavelength,
    rotation, …). Photon streams (FLIM) are not images and are left out.

    Voxels are stored as they are, so any part is read without the rest, and the file is mapped
    only while it is read: no handle stays open, and threads share nothing.
    """

    format = "LIF"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def close(self) -> None:
        """Do nothing: no file stays open."""

    @classmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]:
        with LifFile(path) as lif:
            return tuple([name for name, _, _ in _scenes(lif)])

    @functools.cached_property
    def _image(self) -> tuple[str, ElementTree.Element, Stored]:
        with LifFile(self.path) as lif:
            name, element, place = _scenes(lif)[self.index]
            memory = element.find("./Memory")
            block_id = memory.get("MemoryBlockID", "") if memory is not None else ""
            block = lif.memory_blocks.get(block_id)
            if block is None or block.offset < 0:
                raise ValueError(f"the voxels of {name!r} are not in this file")
            return name, element, _stored(element, block, place)

    def _describe(self) -> Scene:
        name, element, stored = self._image
        extents = stored.extents
        axes = "".join(axis for axis, n in extents.items() if n > 1 or axis in "yx")
        calibration = {
            axis: found
            for axis, dimension in stored.dimensions.items()
            if axis in axes and (found := _calibration(dimension)) is not None
        }
        channels = tuple([_channel(element, i) for i in _order(element)])
        return Scene(
            name=name,
            axes=axes,
            shapes=(tuple([extents[axis] for axis in axes]),),
            dtype=stored.dtype.newbyteorder("="),
            block=(1,) * len(axes),
            spacing={axis: (step, unit) for axis, (step, unit, _) in calibration.items()},
            origin={
                axis: first
                for axis, (_, _, first) in calibration.items()
                if first is not None and axis != "t"
            },
            channels=channels if any(c != Channel() for c in channels) else (),
            files=(self.path,),
        )

    def _read(self, box: Box, level: int) -> np.ndarray:
        if level:
            raise ValueError(f"level {level}; expected 0, the only one")
        scene, (_, _, stored) = self.scene, self._image
        parts = dict(zip(scene.axes, box.slices, strict=True))
        part = tuple([parts.get(axis, slice(0, 1)) for axis in "tzyx"])
        channels = stored.channels[parts.get("c", slice(None))]
        voxels = np.empty((len(channels), *[s.stop - s.start for s in part]), scene.dtype)
        mapped = np.memmap(self.path, np.uint8, "r", stored.offset, (stored.n_bytes,))
        extents = [stored.extents[axis] for axis in "tzyx"]
        strides = [stored.dimensions[a].stride if a in stored.dimensions else 0 for a in "tzyx"]
        for into, start in zip(voxels, channels, strict=True):
            # ndarray, unlike as_strided, refuses a shape that does not fit the memory block
            into[...] = np.ndarray(extents, stored.dtype, mapped.data, start, strides)[part]
        return np.moveaxis(voxels, 0, 1).reshape(box.shape)


def _scenes(lif: LifFile) -> list[tuple[str, ElementTree.Element, dict[int, int]]]:
    """Return name, description, and place on the axes that are none of ours, for every scene."""
    images = list(_images(lif.xml_element))
    times = Counter(path[-1] for path, _ in images)
    scenes = []
    for path, element in images:
        # the first of the names is that of the whole project
        name = path[-1] if times[path[-1]] == 1 else "/".join(path[1:])
        others = [d for d in _dimensions(element) if d.number not in AXES]
        for place in itertools.product(*[range(d.extent) for d in others]):
            words = [
                f"{OTHER_AXES.get(d.number, f'axis {d.number}')} {i}"
                for d, i in zip(others, place, strict=True)
                if d.extent > 1
            ]
            at = {d.number: i for d, i in zip(others, place, strict=True)}
            scenes.append((" ".join([name, *words]), element, at))
    if not scenes:
        raise ValueError("no image in it, or only references to images in other files")
    return scenes


def _images(
    element: ElementTree.Element, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], ElementTree.Element]]:
    """Return path and description of every image below an element.

    liffile's own list keeps only the last one of those that share a path.
    """
    for child in [*element.findall("./Element"), *element.findall("./Children/Element")]:
        here = (*path, child.get("Name", ""))
        if child.find("./Data/Image") is not None:
            yield here, child
        yield from _images(child, here)


def _stored(element: ElementTree.Element, block: Any, place: dict[int, int]) -> Stored:
    """Return where the voxels of an image at a place on the other axes lie."""
    described = _channels(element)
    if not described:
        raise ValueError("no channels described; only images are read, not photon streams")
    dtypes = {_dtype(channel) for channel in described}
    if len(dtypes) > 1:
        raise ValueError(f"channels of types {sorted(map(str, dtypes))}; expected one type")
    dimensions = _dimensions(element)
    shift = sum(d.stride * place[d.number] for d in dimensions if d.number in place)
    return Stored(
        offset=block.offset,
        n_bytes=block.size,
        dtype=dtypes.pop(),
        dimensions={AXES[d.number]: d for d in dimensions if d.number in AXES},
        channels=tuple([shift + int(described[i].get("BytesInc", 0)) for i in _order(element)]),
    )


def _dimensions(element: ElementTree.Element) -> list[Dimension]:
    return [
        Dimension(
            int(d.attrib["DimID"]),
            int(d.attrib["NumberOfElements"]),
            int(d.attrib["BytesInc"]),
            (d.get("Origin", ""), d.get("Length", ""), d.get("Unit", "")),
        )
        for d in element.findall(f"{DESCRIPTION}/Dimensions/DimensionDescription")
    ]


def _channels(element: ElementTree.Element) -> list[ElementTree.Element]:
    return element.findall(f"{DESCRIPTION}/Channels/ChannelDescription")


def _order(element: ElementTree.Element) -> list[int]:
    """Return the order of the channels: as described, but red, green, blue in colour images."""
    tags = [int(channel.get("ChannelTag", 0)) for channel in _channels(element)]
    return (
        [tags.index(tag) for tag in (1, 2, 3)] if sorted(tags) == [1, 2, 3] else [*range(len(tags))]
    )


def _dtype(channel: ElementTree.Element) -> np.dtype:
    bits = int(channel.attrib["Resolution"])
    n_bytes = max(1, 2 ** math.ceil(math.log2(bits / 8)))
    return np.dtype(f"<{'f' if channel.get('DataType') == '1' else 'u'}{n_bytes}")


def _window(element: ElementTree.Element, i: int) -> tuple[float, float] | None:
    """Return what LAS shows as black and as full colour, stored as fractions of the range."""
    channels = _channels(element)
    shown = element.findall("./Data/Image/Attachment[@Name='ViewerScaling']/ChannelScalingInfo")
    if len(shown) != len(channels) or channels[i].get("DataType") == "1":
        return None
    top = 2.0 ** int(channels[i].attrib["Resolution"]) - 1
    low, high = [float(shown[i].get(key, "nan")) for key in ("BlackValue", "WhiteValue")]
    return (low * top, high * top) if 0 <= low < high <= 1 else None


def _channel(element: ElementTree.Element, i: int) -> Channel:
    """Return the dye, the colour and the window of a channel, where the file has them."""
    channel = _channels(element)[i]
    dyes = [
        entry.findtext("Value")
        for entry in channel.findall("ChannelProperty")
        if entry.findtext("Key") == "DyeName"
    ]
    tag = int(channel.get("ChannelTag", 0))
    lut = ("", "red", "green", "blue")[tag] if tag in {1, 2, 3} else channel.get("LUTName", "")
    return Channel(next((d for d in dyes if d), None), COLORS.get(lut.lower()), _window(element, i))


def _calibration(dimension: Dimension) -> tuple[float, str, float | None] | None:
    """Return step, unit and first position of an axis, or None if the file does not say it.

    Decimal numbers keep what the file has: 1.06E-05 m over 53 steps is 0.2 µm. An axis scanned
    backwards has a positive step, and no first position that would say where its other end lies.
    """
    first, length, unit = dimension.calibration
    if unit not in UNITS or dimension.extent < 2:
        return None
    factor, name = UNITS[unit]
    try:
        step = Decimal(length) * factor / (dimension.extent - 1)
        start = Decimal(first) * factor
    except InvalidOperation:
        return None
    if not step.is_finite() or step == 0:
        return None
    return abs(float(step)), name, float(start) if step > 0 and start.is_finite() else None
