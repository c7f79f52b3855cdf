"""Which summit the steepest way up from each voxel leads to: a watershed without an order.

A step goes to the highest of the voxels around, corners included; of equal ones to the last in
the order of the array. What that gives at a voxel depends on the voxels along its way alone, not
on where the array begins: in a tile it is what it is in the whole image.
"""

from __future__ import annotations

from itertools import product

import numpy as np


def summits(heights: np.ndarray) -> np.ndarray:
    """Return which voxels are as high as the highest around them, corners included."""
    padded = np.pad(heights, 1, constant_values=-np.inf)
    found = np.ones(heights.shape, bool)
    for step in product(range(3), repeat=heights.ndim):
        around = tuple([slice(s, s + n) for s, n in zip(step, heights.shape, strict=True)])
        found &= heights >= padded[around]
    return found


def climb(
    heights: np.ndarray, mask: np.ndarray, is_top: np.ndarray, limits: tuple[int, ...]
) -> np.ndarray:
    """Return the label of the summit that each voxel's steepest way up leads to.

    Parameters
    ----------
    heights : numpy.ndarray
        Real numbers.
    mask : numpy.ndarray of bool
        Where a way may go; 0 elsewhere.
    is_top : numpy.ndarray of bool
        Summits that count; ways that end elsewhere give 0.
    limits : tuple of int
        Steps that a way may take along each axis; longer ones give 0.

    Returns
    -------
    numpy.ndarray
        int32, each object connected.
    """
    ways = _Ways(heights, mask)
    ways.follow()
    reached = ways.to
    ends = np.flatnonzero((reached == np.arange(reached.size)) & is_top[mask])
    numbers = np.zeros(reached.size, np.int32)
    numbers[ends] = np.arange(1, ends.size + 1, dtype=np.int32)
    near = np.ones(reached.size, bool)
    for n_steps, limit in zip(ways.n_steps, limits, strict=True):
        near &= n_steps <= limit
    labels = np.zeros(heights.shape, np.int32)
    labels[mask] = np.where(near, numbers[reached], 0)
    return labels


class _Ways:
    """Ways up, one from each voxel of a mask, in the order of the array.

    Parameters
    ----------
    heights : numpy.ndarray
        Real numbers.
    mask : numpy.ndarray of bool
        Where ways may go.
    """

    def __init__(self, heights: np.ndarray, mask: np.ndarray) -> None:
        padded = np.pad(np.where(mask, heights, -np.inf), 1, constant_values=-np.inf)
        index: np.ndarray = np.full(padded.shape, -1, np.intp)
        index[(slice(1, -1),) * heights.ndim][mask] = np.arange(np.count_nonzero(mask))
        at = np.flatnonzero(index.ravel() >= 0)
        flat, index = padded.ravel(), index.ravel()
        strides = [n // padded.itemsize for n in padded.strides]
        highest = np.full(at.size, -np.inf, padded.dtype)
        best = np.zeros(at.size, np.int16)
        steps = list(product((-1, 0, 1), repeat=heights.ndim))
        offsets = np.array([np.dot(step, strides) for step in steps], np.intp)
        for number, offset in enumerate(offsets):  # in the order of the array: the last one wins
            there = flat[at + offset]
            is_higher = there >= highest
            highest[is_higher] = there[is_higher]
            best[is_higher] = number
        self.to: np.ndarray = index[at + offsets[best]]
        self.n_steps = [
            np.abs(np.array(along, np.int32))[best] for along in zip(*steps, strict=True)
        ]

    def follow(self) -> None:
        """Go all ways to their ends, twice as far each time."""
        while True:
            further = self.to[self.to]
            if np.array_equal(further, self.to):
                return
            for along in self.n_steps:
                along += along[self.to]
            self.to = further
