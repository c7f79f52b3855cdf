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
    ways = _Ways(heights, mask, limits)
    ways.follow()
    ends = np.flatnonzero((ways.to == np.arange(ways.to.size)) & is_top[mask])
    numbers = np.zeros(ways.to.size, np.int32)
    numbers[ends] = np.arange(1, ends.size + 1, dtype=np.int32)
    reached = numbers[ways.to]
    for n_steps, limit in zip(ways.n_steps, limits, strict=True):
        reached[n_steps > limit] = 0
    labels = np.zeros(heights.shape, np.int32)
    labels[mask] = reached
    return labels


class _Ways:
    """Ways up, one from each voxel of a mask, in the order of the array.

    Parameters
    ----------
    heights : numpy.ndarray
        Real numbers.
    mask : numpy.ndarray of bool
        Where ways may go.
    limits : tuple of int
        Per axis; steps are counted up to one more.
    """

    def __init__(self, heights: np.ndarray, mask: np.ndarray, limits: tuple[int, ...]) -> None:
        padded = np.pad(np.where(mask, heights, -np.inf), 1, constant_values=-np.inf)
        whole = np.int32 if padded.size < 2**31 else np.int64
        index: np.ndarray = np.full(padded.shape, -1, whole)
        index[(slice(1, -1),) * heights.ndim][mask] = np.arange(np.count_nonzero(mask), dtype=whole)
        flat, index = padded.ravel(), index.ravel()
        at: np.ndarray = np.flatnonzero(index >= 0).astype(whole)
        strides = [n // padded.itemsize for n in padded.strides]
        steps = np.array(list(product((-1, 0, 1), repeat=heights.ndim)))
        offsets = (steps @ strides).astype(whole)
        highest = np.full(at.size, -np.inf, padded.dtype)
        best = np.zeros(at.size, np.int16)
        for number, offset in enumerate(offsets):  # in the order of the array: the last one wins
            there = flat[at + offset]
            is_higher = there >= highest
            highest[is_higher] = there[is_higher]
            best[is_higher] = number
        del padded, flat, highest
        self.limits = limits
        self.to: np.ndarray = index[at + offsets[best]]
        counts = np.int16 if max(limits) < 2**14 else np.int64
        self.n_steps = [np.abs(along).astype(counts)[best] for along in steps.T]

    def follow(self) -> None:
        """Go all ways to their ends, twice as far each time."""
        while True:
            further = self.to[self.to]
            if np.array_equal(further, self.to):
                return
            for along, limit in zip(self.n_steps, self.limits, strict=True):
                along += along[self.to]
                np.minimum(along, limit + 1, out=along)
            self.to = further
