"""Objects in a plane → a few colours, of which neighbours have different ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NEAR, FAR = (1, 2, 3), (4, 6, 9, 13, 18)
"""Pixels at which neighbours are looked for: those that all but touch, and those seen together."""

MORE = 1000
"""How many far neighbours of a colour are as bad as a near one."""

SAMPLED = 16
"""Of so many pixels one is looked at first."""

MOST_OBJECTS = 20_000
"""Objects of which neighbours are looked for: of more, each is a few pixels of a picture."""


def pixel_colors(plane: np.ndarray, at: np.ndarray, n_colors: int) -> np.ndarray:
    """Return the colours of some pixels of a plane of labels, by `neighbour_colors`.

    Where there are more than `MOST_OBJECTS` each has the colour of its number.

    Parameters
    ----------
    plane : numpy.ndarray
        Labels, integers, (y, x); 0 is background.
    at : numpy.ndarray
        The pixels, bool, (y, x); none of background.
    n_colors : int
        Colours there are.
    """
    values = plane[at]
    too_many = len(np.unique(values[::SAMPLED])) > MOST_OBJECTS  # sorting all would take long
    labels = np.unique([] if too_many else values)
    if too_many or len(labels) > MOST_OBJECTS:
        return np.asarray(values % n_colors, np.intp)
    colors = neighbour_colors(plane, labels, n_colors)
    found: np.ndarray = colors[np.searchsorted(labels, values)]
    return found


def neighbour_colors(plane: np.ndarray, labels: np.ndarray, n_colors: int) -> np.ndarray:
    """Return a colour per label, so that neighbours in a plane do not share one.

    An object gets the colour of its number, ``label % n_colors``, unless a neighbour has it
    already: then the next that no neighbour has, or else the one that fewest have.

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
    if not len(labels):
        return np.zeros(0, np.intp)
    ranked = np.searchsorted(labels, plane)
    ranked[ranked == len(labels)] = 0
    ranked = np.where(labels[ranked] == plane, ranked, -1)
    near, far = (_neighbours(ranked, len(labels), steps) for steps in (NEAR, FAR))
    colors, nobody = np.full(len(labels), -1), np.zeros(0, int)
    for rank, label in enumerate(labels.tolist()):
        by_near, by_far = (colors[group.get(rank, nobody)] for group in (near, far))
        taken = MORE * np.bincount(by_near[by_near >= 0], minlength=n_colors)
        taken += np.bincount(by_far[by_far >= 0], minlength=n_colors)
        wanted = (label + np.arange(n_colors)) % n_colors
        colors[rank] = wanted[np.argmin(taken[wanted])]
    return colors


def _neighbours(ranked: np.ndarray, n: int, steps: tuple[int, ...]) -> Mapping[int, np.ndarray]:
    """Return per object those whose pixels lie some steps from its own, in eight directions."""
    found = []
    for step in [s for s in steps if s < min(ranked.shape)]:
        for one, other in (
            (ranked[step:], ranked[:-step]),
            (ranked[:, step:], ranked[:, :-step]),
            (ranked[step:, step:], ranked[:-step, :-step]),
            (ranked[step:, :-step], ranked[:-step, step:]),
        ):
            at = (one != other) & (one >= 0) & (other >= 0)
            pairs = np.unique(one[at].astype(np.int64) * n + other[at])
            found += [pairs, pairs % n * n + pairs // n]
    pairs = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
    firsts, starts = np.unique(pairs // n, return_index=True)
    parts = np.split(pairs % n, starts[1:])
    return dict(zip(firsts.tolist(), parts, strict=False))
