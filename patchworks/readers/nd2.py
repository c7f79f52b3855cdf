"""Nikon ND2, through the nd2 package."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nd2
import numpy as np

from patchworks.geometry.box import Box
from patchworks.readers.scene import Channel, Scene, SceneReader

RGB = ("FF0000", "00FF00", "0000FF")
EVENNESS = 0.01
"""Recorded times count as evenly spaced if no interval is further from their mean than this."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Which frames of a file make up one scene.

    Parameters
    ----------
    sequence : dict of (int, int) to int
        Number of the frame at (t, z).
    n_t, n_z : int
        Extents.
    n_channels, n_samples : int
        Channels in a frame, and numbers per channel and pixel: 3 for colour, else 1.
    height, width : int
        Of a frame, in pixels.
    """

    sequence: dict[tuple[int, int], int]
    n_t: int
    n_z: int
    n_channels: int
    n_samples: int
    height: int
    width: int

    @property
    def extents(self) -> dict[str, int]:
        """Extent per axis."""
        n_c = self.n_channels * self.n_samples
        return {"t": self.n_t, "c": n_c, "z": self.n_z, "y": self.height, "x": self.width}


class Nd2Reader(SceneReader):
    """One position of an ND2 file.

    Channels are interleaved in a frame. Frames that are not compressed are mapped, so that any part
    of a plane comes without the rest; of the others, whole frames are decoded. Colour samples,
    which NIS-Elements stores as blue, green, red, become channels in the order red, green, blue.
    Frames that an aborted acquisition has never written are 0.

    The time increment is the period that the experiment asked for; where that was 0 ("no delay"),
    the mean of the recorded intervals, if they are even to one per cent; else it is left out.

    Each thread borrows a file object of its own, whose file is open only while it reads: mapped
    pages are not counted against the memory of the process for longer than that.
    """

    format = "ND2"

    def __init__(self, path: Path, index: int = 0) -> None:
        super().__init__(path, index)
        self._idle: list[nd2.ND2File] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def close(self) -> None:
        """Forget the parsed file; it is opened again when read again."""
        self._idle.clear()

    @contextmanager
    def _file(self) -> Iterator[nd2.ND2File]:
        """Lend an open file to the calling thread; a list appends and pops atomically."""
        try:
            file = self._idle.pop()
            file.open()
        except IndexError:
            file = nd2.ND2File(self.path)
        try:
            yield file
        finally:
            file.close()
        self._idle.append(file)

    @classmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]:
        with nd2.ND2File(path) as file:
            return _names(file)

    @functools.cached_property
    def _frames(self) -> Frames:
        with self._file() as file:
            return _frames(file, self.index)

    def _describe(self) -> Scene:
        frames = self._frames
        with self._file() as file:
            axes = "".join(a for a, n in frames.extents.items() if n > 1 or a in "yx")
            mapped = not file.is_legacy and not file.attributes.compressionType
            whole = {"t": 1, "z": 1, "c": frames.extents["c"]}
            whole |= {"y": 1, "x": 1} if mapped else {"y": frames.height, "x": frames.width}
            return Scene(
                name=_names(file)[self.index],
                axes=axes,
                shapes=(tuple([frames.extents[a] for a in axes]),),
                dtype=file.dtype.newbyteorder("="),
                block=tuple([whole[a] for a in axes]),
                spacing={a: s for a, s in _spacing(file, frames).items() if a in axes},
                channels=_channels(file, frames),
                files=(self.path,),
            )

    def _read(self, box: Box, level: int) -> np.ndarray:
        if level:
            raise ValueError(f"level {level}; expected 0, the only one")
        scene, frames = self.scene, self._frames
        parts = dict(zip(scene.axes, box.slices, strict=True))
        t, c, z, y, x = [parts.get(a, slice(0, 1)) for a in "tczyx"]
        extent = [s.stop - s.start for s in (t, c, z, y, x)]
        voxels = np.empty(extent, scene.dtype)
        with self._file() as file:
            for at in itertools.product(range(t.start, t.stop), range(z.start, z.stop)):
                into = voxels[at[0] - t.start, :, at[1] - z.start]
                into[...] = _samples(file, frames, frames.sequence[at])[c, y, x]
        return voxels.reshape(box.shape)


def _frames(file: nd2.ND2File, position: int) -> Frames:
    """Return the frames of one position, refusing what has axes that images here do not have."""
    sequence: dict[tuple[int, int], int] = {}
    for i, at in enumerate(file.loop_indices or ({},)):
        others = {axis: n for axis, n in at.items() if axis not in "PTZ" and n}
        if others:
            raise ValueError(f"frames on the axes {sorted(others)}; expected only P, T and Z")
        if at.get("P", 0) == position:
            sequence[at.get("T", 0), at.get("Z", 0)] = i
    attributes = file.attributes
    if attributes.compressionType == "lossy" and not file.is_legacy:
        raise ValueError("frames with lossy compression, which the nd2 package does not decode")
    n_channels = attributes.channelCount or 1
    return Frames(
        sequence=sequence,
        n_t=1 + max(t for t, _ in sequence),
        n_z=1 + max(z for _, z in sequence),
        n_channels=n_channels,
        n_samples=attributes.componentCount // n_channels,
        height=attributes.heightPx,
        width=attributes.widthPx or 1,
    )


def _samples(file: nd2.ND2File, frames: Frames, number: int) -> np.ndarray:
    """Return a frame as (c, y, x), uncopied."""
    shape = (frames.n_channels, frames.height, frames.width, frames.n_samples)
    try:
        frame = file.read_frame(number).reshape(shape)
    except ValueError:
        if number < file.attributes.sequenceCount:
            raise
        frame = np.zeros(shape, file.dtype)  # nd2 gives zeros too, but of the rows' padded width
    if frames.n_samples == len(RGB) and not file.is_legacy:
        frame = frame[..., ::-1]
    if frames.n_samples == 1:
        return frame[..., 0]
    return np.moveaxis(frame, -1, 1).reshape(-1, frames.height, frames.width)


def _names(file: nd2.ND2File) -> tuple[str, ...]:
    """Return a name per position, ``""`` where the file has none."""
    for loop in file.experiment:
        if loop.type == "XYPosLoop":
            points = loop.parameters.points
            named = [points[i].name if i < len(points) else None for i in range(loop.count)]
            return tuple([name or "" for name in named])
    return ("",)


def _spacing(file: nd2.ND2File, frames: Frames) -> dict[str, tuple[float, str | None]]:
    """Return what is calibrated; nd2 gives 1.0 for what is not, and says so beside it."""
    spacing: dict[str, tuple[float, str | None]] = {}
    channels = getattr(file.metadata, "channels", None) or ()
    for channel in channels[:1]:
        volume = channel.volume
        described = zip(
            "xy",
            volume.axesCalibrated,
            volume.axesCalibration,
            volume.axesInterpretation,
            strict=False,
        )
        for axis, is_calibrated, step, kind in described:
            if is_calibrated and kind == "distance" and math.isfinite(step) and step > 0:
                spacing[axis] = (float(step), "micrometer")
    for loop in file.experiment:
        if loop.type == "ZStackLoop" and loop.parameters.stepUm:
            spacing["z"] = (abs(float(loop.parameters.stepUm)), "micrometer")
        if loop.type == "TimeLoop" and loop.parameters.periodMs > 0:
            spacing["t"] = (loop.parameters.periodMs / 1000, "second")
    seconds = _recorded_interval(file, frames) if "t" not in spacing else None
    if seconds is not None:
        spacing["t"] = (seconds, "second")
    return spacing


def _recorded_interval(file: nd2.ND2File, frames: Frames) -> float | None:
    """Return the mean interval between the first planes of the time points, if it is even."""
    if frames.n_t < 2 or file.is_legacy:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            planes = [file.frame_metadata(frames.sequence[t, 0]) for t in range(frames.n_t)]
    except (IndexError, KeyError):  # no times were recorded
        return None
    times = [plane.channels[0].time.relativeTimeMs / 1000 for plane in planes]  # type: ignore[union-attr]
    mean = (times[-1] - times[0]) / (frames.n_t - 1)
    even = mean > 0 and np.allclose(np.diff(times), mean, rtol=EVENNESS, atol=0)
    return mean if even else None


def _channels(file: nd2.ND2File, frames: Frames) -> tuple[Channel, ...]:
    """Return names and colours; samples of a colour channel share its name."""
    described = getattr(file.metadata, "channels", None) or ()
    if len(described) != frames.n_channels:
        return ()
    channels = []
    for one in described:
        color = one.channel.color
        own = f"{color.r:02X}{color.g:02X}{color.b:02X}"
        colors = RGB if frames.n_samples == len(RGB) else (own,) * frames.n_samples
        channels += [Channel(one.channel.name or None, c) for c in colors]
    return tuple(channels)
