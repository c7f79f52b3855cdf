"""Imaris 5.5 files (.ims), which are HDF5, through h5py."""

from __future__ import annotations

import functools
import itertools
import threading
import zlib
from contextlib import suppress
from datetime import datetime
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from patchworks.errors import MissingExtraError
from patchworks.geometry.box import Box
from patchworks.readers.ome_xml import length, unit_symbol
from patchworks.readers.scene import ORDER, Channel, Scene, SceneReader

LEVEL = "ResolutionLevel"
FIRST = "TimePoint 0/Channel 0"
SAID_NOTHING = {""}
EVEN = 0.01
"""Time points are even if each step is as long as the mean one, to this part of it."""


class ImarisReader(SceneReader):
    """The image of an Imaris file.

    Volumes are padded to whole chunks in the file; the padding is cut off. The extents of the
    volume give the spacing; the first of them, ``ExtMin``, is the origin.

    Compressed chunks are read as they are and decompressed in the calling thread: HDF5 itself does
    that in one thread at a time. Only what is compressed with other filters than gzip, and data
    that are not in chunks, are read through HDF5.
    """

    format = "Imaris"

    def __init__(self, path: Path, index: int = 0) -> None:
        super().__init__(path, index)
        self._lock = threading.Lock()
        self._file: h5py.File | None = None
        self._volumes: dict[str, Volume] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def close(self) -> None:
        """Close the file; it is opened again when read again."""
        with self._lock:
            self._volumes.clear()
            if self._file is not None:
                self._file.close()
            self._file = None

    @classmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]:
        with _open(path) as file:
            _count(file["DataSet"], LEVEL)
        return ("",)

    def _describe(self) -> Scene:
        with _open(self.path) as file:
            levels = [file[f"DataSet/{LEVEL} {i}"] for i in range(_count(file["DataSet"], LEVEL))]
            first = levels[0]["TimePoint 0/Channel 0"]
            n_times = _count(levels[0], "TimePoint")
            n_channels = _count(levels[0]["TimePoint 0"], "Channel")
            shapes = [(n_times, n_channels, *_size(level[FIRST])) for level in levels]
            extents = dict(zip(ORDER, shapes[0], strict=True))
            axes = "".join([a for a, n in extents.items() if n > 1 or a in "yx"])
            kept = [ORDER.index(axis) for axis in axes]
            described = file.get("DataSetInfo", {})
            spacing, origin = _calibration(described, extents)
            block = (1, 1, *(first["Data"].chunks or (1, 1, 1)))
            channels = tuple([_channel(described, c) for c in range(n_channels)])
            return Scene(
                name="",
                axes=axes,
                shapes=tuple([tuple([shape[i] for i in kept]) for shape in shapes]),
                dtype=first["Data"].dtype.newbyteorder("="),
                block=tuple([min(block[i], shapes[0][i]) for i in kept]),
                spacing={a: s for a, s in spacing.items() if a in axes},
                origin={a: s for a, s in origin.items() if a in axes},
                channels=channels if any(c != Channel() for c in channels) else (),
                files=(self.path,),
            )

    def _read(self, box: Box, level: int) -> np.ndarray:
        spans = dict(zip(self.scene.axes, box.slices, strict=True))
        times, channels, *part = [spans.get(axis, slice(0, 1)) for axis in ORDER]
        shape = [s.stop - s.start for s in (times, channels, *part)]
        voxels = np.zeros(shape, self.scene.dtype)
        for t, c in np.ndindex(shape[0], shape[1]):
            place = f"TimePoint {t + times.start}/Channel {c + channels.start}"
            self._volume(f"DataSet/{LEVEL} {level}/{place}").read(tuple(part), voxels[t, c])
        return voxels.reshape(box.shape)

    def _volume(self, place: str) -> Volume:
        with self._lock:
            if self._file is None:
                self._file = _open(self.path)
            if place not in self._volumes:
                self._volumes[place] = Volume(self._file[place])
            volume = self._volumes[place]
        if volume.data.dtype.newbyteorder("=") != self.scene.dtype:
            raise ValueError(f"{place} has {volume.data.dtype}, the first {self.scene.dtype}")
        return volume


class Volume:
    """The voxels of one channel at one time.

    Parameters
    ----------
    group : h5py.Group
        The channel's group.
    """

    def __init__(self, group: h5py.Group) -> None:
        self.data = group["Data"]
        self.size = _size(group)
        plist = self.data.id.get_create_plist()
        self.filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        self.plain = set(self.filters) <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}
        for number in self.filters:
            _check_filter(number, str(self.data.file.filename))

    @functools.cached_property
    def stored(self) -> frozenset[tuple[int, ...]]:
        """First voxels of the chunks that were ever written; the others hold the fill value."""
        places: list[tuple[int, ...]] = []
        # what the function returns would end the iteration if it were not None
        self.data.id.chunk_iter(lambda chunk: places.append(chunk.chunk_offset))
        return frozenset(places)

    def read(self, part: tuple[slice, ...], into: np.ndarray) -> None:
        """Read a part (z, y, x) of the volume."""
        if any(s.stop > n for s, n in zip(part, self.size, strict=True)):
            raise ValueError(f"the volume at this time and channel has only shape {self.size}")
        if not self.plain or self.data.chunks is None:
            into[...] = self.data[part]
            return
        for place in itertools.product(
            *[range(s.start - s.start % n, s.stop, n) for s, n in self._along(part)]
        ):
            target, source = [], []
            for first, (wanted, extent) in zip(place, self._along(part), strict=True):
                low, high = max(first, wanted.start), min(first + extent, wanted.stop)
                target.append(slice(low - wanted.start, high - wanted.start))
                source.append(slice(low - first, high - first))
            into[tuple(target)] = self._chunk(place)[tuple(source)]

    def _along(self, part: tuple[slice, ...]) -> list[tuple[slice, int]]:
        return list(zip(part, self.data.chunks, strict=True))

    def _chunk(self, place: tuple[int, ...]) -> np.ndarray:
        dtype = self.data.dtype
        try:
            skipped, content = self.data.id.read_direct_chunk(place)
        except (OSError, RuntimeError):
            if place in self.stored:
                raise
            return np.full(self.data.chunks, self.data.fillvalue, dtype)
        for i, number in reversed(list(enumerate(self.filters))):
            if skipped >> i & 1:
                continue
            if number == h5py.h5z.FILTER_DEFLATE:
                content = zlib.decompress(content)
            else:
                content = _unshuffled(content, dtype.itemsize)
        return np.frombuffer(content, dtype).reshape(self.data.chunks)


