"""Counts and joins → relabeling → labels of a region, global and contiguous."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.io.stage import Stage

ARRAYS = ("n_labels", "base", "first", "local", "target")


@dataclass(frozen=True)
class Relabeling:
    """The map from local labels to global labels 1..N: prefix sums, and joins as exceptions.

    A label that was joined to one before it is *absorbed*. Every other label keeps its rank: its
    global label is the base of its tile plus its local label, less the absorbed ones before it.

    Parameters
    ----------
    n_labels : numpy.ndarray
        Per tile, int64: local labels that own voxels.
    base : numpy.ndarray
        Per tile, int64: global labels given out before it; one more entry with N at the end.
    first : numpy.ndarray
        Per tile the index of its first absorbed label in `local`; one more entry at the end.
    local, target : numpy.ndarray
        Absorbed labels, sorted by tile and local label, and the global labels they become.
    """

    n_labels: np.ndarray
    base: np.ndarray
    first: np.ndarray
    local: np.ndarray
    target: np.ndarray

    @property
    def n_objects(self) -> int:
        """Number of objects, N."""
        return int(self.base[-1])

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the label image: uint32, or uint64 where N needs it."""
        return np.dtype(np.uint64 if self.n_objects > np.iinfo(np.uint32).max else np.uint32)

    def table(self, tile: int) -> np.ndarray:
        """Return the global label of each local label of a tile, entry 0 for background."""
        n_labels = int(self.n_labels[tile])
        absorbed = slice(int(self.first[tile]), int(self.first[tile + 1]))
        kept = np.ones(n_labels + 1, bool)
        kept[self.local[absorbed]] = kept[0] = False
        table = np.cumsum(kept) + int(self.base[tile])
        table[self.local[absorbed]] = self.target[absorbed]
        table[0] = 0
        return table.astype(self.dtype)

    def digest(self) -> str:
        """Return what stands for this very numbering."""
        return digest(*[np.asarray(getattr(self, name)) for name in ARRAYS])

    def save(self, stage: Stage) -> None:
        """Write it to the stage."""
        for name in ARRAYS:
            stage.write_array(f"relabeling-{name}", getattr(self, name))

    @classmethod
    def load(cls, stage: Stage) -> Relabeling:
        """Return the one in the stage, mapped from its files."""
        found = {name: stage.read_array(f"relabeling-{name}") for name in ARRAYS}
        return cls(**found)  # type: ignore[arg-type]


def build_relabeling(n_labels: np.ndarray, n_nodes: np.ndarray, joins: np.ndarray) -> Relabeling:
    """Return the relabeling of a run.

    Parameters
    ----------
    n_labels, n_nodes : numpy.ndarray
        Per tile the labels that own voxels, and those plus the ones of its halo.
    joins : numpy.ndarray
        ``(n, 4)`` int64: tile, local label, other tile, its local label.

    Returns
    -------
    Relabeling
        Contiguous, in the order of tiles and local labels; does not depend on the order of joins.

    Examples
    --------
    Two tiles of two labels each; the second of the first is the first of the second:

    >>> joins = np.array([[0, 2, 1, 1]])
    >>> relabeling = build_relabeling(np.array([2, 2]), np.array([2, 2]), joins)
    >>> relabeling.n_objects, relabeling.table(0).tolist(), relabeling.table(1).tolist()
    (3, [0, 1, 2], [0, 2, 3])
    """
    node_base = np.concatenate([[0], np.cumsum(n_nodes)])
    ends = np.stack(
        [node_base[joins[:, 0]] + joins[:, 1] - 1, node_base[joins[:, 2]] + joins[:, 3] - 1]
    )
    nodes, rank = np.unique(ends, return_inverse=True)
    a, b = rank.reshape(ends.shape)
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    tile = np.searchsorted(node_base, nodes, side="right") - 1
    local = nodes - node_base[tile] + 1
    owning = local <= n_labels[tile]  # labels of halos carry joins but are no objects
    tile, local, component = tile[owning], local[owning], component[owning]
    _, leader, member = np.unique(component, return_index=True, return_inverse=True)
    absorbed = np.ones(len(tile), bool)
    absorbed[leader] = False
    return _number(n_labels, tile, local, leader[member], absorbed)


def _number(
    n_labels: np.ndarray,
    tile: np.ndarray,
    local: np.ndarray,
    leader: np.ndarray,
    absorbed: np.ndarray,
) -> Relabeling:
    """Give out global labels; all arrays but the first run over the joined labels, in order."""
    n_tiles = len(n_labels)
    n_absorbed = np.bincount(tile[absorbed], minlength=n_tiles)
    base = np.concatenate([[0], np.cumsum(n_labels - n_absorbed)])
    first = np.concatenate([[0], np.cumsum(n_absorbed)])
    before = np.cumsum(absorbed) - absorbed - first[tile]  # absorbed earlier in the same tile
    own = base[tile] + local - before
    return Relabeling(n_labels, base, first, local[absorbed], own[leader][absorbed])


def gather_region(
    stage: Stage, grid: TileGrid, relabeling: Relabeling, region: Box
) -> np.ndarray | None:
    """Return the global labels of a region of the image, or None if it holds none."""
    out: np.ndarray | None = None
    for tile in grid.overlapping(region):
        common = tile.core.intersect(region)
        if common is None or relabeling.n_labels[tile.index] == 0:
            continue
        if out is None:
            out = np.zeros(region.shape, relabeling.dtype)
        staged = stage.read_labels(tile.index)[common.relative_to(tile.core.start).slices]
        table = relabeling.table(tile.index)
        target = out[common.relative_to(region.start).slices]
        for part, place in zip(staged, target, strict=True):
            place[...] = np.take(table, part, mode="clip")
    return out
