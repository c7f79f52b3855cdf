"""Counts and joins → relabeling → labels of a region, global and contiguous."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.geometry.components import components
from patchworks.geometry.grid import Tile, TileGrid, ceil_div
from patchworks.io.stage import Stage
from patchworks.io.staged_labels import PartLabels, StagedLabels, WholeLabels

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

    def labels_of(self, tile: np.ndarray, local: np.ndarray) -> np.ndarray:
        """Return the global labels of local labels > 0 of tiles, int64."""
        n_tiles = len(self.n_labels)
        absorbed = np.repeat(np.arange(n_tiles), np.diff(self.first)) << 32 | self.local
        wanted = tile << 32 | local
        place = np.searchsorted(absorbed, wanted)
        found: np.ndarray = self.base[tile] + local - (place - self.first[tile])
        met = np.flatnonzero(place < len(absorbed))
        met = met[absorbed[place[met]] == wanted[met]]
        found[met] = self.target[place[met]]
        return found

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


def build_relabeling(
    n_labels: np.ndarray, n_nodes: np.ndarray, joins: np.ndarray | Sequence[np.ndarray]
) -> Relabeling:
    """Return the relabeling of a run, in time and memory linear in tiles and joins.

    Labels that no seam joins are counted and never looked at.

    Parameters
    ----------
    n_labels, n_nodes : numpy.ndarray
        Per tile the labels that own voxels, and those plus the ones of its halo.
    joins : numpy.ndarray, or several
        ``(n, 4)`` integers: tile, local label, other tile, its local label.

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
    parts = [joins] if isinstance(joins, np.ndarray) else joins
    node_base = np.concatenate([[0], np.cumsum(n_nodes, dtype=np.int64)])
    ends = _nodes_of(parts, node_base)
    nodes, rank = _ranked(ends, int(node_base[-1]))
    del ends
    component = components(rank[0], rank[1], len(nodes))
    del rank
    n_in_tile = np.diff(np.searchsorted(nodes, node_base))
    tile = np.repeat(np.arange(len(n_nodes), dtype=np.int32), n_in_tile)
    local = nodes - node_base[tile] + 1
    del nodes
    owning = local <= n_labels[tile]  # labels of halos carry joins but are no objects
    tile, local, component = tile[owning], local[owning], component[owning]
    place = np.arange(len(tile))
    first = np.zeros(int(component.max(initial=-1)) + 1, np.int64)
    first[component[::-1]] = place[::-1]  # of those that are written to one place the last stays
    leader = first[component]
    return _number(n_labels, tile, local, leader, leader != place)


def _nodes_of(joins: Sequence[np.ndarray], node_base: np.ndarray) -> np.ndarray:
    """Return the joins as pairs of nodes, ``(2, n)`` int64: labels counted over all tiles."""
    ends = np.empty((2, sum(map(len, joins))), np.int64)
    start = 0
    for part in joins:
        here = slice(start, start + len(part))
        ends[0, here] = node_base[part[:, 0]] + part[:, 1] - 1
        ends[1, here] = node_base[part[:, 2]] + part[:, 3] - 1
        start += len(part)
    return ends


WORD = 64
"""Nodes of a word of a bit set."""

PART = 2**22
"""Nodes looked at in one go."""


def _ranked(ends: np.ndarray, n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes that are joined, in order, and the rank of each end among them.

    A set of bits and the number of ones before each word of it (Jacobson 1989) take a sixth of a
    byte per node, and no sorting.
    """
    is_joined = np.zeros(ceil_div(n_nodes, WORD) * WORD, bool)
    for axis in ends:
        is_joined[axis] = True
    nodes = np.flatnonzero(is_joined)
    words = np.packbits(is_joined, bitorder="little").view(np.uint64)
    del is_joined
    ones = np.bitwise_count(words)
    before = np.cumsum(ones, dtype=np.int64) - ones
    rank = np.empty(ends.shape, np.int32 if len(nodes) < 2**31 else np.int64)
    flat, ranks = ends.reshape(-1), rank.reshape(-1)
    for start in range(0, flat.size, PART):
        node = flat[start : start + PART]
        word = node // WORD
        lower = (np.uint64(1) << (node % WORD).astype(np.uint64)) - np.uint64(1)
        ranks[start : start + PART] = before[word] + np.bitwise_count(words[word] & lower)
    return nodes, rank


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
    return Relabeling(n_labels, base, first, local[absorbed], own[leader[absorbed]])


@dataclass(frozen=True, slots=True)
class RegionLabels:
    """The global labels of a region of the image, worked out where they are read.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the label image.
    parts : sequence
        Disjoint boxes of the image, each within a tile's core, and their global labels. There are
        none elsewhere.
    """

    dtype: np.dtype
    parts: Sequence[tuple[Box, WholeLabels]]

    @property
    def labelled(self) -> Box:
        """A box of the image that holds all voxels with labels."""
        return Box.hull([part for part, _ in self.parts])

    def read(self, box: Box) -> np.ndarray:
        """Return the labels of a box of the image within the region, shape ``box.shape``."""
        out: np.ndarray | None = None
        for part, labels in self.parts:
            common = part.intersect(box)
            if common is None:
                continue
            found = _labels_in(common.relative_to(part.start), labels)
            if common == box:
                return found
            if out is None:
                out = np.zeros(box.shape, self.dtype)
            out[common.relative_to(box.start).slices] = found
        return np.zeros(box.shape, self.dtype) if out is None else out


def _labels_in(box: Box, labels: WholeLabels) -> np.ndarray:
    """Return the labels in a box of a part."""
    if box.ndim == 2:
        plane: np.ndarray = labels.planes(0, 1)[0]
        return plane[box.slices]
    *outer, nz = labels.shape[:-2]
    z, within = box.slices[-3], box.slices[-2:]
    stacks = []
    for at in product(*map(range, box.start[:-3], box.stop[:-3])):
        base = nz * int(np.ravel_multi_index(at, outer)) if at else 0
        stacks.append(labels.planes(base + z.start, base + z.stop)[:, *within])
    found: np.ndarray = (stacks[0] if len(stacks) == 1 else np.stack(stacks)).reshape(box.shape)
    return found


def gather_region(
    stage: Stage, grid: TileGrid, relabeling: Relabeling, region: Box
) -> RegionLabels | None:
    """Return the global labels of a region of the image, or None if it holds none."""
    parts = [
        _placed(tile, stage.read_labels(tile.index).mapped(relabeling.table(tile.index)))
        for tile in grid.overlapping(region)
        if relabeling.n_labels[tile.index]
    ]
    return RegionLabels(relabeling.dtype, parts) if parts else None


def _placed(tile: Tile, labels: StagedLabels) -> tuple[Box, WholeLabels]:
    """Return which box of the image a tile's labels are of, and the labels."""
    if isinstance(labels, PartLabels):
        return labels.box.placed_at(tile.core.start), labels.labels
    return tile.core, labels
