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
        at = voxels.ndim - ndim + axis
        index: Any = (..., *box.slices)
        left = voxels[index]
        step = ROW if axis == ndim - 1 else 1
        first = _first(left, at, above, step)
        if first is None:
            return None
        after = _first(np.flip(left, at), at, above, step)
        assert after is not None
        box = box.on_axis(axis, first, left.shape[at] - after)
    return box


def _first(voxels: np.ndarray, axis: int, above: float, step: int) -> int | None:
    """Return the first place on an axis where a voxel lies above a threshold."""
    others = tuple([a for a in range(voxels.ndim) if a != axis])
    layers = [slice(None)] * voxels.ndim
    for start in range(0, voxels.shape[axis], step):
        layers[axis] = slice(start, start + step)
        is_above = largest_of(voxels[tuple(layers)], others) > above
        if is_above.any():
            return start + int(is_above.argmax())
    return None
