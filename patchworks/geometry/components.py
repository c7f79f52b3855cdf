"""Pairs that belong together → the groups they make."""

from __future__ import annotations

import numpy as np


def preload() -> None:
    """Import what `components` needs, while there is other work to do."""
    import scipy.sparse.csgraph  # noqa: F401


def components(first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """Return the component of each of `n` nodes, of which pairs belong together.

    Parameters
    ----------
    first, second : numpy.ndarray
        The two nodes of each pair, 0 to n - 1.
    n : int
        Number of nodes.

    Returns
    -------
    numpy.ndarray
        Integers from 0 in the order of each component's first node, shape ``(n,)``.

    Examples
    --------
    >>> components(np.array([0, 4]), np.array([3, 1]), 5).tolist()
    [0, 1, 2, 0, 1]
    """
    # Late: SciPy's graphs take a quarter of the time in which a worker process is up.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(n, n))
    found: np.ndarray = connected_components(graph.tocsr(), directed=False)[1]
    return found
