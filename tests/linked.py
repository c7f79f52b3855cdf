"""Slices linked to one label image by the mutual-best IoU, naively: object by object."""

from fractions import Fraction

import numpy as np


def linked(slices, least=0.25):
    """Return the labels of slices (of any number of axes) as one label image."""
    out, n, before = np.zeros(np.shape(slices), np.int64), 0, {}
    for labels, target in zip(slices, out, strict=True):
        masks = {i: labels == i for i in np.unique(labels[labels > 0])}
        scores = {
            (a, b): score
            for a, (ours, _) in before.items()
            for b, theirs in masks.items()
            if (score := _score(ours, theirs)) is not None
        }
        held = {}
        for b, mask in masks.items():
            partner = _best(scores, 1, b)
            is_same = (
                partner
                and float(partner[0]) >= least
                and _best(scores, 0, partner[1][0]) == partner
            )
            n += not is_same
            held[b] = (mask, before[partner[1][0]][1] if is_same else n)
            target[mask] = held[b][1]
        before = held
    return out


def _score(ours, theirs):
    """Return IoU, voxels shared, and the first voxels, of which the earlier is the better one."""
    shared = int((ours & theirs).sum())
    if not shared:
        return None
    iou = Fraction(shared, int((ours | theirs).sum()))
    return iou, shared, -int(ours.argmax()), -int(theirs.argmax())


def _best(scores, end, label):
    """Return the best pair of an object: its IoU and its two labels."""
    mine = [(score, pair) for pair, score in scores.items() if pair[end] == label]
    best = max(mine, key=lambda one: (*one[0][:2], one[0][3 - end]), default=None)
    return None if best is None else (best[0][0], best[1])
