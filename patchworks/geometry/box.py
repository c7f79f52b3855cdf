"""A half-open box of voxels, `[start, stop)` on every axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from operator import add, ge, gt, le, sub

from patchworks.errors import InputError


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open, axis-aligned box in voxels.

    Parameters
    ----------
    start, stop : tuple of int
        First voxel inside and first voxel past the box, per axis; ``start <= stop``.

    Raises
    ------
    InputError
        If the two differ in length or a start lies past its stop.

    Examples
    --------
    >>> core = Box((0, 4), (4, 8))
    >>> core.grow((1, 2), within=Box((0, 0), (8, 8)))
    Box(start=(0, 2), stop=(5, 8))
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop) or any(map(gt, self.start, self.stop)):
            raise InputError(f"box {self.start} to {self.stop}: every start must be <= its stop")

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """Return the box of a whole array of `shape`."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def around(cls, centre: tuple[int, ...], shape: tuple[int, ...], within: Box) -> Box:
        """Return the box of a shape that has `centre` in its middle, or near it at the border.

        Examples
        --------
        >>> Box.around((5, 5), (4, 4), Box.whole((6, 20)))
        Box(start=(2, 3), stop=(6, 7))
        """
        extents = [min(s, n) for s, n in zip(shape, within.shape, strict=True)]
        axes = zip(centre, extents, within.start, within.stop, strict=True)
        start = [max(first, min(c - n // 2, last - n)) for c, n, first, last in axes]
        return cls(tuple(start), tuple([a + n for a, n in zip(start, extents, strict=True)]))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent per axis, in voxels."""
        return tuple(map(sub, self.stop, self.start))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index into the array it lies in."""
        return tuple(map(slice, self.start, self.stop))

    def grow(self, halo: tuple[int, ...], within: Box) -> Box:
        """Return the box with `halo` voxels more on each side, clipped to `within`."""
        return Box(
            tuple(map(max, map(sub, self.start, halo), within.start)),
            tuple(map(min, map(add, self.stop, halo), within.stop)),
        )

    def intersect(self, other: Box) -> Box | None:
        """Return the common box, or None where the two share no voxel."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        if any(map(ge, start, stop)):
            return None
        return Box(start, stop)

    def within(self, other: Box) -> Box:
        """Return the common box, which is empty where the two share no voxel."""
        start = tuple(map(min, map(max, self.start, other.start), other.stop))
        return Box(start, tuple(map(max, map(min, self.stop, other.stop), start)))

    def holds(self, other: Box) -> bool:
        """Return whether all voxels of another box lie in this one."""
        return not other.size or (
            all(map(le, self.start, other.start)) and all(map(ge, self.stop, other.stop))
        )

    @classmethod
    def hull(cls, boxes: Sequence[Box]) -> Box:
        """Return the smallest box that holds several.

        Examples
        --------
        >>> Box.hull([Box((0, 4), (2, 5)), Box((1, 0), (2, 3))])
        Box(start=(0, 0), stop=(2, 5))
        """
        starts = zip(*[box.start for box in boxes], strict=True)
        stops = zip(*[box.stop for box in boxes], strict=True)
        return cls(tuple(map(min, starts)), tuple(map(max, stops)))

    def relative_to(self, origin: tuple[int, ...]) -> Box:
        """Return the box in the coordinates of an array whose first voxel is `origin`."""
        return Box(tuple(map(sub, self.start, origin)), tuple(map(sub, self.stop, origin)))

    def placed_at(self, origin: tuple[int, ...]) -> Box:
        """Return the box in the coordinates in which its array's first voxel is `origin`."""
        return Box(tuple(map(add, self.start, origin)), tuple(map(add, self.stop, origin)))

    def on_axis(self, axis: int, start: int, stop: int) -> Box:
        """Return the box with its extent on one axis replaced."""
        return Box(
            (*self.start[:axis], start, *self.start[axis + 1 :]),
            (*self.stop[:axis], stop, *self.stop[axis + 1 :]),
        )
