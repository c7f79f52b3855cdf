"""How well two label images of the same voxels agree, object by object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchworks.errors import InputError

SAME = 0.9
"""Share of the union that two labels have in common at least to count as the same object."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How many objects of two label images are the same.

    Parameters
    ----------
    n_true, n_found, n_same : int
        Objects of the image that is taken for the truth, of the other, and those that are in both.
    """

    n_true: int
    n_found: int
    n_same: int

    @property
    def f1(self) -> float:
        """Objects in both, as a share of the mean number; 1.0 where no object differs."""
        n = self.n_true + self.n_found
        return 2 * self.n_same / n if n else 1.0


def compare_objects(truth: np.ndarray, found: np.ndarray, min_iou: float = SAME) -> Fidelity:
    """Count the objects of `truth` that `found` has too: intersection over union >= `min_iou`.

    Parameters
    ----------
    truth, found : numpy.ndarray
        Labels of the same voxels, integers >= 0, 0 for background.
    min_iou : float
        Above 1/2, so that an object has one partner at most.

    Raises
    ------
    InputError
        If the shapes differ, or `min_iou` is not above 1/2.

    Examples
    --------
    >>> compare_objects(np.array([1, 1, 0, 2, 2]), np.array([5, 5, 0, 6, 7])).f1
    0.4
    """
    if truth.shape != found.shape:
        raise InputError(f"labels of shape {found.shape} and {truth.shape}: expected the same")
    if not 0.5 < min_iou <= 1:
        raise InputError(f"min_iou={min_iou!r}: expected a number above 0.5, at most 1")
    true_ids, true = np.unique(truth, return_inverse=True)
    found_ids, other = np.unique(found, return_inverse=True)
    pairs, n_common = np.unique(true.ravel() * len(found_ids) + other.ravel(), return_counts=True)
    true_of, other_of = np.divmod(pairs, len(found_ids))
    n_union = np.bincount(true.ravel())[true_of] + np.bincount(other.ravel())[other_of] - n_common
    objects = (true_ids[true_of] > 0) & (found_ids[other_of] > 0)
    return Fidelity(
        n_true=int(np.count_nonzero(true_ids)),
        n_found=int(np.count_nonzero(found_ids)),
        n_same=int(np.count_nonzero(objects & (n_common >= min_iou * n_union))),
    )
