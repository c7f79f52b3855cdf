"""Objects of a slice and of the next one → which are the same: mutual-best intersection over union.

Slices that were segmented one by one (z = 1), or time points, face each other as a whole: what
counts is how much two *objects* overlap, whatever tiles they lie in. Per tile that is counted
exactly, and counts add up:

::

    labels of a tile, and of the tile behind it  ─► voxels of each label, voxels two labels share
    summed over all tiles, by object             ─► IoU(a, b) = shared / (a + b - shared)

Two objects are one where each is the other's best partner and their IoU is no less than a limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchworks.geometry.grid import Tile
from patchworks.io.staged_labels import LabelRuns, StagedLabels, find_runs


def runs_of(labels: StagedLabels) -> LabelRuns:
    """Return staged labels as runs."""
    return labels if isinstance(labels, LabelRuns) else find_runs(labels.to_array())


def extents_of(labels: LabelRuns, n_labels: int, tile: Tile, shape: tuple[int, ...]) -> np.ndarray:
    """Return size and place of each label of a tile.

    Parameters
    ----------
    labels : LabelRuns
        Local labels of the tile's core.
    n_labels : int
        How many there are.
    tile : Tile
        The tile.
    shape : tuple of int
        Of the image.

    Returns
    -------
    numpy.ndarray
        ``(n_labels, 2)`` int64: voxels, and the first voxel, counted in C order over the image.
    """
    stops = np.cumsum(labels.lengths, dtype=np.int64)
    starts = stops - labels.lengths
    sizes = np.bincount(labels.values, labels.lengths, n_labels + 1)
    first = np.zeros(n_labels + 1, np.int64)
    first[labels.values[::-1]] = starts[::-1]  # of those that are written to one place the last
    place = np.unravel_index(first[1:], labels.shape)
    in_image = [p + start for p, start in zip(place, tile.core.start, strict=True)]
    return np.stack([sizes[1:].astype(np.int64), np.ravel_multi_index(in_image, shape)], 1)


def overlaps_of(ours: LabelRuns, theirs: LabelRuns) -> np.ndarray:
    """Return how many voxels labels of two cores of one shape share, laid over each other.

    Returns
    -------
    numpy.ndarray
        ``(n, 3)`` int64: a label of ours, one of theirs, voxels.

    Examples
    --------
    >>> ours, theirs = np.array([[1, 1, 0, 2]]), np.array([[0, 3, 3, 3]])
    >>> overlaps_of(find_runs(ours), find_runs(theirs)).tolist()
    [[1, 3, 1], [2, 3, 1]]
    """
    stops = np.concatenate([np.cumsum(part.lengths, dtype=np.int64) for part in (ours, theirs)])
    order = stops.argsort(kind="stable")  # which merges what is in order already
    is_ours = order < len(ours.lengths)
    n_voxels = np.diff(stops[order], prepend=0)
    there = np.flatnonzero(n_voxels)  # stretches in which neither changes
    ended: np.ndarray = (np.cumsum(is_ours) - is_ours)[there]  # runs of ours before each
    a = ours.values[ended].astype(np.int64)
    b = theirs.values[there - ended].astype(np.int64)
    n_voxels = n_voxels[there]
    both = (a > 0) & (b > 0)
    pairs, rank = np.unique(a[both] << 32 | b[both], return_inverse=True)
    shared = np.bincount(rank, n_voxels[both], len(pairs)).astype(np.int64)
    return np.stack([pairs >> 32, pairs & 0xFFFFFFFF, shared], 1)


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Labels of slices and of the next ones that share voxels, by the objects they belong to.

    Parameters
    ----------
    object, other : numpy.ndarray
        Numbers of the objects: of a slice, and of the next one.
    shared : numpy.ndarray
        Voxels, int64; those of two objects may be spread over several entries.
    """

    object: np.ndarray
    other: np.ndarray
    shared: np.ndarray


def best_partners(
    overlaps: Overlaps, sizes: np.ndarray, first: np.ndarray, least_iou: float
) -> np.ndarray:
    """Return which overlaps tell that two objects are one: an entry for each such pair.

    Of partners with the same IoU the one that shares more voxels is the better one, then the one
    whose first voxel comes first: no tiling has a say in that.

    Parameters
    ----------
    overlaps : Overlaps
        Of all labels.
    sizes, first : numpy.ndarray
        Per object, by its number: voxels, and the first voxel in C order.
    least_iou : float
        Smallest IoU of two objects that are one, above 0.

    Examples
    --------
    Two objects of a slice lie under one of the next:

    >>> overlaps = Overlaps(np.array([1, 2]), np.array([3, 3]), np.array([2, 8]))
    >>> best_partners(overlaps, np.array([0, 4, 9, 12]), np.array([0, 0, 5, 40]), 0.25).tolist()
    [1]
    """
    n_objects = len(sizes)
    pairs, entry, rank = np.unique(
        overlaps.object.astype(np.int64) * n_objects + overlaps.other,
        return_index=True,
        return_inverse=True,
    )
    shared = np.bincount(rank, overlaps.shared, len(pairs))
    a, b = np.divmod(pairs, n_objects)
    iou = shared / (sizes[a] + sizes[b] - shared)
    is_best = iou >= least_iou
    for ours, theirs in ((a, b), (b, a)):
        order = np.lexsort((first[theirs], -shared, -iou, ours))
        begins = np.flatnonzero(np.diff(ours[order], prepend=-1))
        best = np.zeros(len(pairs), bool)
        best[order[begins]] = True
        is_best &= best
    found: np.ndarray = entry[is_best]
    return found
