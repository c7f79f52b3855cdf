"""Voxels of a tile → those around its signal."""

from __future__ import annotations

from typing import Any

import numpy as np

from patchworks.geometry.box import Box
from patchworks.io.maximum_map import largest_of

ROW = 64
"""Voxels along the last axis that are looked at together: they are neighbours in memory."""


def signal_box(voxels: np.ndarray, above: float, ndim: int) -> Box | None:
    """Return the least box that holds all voxels above a threshold; None if there are none.

    It is searched from the outside, so that the box of what is full is found at once.

    Parameters
    ----------
    voxels : numpy.ndarray
        Of `ndim` axes, after the axis of several channels if there is one: all of them count.
    above : float
        The threshold.
    ndim : int
        Axes of the box.

    Examples
    --------
    >>> voxels = np.array([[0, 0, 0, 0], [0, 7, 0, 0], [0, 0, 5, 0]])
    >>> signal_box(voxels, 3, ndim=2)
    Box(start=(1, 1), stop=(3, 3))
    """
    box = Box.whole(voxels.shape[voxels.ndim - ndim :])
    for axis in range(ndim):
        index: Any = (..., *box.slices)
        step = ROW if axis == ndim - 1 else 1
        found = _bounds(voxels[index], voxels.ndim - ndim + axis, above, step)
        if found is None:
            return None
        box = box.on_axis(axis, *found)
    return box


def _bounds(voxels: np.ndarray, axis: int, above: float, step: int) -> tuple[int, int] | None:
    """Return where on an axis voxels above a threshold begin and end; looks at `step` at a time."""
    others = tuple([a for a in range(voxels.ndim) if a != axis])
    layers = [slice(None)] * voxels.ndim

    def places(start: int) -> np.ndarray:
        layers[axis] = slice(start, start + step)
        return start + np.flatnonzero(largest_of(voxels[tuple(layers)], others) > above)

    starts = range(0, voxels.shape[axis], step)
    lower = next((found for found in map(places, starts) if found.size), None)
    if lower is None:
        return None
    upper = next(found for found in map(places, reversed(starts)) if found.size)
    return int(lower[0]), int(upper[-1]) + 1
