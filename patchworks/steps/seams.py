"""Records of two tiles that meet → which of their labels are one object.

*Piece agreement*, where both tiles saw both planes of a seam: split every label into its
face-connected pieces on the slab; two pieces, one of each view, are the same object where they
share more than half of their union. Above one half a piece has at most one partner.

*Touch*, where each tile saw only its own side: labels whose voxels are neighbours are one object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np

from patchworks.geometry.components import components
from patchworks.geometry.seam import Contact, Plane, SeamPlan
from patchworks.io.record import TileRecord

Joins = np.ndarray
"""Pairs of local labels ``(n, 2)`` int64: a label of one tile and its partner in the other."""

NO_JOINS = np.empty((0, 2), np.int64)


def join_contact(
    seams: SeamPlan, contact: Contact, record_of: Callable[[int], TileRecord]
) -> Joins:
    """Return the labels of the two tiles of a contact that are one object.

    Parameters
    ----------
    seams : SeamPlan
        How the seam is judged.
    contact : Contact
        The two tiles.
    record_of : callable
        Gives the record of a tile.

    Returns
    -------
    numpy.ndarray
        ``(n, 2)`` local labels: of ``contact.tile`` and of ``contact.other``.
    """
    axis = contact.axes[0]
    ours = _plane(record_of(contact.tile).planes, axis, contact.steps[axis])
    theirs = _plane(record_of(contact.other).planes, axis, -contact.steps[axis])
    if ours is None or theirs is None:
        return NO_JOINS
    if contact.is_face and seams.slab[axis]:
        return join_by_agreement(ours, theirs)
    for other in contact.axes[1:]:
        ours = _end(ours, other, contact.steps[other])
        theirs = _end(theirs, other, -contact.steps[other])
    return join_by_touch(
        np.atleast_1d(ours.squeeze(contact.axes)),
        np.atleast_1d(theirs.squeeze(contact.axes)),
        seams.connectivity - len(contact.axes),
    )


def _plane(planes: Mapping[str, np.ndarray], axis: int, step: int) -> np.ndarray | None:
    return planes.get(Plane(axis, "upper" if step > 0 else "lower").key)


def _end(plane: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Return the last (step +1) or first (step -1) voxels of a plane along `axis`."""
    return plane.take([-1 if step > 0 else 0], axis)


def join_by_touch(ours: np.ndarray, theirs: np.ndarray, n_diagonal: int) -> Joins:
    """Return the pairs of labels that touch across a seam.

    Parameters
    ----------
    ours, theirs : numpy.ndarray
        Facing planes of the two tiles, same shape.
    n_diagonal : int
        Axes of the plane on which touching voxels may differ by one, at most so many at a time.

    Examples
    --------
    >>> join_by_touch(np.array([1, 0, 2]), np.array([0, 5, 6]), 0).tolist()
    [[2, 6]]
    >>> join_by_touch(np.array([1, 0, 2]), np.array([0, 5, 6]), 1).tolist()
    [[1, 5], [2, 5], [2, 6]]
    """
    pairs = []
    for shift in product((0, -1, 1), repeat=ours.ndim):
        if sum(map(abs, shift)) > n_diagonal:
            continue
        a = ours[tuple([_overlap(n, -s) for s, n in zip(shift, ours.shape, strict=True)])]
        b = theirs[tuple([_overlap(n, s) for s, n in zip(shift, ours.shape, strict=True)])]
        both = (a > 0) & (b > 0)
        if both.any():
            pairs.append(_pack(a[both], b[both]))
    if not pairs:
        return NO_JOINS
    return _unpack(np.unique(np.concatenate(pairs)))


def _overlap(extent: int, shift: int) -> slice:
    """Return the part of an axis that still has a partner when the other array is shifted."""
    return slice(max(0, shift), extent - max(0, -shift))


def join_by_agreement(ours: np.ndarray, theirs: np.ndarray) -> Joins:
    """Return the pairs of labels of which two pieces are the same on the slab: IoU > 1/2.

    Parameters
    ----------
    ours, theirs : numpy.ndarray
        The slab as the two tiles saw it, same shape, one axis of extent 2.

    Examples
    --------
    A bar that one tile saw as a whole, and the other as two ends of different objects:

    >>> one = np.array([[3, 3, 3, 3], [3, 3, 3, 3]])
    >>> two = np.array([[1, 1, 1, 7], [1, 1, 1, 7]])
    >>> join_by_agreement(one, two).tolist()
    [[3, 1]]
    """
    both = (ours > 0) & (theirs > 0)
    if not both.any():
        return NO_JOINS
    same, open_ours, open_theirs = _settle_identical(ours, theirs, both)
    if not open_ours.any() or not open_theirs.any():
        return same
    rest = _join_pieces(open_ours[ours] * ours, open_theirs[theirs] * theirs)
    return np.concatenate([same, rest]) if len(rest) else same