def _open(path: Path) -> h5py.File:
    return h5py.File(path, "r", locking="best-effort")


def _count(group: h5py.Group, kind: str) -> int:
    """Return how many groups called ``kind 0``, ``kind 1``, … there are without a gap."""
    n = next(i for i in itertools.count() if f"{kind} {i}" not in group)
    if n == 0:
        raise ValueError(f"no {kind} 0 in {group.name}")
    return n


def _size(channel: h5py.Group) -> tuple[int, int, int]:
    """Return (z, y, x) without the padding."""
    stored = channel["Data"].shape
    size = [
        int(_text(channel, f"ImageSize{axis}") or n) for axis, n in zip("ZYX", stored, strict=True)
    ]
    if any(not 0 < n <= padded for n, padded in zip(size, stored, strict=True)):
        raise ValueError(f"a volume of size {size} in an array of shape {stored}")
    return size[0], size[1], size[2]


def _text(group: h5py.Group, name: str) -> str:
    """Return an attribute, which is an array of single bytes; empty if there is none."""
    value = group.attrs.get(name, "")
    if isinstance(value, np.ndarray):
        value = value.tobytes() if value.dtype.kind == "S" else "".join(map(str, value.ravel()))
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.strip("\0 \n")


def _calibration(
    described: Any, extents: dict[str, int]
) -> tuple[dict[str, tuple[float, str | None]], dict[str, float]]:
    """Return spacing and origin: the extents are those of the volume's outer borders.

    Without a unit they are micrometres, which is what Imaris means; but voxels of exactly 1 without
    a unit are what it writes if it knows nothing. The origin is ``ExtMin`` as the file has it.
    """
    spacing: dict[str, tuple[float, str | None]] = {}
    origin: dict[str, float] = {}
    if "Image" not in described:
        return spacing, origin
    image = described["Image"]
    unit = _text(image, "Unit")
    steps: list[Fraction] = []
    for i, axis in enumerate("xyz"):
        with suppress(ValueError):
            low, high = [Fraction(_text(image, f"Ext{end}{i}")) for end in ("Min", "Max")]
            steps.append((high - low) / extents[axis])
            found = length(str(steps[-1]), unit_symbol(unit or "um"))
            if found is not None:
                spacing[axis] = found
                origin[axis] = float(low)
    if not unit and all(step == 1 for step in steps):
        spacing, origin = {}, {}
    step = _time_step(described, extents["t"])
    if step is not None:
        spacing["t"] = (step, "second")
    return spacing, origin


def _time_step(described: Any, n: int) -> float | None:
    """Return the seconds between time points if the file has all of them, and they are even."""
    if n < 2 or "TimeInfo" not in described:
        return None
    try:
        times = [
            datetime.fromisoformat(_text(described["TimeInfo"], f"TimePoint{i + 1}"))
            for i in range(n)
        ]
    except ValueError:
        return None
    steps = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
    mean = (times[-1] - times[0]).total_seconds() / (n - 1)
    even = all(abs(step - mean) <= EVEN * mean for step in steps)
    return mean if mean > 0 and even else None


def _channel(described: Any, index: int) -> Channel:
    """Return name, colour and display range of a channel."""
    if f"Channel {index}" not in described:
        return Channel()
    group = described[f"Channel {index}"]
    name = _text(group, "Name")
    shares = _numbers(_text(group, "Color"))
    color = None
    if len(shares) == 3:
        color = "".join([f"{round(255 * min(max(share, 0.0), 1.0)):02X}" for share in shares])
    ends = _numbers(_text(group, "ColorRange"))
    window = (ends[0], ends[1]) if len(ends) == 2 and ends[0] < ends[1] else None
    return Channel(None if name in SAID_NOTHING else name, color, window)


def _numbers(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.split()]
    except ValueError:
        return []
    return found if np.isfinite(found).all() else []


def _unshuffled(content: bytes, itemsize: int) -> bytes:
    """Return bytes that HDF5 had sorted by their place in the number, in their own order."""
    return np.frombuffer(content, np.uint8).reshape(itemsize, -1).T.tobytes()


def _check_filter(number: int, name: str) -> None:
    """Raise MissingExtraError if HDF5 cannot decompress what this filter has made."""
    if not h5py.h5z.filter_avail(number):
        with suppress(ImportError):
            import_module("hdf5plugin")  # it registers its filters
    if not h5py.h5z.filter_avail(number):
        raise MissingExtraError(
            f"{name}: compressed with HDF5 filter {number}, which h5py does not have; install it "
            f"with pip install hdf5plugin"
        )
