"""Several channels of an image, read side by side."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import numpy as np

from patchworks.errors import InputError
from patchworks.geometry.box import Box
from patchworks.io.image_source import ImageSource

ChannelChoice = int | Sequence[int] | None
"""One channel, several, or what there is."""


def several_channels(channel: ChannelChoice) -> tuple[int, ...] | None:
    """Return the channels of a sequence, in its order; None if `channel` is no sequence.

    Raises
    ------
    InputError
        If it is empty, or holds anything but integers, or one of them twice.
    """
    if isinstance(channel, (str, bytes)) or not isinstance(channel, (Sequence, np.ndarray)):
        return None
    entries: list[Any] = list(channel)
    if not entries or not all(map(_is_index, entries)):
        raise InputError(f"channel={channel!r}: expected an index, or several such as [0, 2]")
    if len(set(entries)) < len(entries):
        raise InputError(f"channel={channel!r}: give each channel once")
    return tuple(map(int, entries))


def _is_index(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def stack_channels(source: ImageSource, axis: int, indices: tuple[int, ...]) -> ChannelStack:
    """Return several channels of the image that `source` is one channel of.

    Parameters
    ----------
    source : ImageSource
        One channel.
    axis : int
        The channel axis of the stored array.
    indices : tuple of int
        The channels.
    """
    values = {f.name: getattr(source, f.name) for f in fields(ImageSource)}
    return ChannelStack(**values, channel_axis=axis, indices=indices)


@dataclass(frozen=True, kw_only=True)
class ChannelStack(ImageSource):
    """Several channels of an image: voxels have a leading channel axis, all else is spatial.

    Parameters
    ----------
    channel_axis : int
        The channel axis of the stored array.
    indices : tuple of int
        The channels, in the order in which the function gets them.
    """

    channel_axis: int
    indices: tuple[int, ...]

    @property
    def lead(self) -> tuple[int, ...]:
        """Extents of the axes before the spatial ones in what is read."""
        return (len(self.indices),)

    @functools.cached_property
    def channels(self) -> tuple[ImageSource, ...]:
        """Each channel as an image of its own."""
        return tuple([self._picking(index) for index in self.indices])

    def _picking(self, index: int | None) -> ImageSource:
        values = {f.name: getattr(self, f.name) for f in fields(ImageSource)}
        pick = [*self.pick]
        pick[self.channel_axis] = index
        return ImageSource(**{**values, "pick": tuple(pick)})

    @functools.cached_property
    def _together(self) -> ImageSource | None:
        """The image with its channel axis, if all channels lie in the same chunks."""
        extent = getattr(self.stored.array, "chunks", (1,) * len(self.pick))[self.channel_axis]
        share = len({index // extent for index in self.indices}) == 1
        return self._picking(None) if share and len(self.indices) > 1 else None

    @property
    def n_decoded(self) -> int:
        """How often chunks are decoded to read a box once."""
        return len(self.indices) if self._together is None else 1

    def __getstate__(self) -> dict[str, Any]:
        made_here = ("channels", "_together")
        return {k: v for k, v in super().__getstate__().items() if k not in made_here}

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """Return the voxels of `box`, shape ``(C, *box.shape)``; the caller's own."""
        found = np.empty((*self.lead, *box.shape), self.dtype) if out is None else out
        if self._together is None:
            for source, channel in zip(self.channels, found, strict=True):
                source.read(box, channel)
            return found
        at = sum(p is None for p in self.pick[: self.channel_axis])
        low, high = min(self.indices), max(self.indices) + 1
        whole = Box((*box.start[:at], low, *box.start[at:]), (*box.stop[:at], high, *box.stop[at:]))
        voxels = np.moveaxis(self._together.read(whole), at, 0)
        for index, channel in zip(self.indices, found, strict=True):
            channel[...] = voxels[index - low]
        return found

    def sample(self, max_voxels: int = 2**22) -> np.ndarray:
        """Return voxels from boxes spread over the image, shape ``(C, n)``: the same of each."""
        share = max_voxels // len(self.indices)
        return np.stack([channel.sample(share) for channel in self.channels])

    def identity(self) -> str:
        """Return a digest that changes when the image is written anew."""
        return f"{super().identity()} channels {self.indices}"
