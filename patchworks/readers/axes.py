"""The axes of an array as it is held, and the canonical order t, c, z, y, x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patchworks.errors import InputError
from patchworks.geometry.box import Box
from patchworks.io.location import ZarrArray
from patchworks.io.ngff import Axis
from patchworks.io.source import axes_of_array
from patchworks.readers.scene import ORDER

KINDS = {"time": "t", "channel": "c"}

SURE = {2: "yx", 3: "zyx", 5: "tczyx"}
"""Axes of arrays that do not say what they are; with four, the first may be time or channel."""


@dataclass(frozen=True, slots=True)
class AxisOrder:
    """How an array's own axes stand to the canonical ones.

    Parameters
    ----------
    held : str
        The array's own axes, such as ``"yxc"``.

    Examples
    --------
    >>> order = AxisOrder("yxc")
    >>> order.canonical, order.shape((480, 640, 3))
    ('cyx', (3, 480, 640))
    """

    held: str

    @classmethod
    def parse(cls, axes: str, shape: tuple[int, ...], name: str) -> AxisOrder:
        """Return the order of `axes`, or raise InputError unless they fit an array of `shape`."""
        held = axes.lower() if isinstance(axes, str) else ""
        known = set(held) <= set(ORDER) and len(set(held)) == len(held)
        if not known or len(held) != len(shape) or not {"y", "x"} <= set(held):
            raise InputError(
                f"{name}: axes={axes!r} for an array of shape {shape}; expected each of its "
                f"{len(shape)} axes once, out of {ORDER!r}, y and x among them"
            )
        return cls(held)

    @property
    def canonical(self) -> str:
        """The axes in canonical order."""
        return "".join(sorted(self.held, key=ORDER.index))

    @property
    def to_held(self) -> tuple[int, ...]:
        """Per axis of the array, which of the canonical axes it is."""
        return tuple([self.canonical.index(axis) for axis in self.held])

    def shape(self, held: Sequence[int]) -> tuple[int, ...]:
        """Return a shape of the array in canonical order."""
        return tuple([held[self.held.index(axis)] for axis in self.canonical])

    def box(self, canonical: Box) -> Box:
        """Return a box of the canonical axes in those of the array."""
        at = self.to_held
        return Box(tuple([canonical.start[i] for i in at]), tuple([canonical.stop[i] for i in at]))

    def canonical_box(self, held: Box) -> Box:
        """Return a box of the array in the canonical axes."""
        return Box(self.shape(held.start), self.shape(held.stop))

    def arrange(self, voxels: np.ndarray) -> np.ndarray:
        """Return voxels that were read from the array in canonical order."""
        return voxels.transpose([self.held.index(axis) for axis in self.canonical])

    def restore(self, canonical: np.ndarray) -> np.ndarray:
        """Return voxels in canonical order in the order of the array."""
        return canonical.transpose(self.to_held)


def axis_letters(axes: Sequence[Axis]) -> str:
    """Return one letter per axis, by type where that tells."""
    return "".join([KINDS.get(axis.type or "", axis.name.lower()) for axis in axes])


def axes_of_unplaced(array: ZarrArray, name: str) -> str:
    """Return the axes of a zarr array of which no multiscales metadata tell.

    Parameters
    ----------
    array : zarr.Array
        Its dimension names are its axes; without any, the number of its axes tells.
    name : str
        What messages call it.

    Raises
    ------
    InputError
        If it has no names, and a number of axes that may be one thing or another.
    """
    named = getattr(array.metadata, "dimension_names", None) or ()
    if array.ndim not in SURE and not (all(named) and len(set(named)) == array.ndim):
        raise InputError(
            f"{name}: an array of shape {array.shape} that does not say what its axes are; say "
            f"it, such as axes='czyx' or axes='tzyx'"
        )
    return axis_letters(axes_of_array(array))
