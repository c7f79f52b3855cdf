"""Objects in a plane → a few colours, of which neighbours have different ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

REACH = 6
"""Pixels between two objects that are still seen side by side."""

MOST_OBJECTS = 20_000
"""Objects of which neighbours are looked for: of more, each is a few pixels of a picture."""


def neighbour_colors(plane: np.ndarray, labels: np.ndarray, n_colors: int) -> np.ndarray:
    """Return a colour per label, so that neighbours in a plane do not share one.

    An object gets the colour of its number, ``label % n_colors``, unless a neighbour has it
    already: then the next that no neighbour has, or else the one that fewest have. Of more than
    `MOST_OBJECTS` each gets that of its number.

    Parameters
    ----------
    plane : numpy.ndarray
        Labels, integers, (y, x); 0 is background.
    labels : numpy.ndarray
        The labels to colour, sorted, each once.
    n_colors : int
        Colours there are.

    Returns
    -------
    numpy.ndarray
        Colour per label, from 0 to ``n_colors - 1``.

    Examples
    --------
    >>> plane = np.array([[3, 11, 0, 0, 19, 4]])
    >>> neighbour_colors(plane, np.array([3, 4, 11, 19]), 8).tolist()
    [3, 4, 5, 6]
    """
    if not 0 < len(labels) <= MOST_OBJECTS:
        return (labels % n_colors).astype(np.intp)
    ranked = np.searchsorted(labels, plane)
    ranked[ranked == len(labels)] = 0
    ranked = np.where(labels[ranked] == plane, ranked, -1)
    neighbours = _neighbours(ranked, len(labels))
    colors = np.full(len(labels), -1)
    for rank, label in enumerate(labels.tolist()):
        taken = colors[neighbours.get(rank, np.array([], int))]
        counts = np.bincount(taken[taken >= 0], minlength=n_colors)
        wanted = (label + np.arange(n_colors)) % n_colors
        colors[rank] = wanted[np.argmin(counts[wanted])]
    return colors


def _neighbours(ranked: np.ndarray, n: int) -> Mapping[int, np.ndarray]:
    """Return per object those whose pixels lie within `REACH` of its own, in a row or column."""
    found = []
    for step in range(1, REACH + 1):
        for one, other in (
            (ranked[step:], ranked[:-step]),
            (ranked[:, step:], ranked[:, :-step]),
            (ranked[step:, step:], ranked[:-step, :-step]),
            (ranked[step:, :-step], ranked[:-step, step:]),
        ):
            at = (one != other) & (one >= 0) & (other >= 0)
            pairs = np.unique(one[at].astype(np.int64) * n + other[at])
            found += [pairs, pairs % n * n + pairs // n]
    pairs = np.unique(np.concatenate(found))
    firsts, starts = np.unique(pairs // n, return_index=True)
    parts = np.split(pairs % n, starts[1:])
    return dict(zip(firsts.tolist(), parts, strict=False))
