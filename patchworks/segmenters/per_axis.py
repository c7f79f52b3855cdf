"""The axes of a tile: parameters that are one number for all of them, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from patchworks.errors import InputError
from patchworks.run import finite_number

PerAxis = float | tuple[float, ...]
"""One number for all axes, or one per axis: ``(z, y, x)`` or ``(y, x)``."""


def numbers(name: str, value: object, *, above: float) -> PerAxis:
    """Return `value` as a float or a tuple of floats, each greater than `above`.

    Raises
    ------
    InputError
        If it is neither, or one of them is not that large.

    Examples
    --------
    >>> numbers("diameter", [3, 8, 8], above=0)
    (3.0, 8.0, 8.0)
    """
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    given: list[object] = list(value) if isinstance(value, Sequence) and several else [value]
    found = []
    for each in given:
        number = None if isinstance(each, (str, bytes)) else finite_number(name, each)
        if number is None or number <= above:
            raise InputError(
                f"{name}={value!r}: expected a number above {above:g}, or one per axis of a tile"
            )
        found.append(number)
    if several and not found:
        raise InputError(f"{name}={value!r}: expected a number, or one per axis of a tile")
    return tuple(found) if several else found[0]


def whole(name: str, value: object) -> object:
    """Return `value`, a whole number or several, or raise InputError."""
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    given: list[object] = list(value) if isinstance(value, Sequence) and several else [value]
    if any(isinstance(each, bool) or not isinstance(each, Integral) for each in given):
        raise InputError(f"{name}={value!r}: expected an integer, or one per axis of a tile")
    return value


def spread(name: str, value: PerAxis, n_axes: int) -> tuple[float, ...]:
    """Return one number per axis of a tile.

    Raises
    ------
    InputError
        If there are several, and not as many as axes.

    Examples
    --------
    >>> spread("diameter", 8.0, 2)
    (8.0, 8.0)
    """
    if not isinstance(value, tuple):
        return (value,) * n_axes
    if len(value) != n_axes:
        raise InputError(
            f"{name}={list(value)}: {len(value)} numbers for tiles of {n_axes} axes; give one "
            f"number, or one per axis"
        )
    return value


def one_channel(name: str, voxel_size: Sequence[object], shape: Sequence[int]) -> None:
    """Raise InputError if tiles have an axis of several channels.

    Parameters
    ----------
    name : str
        Of the segmenter.
    voxel_size, shape : sequence
        An entry per axis of a tile, the first but for that of channels.
    """
    if len(shape) > len(voxel_size):
        raise InputError(
            f"{name!r} segments one channel; give one, or a function of tiles (C, Z, Y, X)"
        )
