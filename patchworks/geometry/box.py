"""A half-open box of voxels, `[start, stop)` on every axis."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

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
        if len(self.start) != len(self.stop) or any(
            a > b for a, b in zip(self.start, self.stop, strict=True)
        ):
            raise InputError(f"box {self.start} to {self.stop}: every start must be <= its stop")

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """Return the box of a whole array of `shape`."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent per axis, in voxels."""
        return tuple([b - a for a, b in zip(self.start, self.stop, strict=True)])

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index into the array it lies in."""
        return tuple([slice(a, b) for a, b in zip(self.start, self.stop, strict=True)])

    def grow(self, halo: tuple[int, ...], within: Box) -> Box:
        """Return the box with `halo` voxels more on each side, clipped to `within`."""
        return Box(
            tuple([max(a - h, w) for a, h, w in zip(self.start, halo, within.start, strict=True)]),
            tuple([min(b + h, w) for b, h, w in zip(self.stop, halo, within.stop, strict=True)]),
        )

    def intersect(self, other: Box) -> Box | None:
        """Return the common box, or None where the two share no voxel."""
        start = tuple([max(a, b) for a, b in zip(self.start, other.start, strict=True)])
        stop = tuple([min(a, b) for a, b in zip(self.stop, other.stop, strict=True)])
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            return None
        return Box(start, stop)

    def relative_to(self, origin: tuple[int, ...]) -> Box:
        """Return the box in the coordinates of an array whose first voxel is `origin`."""
        return Box(
            tuple([a - o for a, o in zip(self.start, origin, strict=True)]),
            tuple([b - o for b, o in zip(self.stop, origin, strict=True)]),
        )

    def on_axis(self, axis: int, start: int, stop: int) -> Box:
        """Return the box with its extent on one axis replaced."""
        return Box(
            (*self.start[:axis], start, *self.start[axis + 1 :]),
            (*self.stop[:axis], stop, *self.stop[axis + 1 :]),
        )
