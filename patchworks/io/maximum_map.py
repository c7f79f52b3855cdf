"""The largest voxel of every small box of an image: which tiles hold signal, without reading them.

Exact: what the map does not decide is looked at voxel by voxel. NaN counts for nothing. A map is
filled while chunks are decoded for other reasons, or in a pass of its own; until then it says of
boxes that it does not know them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from patchworks.geometry.blocks import boxes_of
from patchworks.geometry.box import Box
from patchworks.geometry.box_grid import BoxGrid

LEARNED = "box"
MAXIMUM = "maximum"


@dataclass(frozen=True, eq=False)
class MaximumMap:
    """Maxima of boxes, as far as they are known. Threads may ask while others learn.

    Parameters
    ----------
    grid : BoxGrid
        The boxes.
    maxima : numpy.ndarray
        The largest voxel of each box, in the image's dtype; NaN where a box holds nothing else.
    known : numpy.ndarray
        Bool, of which boxes it is known.
    """

    grid: BoxGrid
    maxima: np.ndarray
    known: np.ndarray

    @classmethod
    def unknown(cls, grid: BoxGrid, dtype: np.dtype) -> MaximumMap:
        """Return a map that knows nothing yet."""
        dims = grid.boxes.dims
        return cls(grid, np.zeros(dims, dtype), np.zeros(dims, bool))

    @property
    def is_complete(self) -> bool:
        """Whether all boxes are known."""
        return bool(self.known.all())

    def learn(self, box: Box, voxels: np.ndarray) -> None:
        """Note the maxima of all boxes that lie wholly in `box`, whose voxels these are."""
        inside = self.grid.inside(box)
        if all(span.stop > span.start for span in inside):
            whole = self.grid.voxels_of(inside)
            part = voxels[whole.relative_to(box.start).slices]
            self.maxima[inside] = maxima_of(self.grid, whole, part)
            self.known[inside] = True

    def is_signal(self, box: Box, threshold: float) -> bool | None:
        """Return whether any voxel of `box` lies above a threshold; None if the map cannot say."""
        touching = self.grid.touching(box)
        known = self.known[touching].copy()  # first: maxima are there before they are known
        above = self.maxima[touching] > threshold
        if not above.any():
            return False if known.all() else None
        inside = self.grid.inside(box)
        own = [slice(i.start - t.start, i.stop - t.start) for i, t in _pairs(inside, touching)]
        return True if (above & known)[tuple(own)].any() else None

    def bounds(self, box: Box, threshold: float) -> Box | None:
        """Return the least box of whole boxes, clipped to `box`, that holds all its open parts."""
        touching = self.grid.touching(box)
        unknown = ~self.known[touching]  # first, as above
        may_hold = unknown | (self.maxima[touching] > threshold)
        if not may_hold.any():
            return None
        spans = []
        for axis, touched in enumerate(touching):
            others = tuple([a for a in range(may_hold.ndim) if a != axis])
            places = np.flatnonzero(may_hold.any(others)) + touched.start
            spans.append(slice(int(places[0]), int(places[-1]) + 1))
        return self.grid.voxels_of(tuple(spans)).intersect(box)

    def open_parts(self, box: Box, threshold: float) -> list[Box]:
        """Return the parts of `box` in which a voxel above a threshold may lie, whole boxes each.

        They are clipped to `box`, and disjoint.
        """
        touching = self.grid.touching(box)
        unknown = ~self.known[touching]  # first, as above
        may_hold = unknown | (self.maxima[touching] > threshold)
        places = [
            tuple([int(i) + t.start for i, t in _pairs(at, touching)])
            for at in np.argwhere(may_hold)
        ]
        parts = []
        for found in boxes_of(places):
            spans = tuple(map(slice, found.start, found.stop))
            part = self.grid.voxels_of(spans).intersect(box)
            if part is not None:
                parts.append(part)
        return parts

    def take(self, other: MaximumMap) -> None:
        """Take over what another map of the same boxes knows."""
        known = other.known.copy()
        np.copyto(self.maxima, other.maxima, where=known)
        self.known[known] = True

    def learned_beside(self, known: np.ndarray) -> np.ndarray:
        """Return what the map knows beside some boxes, as few bytes: box numbers and maxima.

        Parameters
        ----------
        known : numpy.ndarray
            Bool, the boxes that are known elsewhere.
        """
        where = np.flatnonzero(self.known & ~known)
        found = np.empty(len(where), [(LEARNED, np.int64), (MAXIMUM, self.maxima.dtype)])
        found[LEARNED], found[MAXIMUM] = where, self.maxima.ravel()[where]
        return found

    def add(self, learned: np.ndarray) -> None:
        """Take over what another map of the same boxes said it has learned."""
        self.maxima.reshape(-1)[learned[LEARNED]] = learned[MAXIMUM]
        self.known.reshape(-1)[learned[LEARNED]] = True


def _pairs(first: Any, second: Any) -> zip[Any]:
    return zip(first, second, strict=True)


def largest_of(voxels: np.ndarray, axis: int | tuple[int, ...] | None = None) -> Any:
    """Return the largest voxel, along axes or of all; NaN counts for nothing."""
    if voxels.dtype.kind == "f":
        return np.fmax.reduce(voxels, axis=axis)
    return voxels.max(axis=axis)


def larger_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the larger of two voxels each; NaN counts for nothing."""
    larger = np.fmax if first.dtype.kind == "f" else np.maximum
    found: np.ndarray = larger(first, second)
    return found


def maxima_of(grid: BoxGrid, box: Box, voxels: np.ndarray) -> np.ndarray:
    """Return the largest voxel of each box that touches `box`, of those that lie in it.

    Parameters
    ----------
    grid : BoxGrid
        All boxes.
    box : Box
        A part of the image.
    voxels : numpy.ndarray
        Its voxels.
    """
    # The first axis first: whole planes are compared at a time.
    for axis, (edges, span) in enumerate(_pairs(grid.edges, grid.touching(box))):
        if span.stop - span.start == voxels.shape[axis]:
            continue  # boxes of one voxel
        start, stop = box.start[axis], box.stop[axis]
        cuts = [min(max(e, start), stop) - start for e in edges[span.start : span.stop + 1]]
        layers = np.moveaxis(voxels, axis, 0)
        parts = [largest_of(layers[a:b], axis=0) for a, b in pairwise(cuts)]
        voxels = np.stack(parts, axis=axis)
    return voxels