def _settle_identical(
    ours: np.ndarray, theirs: np.ndarray, both: np.ndarray
) -> tuple[Joins, np.ndarray, np.ndarray]:
    """Join labels that cover the same voxels; return them and, per label, whether it is open.

    All pieces of such a pair coincide, so there is nothing to split: the common case by far.
    """
    packed, shared = _counted(_pack(ours[both], theirs[both]))
    pairs = _unpack(packed)
    size_ours, size_theirs = np.bincount(ours.ravel()), np.bincount(theirs.ravel())
    identical = (shared == size_ours[pairs[:, 0]]) & (shared == size_theirs[pairs[:, 1]])
    open_ours, open_theirs = np.zeros(len(size_ours), bool), np.zeros(len(size_theirs), bool)
    open_ours[pairs[~identical, 0]] = True
    open_theirs[pairs[~identical, 1]] = True
    return pairs[identical], open_ours, open_theirs


def _join_pieces(ours: np.ndarray, theirs: np.ndarray) -> Joins:
    pieces_a, label_a = split_into_pieces(ours)
    pieces_b, label_b = split_into_pieces(theirs)
    both = (pieces_a > 0) & (pieces_b > 0)
    packed, shared = _counted(_pack(pieces_a[both], pieces_b[both]))
    pairs = _unpack(packed)
    size_a, size_b = np.bincount(pieces_a.ravel()), np.bincount(pieces_b.ravel())
    union = size_a[pairs[:, 0]] + size_b[pairs[:, 1]] - shared
    agreed = pairs[2 * shared > union]
    found = np.stack([label_a[agreed[:, 0]], label_b[agreed[:, 1]]], 1)
    return _unpack(np.unique(_pack(found[:, 0], found[:, 1])))


def split_into_pieces(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the face-connected pieces of every label.

    Works on runs, stretches of one label along the last axis: far fewer than voxels.

    Parameters
    ----------
    labels : numpy.ndarray
        Integers >= 0, at least one axis.

    Returns
    -------
    pieces : numpy.ndarray
        Same shape, int64: pieces from 1, 0 for background.
    label_of : numpy.ndarray
        Per piece its label; entry 0 stands for background.

    Examples
    --------
    >>> pieces, label_of = split_into_pieces(np.array([[4, 4, 0, 4], [0, 4, 9, 9]]))
    >>> pieces.tolist(), label_of.tolist()
    ([[1, 1, 0, 2], [0, 1, 3, 3]], [0, 4, 4, 9])
    """
    starts = np.ones(labels.shape, bool)
    starts[..., 1:] = labels[..., 1:] != labels[..., :-1]
    run = np.cumsum(starts.ravel()).reshape(labels.shape) - 1
    label_of_run = labels[starts]
    edges = []
    for axis in range(labels.ndim - 1):
        a, b = _shifted(labels, axis)
        starts_a, starts_b = _shifted(starts, axis)
        met = (a == b) & (a > 0) & (starts_a | starts_b)
        run_a, run_b = _shifted(run, axis)
        edges.append(np.stack([run_a[met], run_b[met]]))
    a, b = np.concatenate(edges, 1) if edges else np.empty((2, 0), np.int64)
    n = len(label_of_run)
    component = components(a, b, n)
    inside = label_of_run > 0
    ids, first, rank = np.unique(component[inside], return_index=True, return_inverse=True)
    piece_of_run = np.zeros(n, np.int64)
    piece_of_run[inside] = rank + 1
    label_of = np.zeros(len(ids) + 1, np.int64)
    label_of[1:] = label_of_run[inside][first]
    return piece_of_run[run], label_of


def _shifted(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the array without its last and without its first layer along `axis`."""
    front = (slice(None),) * axis
    return array[(*front, slice(None, -1))], array[(*front, slice(1, None))]


def _counted(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values there are, in order, and how often; by runs, so that few are sorted."""
    starts = np.flatnonzero(np.append(True, packed[1:] != packed[:-1]))
    values, run = np.unique(packed[starts], return_inverse=True)
    lengths = np.diff(starts, append=packed.size)
    return values, np.bincount(run, lengths, len(values)).astype(np.int64)


def _pack(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return pairs as single integers: sorting one array beats sorting rows."""
    return (a.astype(np.int64) << 32) | b.astype(np.int64)


def _unpack(packed: np.ndarray) -> Joins:
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], 1)
