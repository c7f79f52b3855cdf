"""Labels of a tile → staged labels of its core, and its record."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from patchworks.geometry.grid import Tile
from patchworks.geometry.seam import SeamPlan
from patchworks.io.record import LABELS, TINY_BYTES, TileRecord, smallest_unsigned
from patchworks.io.stage import Stage

DENSE = 4
"""Ids up to this many times the voxels go through a table; larger ones are ranked first."""


SMALL = 2**16
"""Voxels of an array that fits the processor's cache."""


def stage_tile(stage: Stage, seams: SeamPlan, tile: Tile, labels: np.ndarray) -> TileRecord:
    """Write a tile's staged labels, then its record.

    Labels of the core become 1..n in the order of their ids; those that appear only on seam planes
    (in the halo) become n+1..m. The staged dtype is the smallest that holds n.

    Parameters
    ----------
    stage : Stage
        Where to write.
    seams : SeamPlan
        Which planes to keep.
    tile : Tile
        The tile.
    labels : numpy.ndarray
        Labels of everything the tile reads, integers >= 0.

    Returns
    -------
    TileRecord
        As it was written.
    """
    dense, largest = _dense(labels)
    planes = {
        plane.key: dense[box.relative_to(tile.read.start).slices]
        for plane, box in seams.planes(tile)
    }
    core = dense[tile.core_in_read.slices]
    table, n_labels, n_nodes = _local_ids(core, list(planes.values()), largest)
    nodes = table.astype(smallest_unsigned(n_nodes))
    kept = {key: nodes[plane] for key, plane in planes.items() if plane.any()}
    if n_labels:
        staged = _mapped(core, table.astype(smallest_unsigned(n_labels)))
        if staged.nbytes <= TINY_BYTES:
            kept[LABELS] = staged
        else:
            stage.write_labels(tile.index, staged)
    record = TileRecord(tile.index, n_labels, n_nodes, kept)
    stage.write_record(record)
    return record


def stage_empty_tile(stage: Stage, tile: Tile) -> TileRecord:
    """Write the record of a tile that holds nothing."""
    record = TileRecord(tile.index, 0, 0)
    stage.write_record(record)
    return record


def _dense(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return labels whose ids are not much more than their number, and the largest of them.

    So few that a table can map them.
    """
    largest = int(labels.max()) if labels.size else 0
    if largest <= DENSE * labels.size + 1024:
        return labels, largest
    ids, ranks = np.unique(labels, return_inverse=True)
    ranks = ranks.reshape(labels.shape) + (ids[0] != 0)
    return ranks, int(ranks.max())


def _local_ids(
    core: np.ndarray, planes: list[np.ndarray], largest: int
) -> tuple[np.ndarray, int, int]:
    """Return the table id -> local id, the number of labels in the core, and that of all nodes."""
    owned = np.zeros(largest + 1, bool)
    for part in _parts(core):
        owned[_first_of_runs(part)] = True
    seen = np.zeros(largest + 1, bool)
    for plane in planes:
        seen[plane] = True
    owned[0] = seen[0] = False
    halo_only = seen & ~owned
    n_labels, n_halo = int(owned.sum()), int(halo_only.sum())
    table = np.zeros(largest + 1, np.int64)
    table[owned] = np.arange(1, n_labels + 1)
    table[halo_only] = np.arange(n_labels + 1, n_labels + n_halo + 1)
    return table, n_labels, n_labels + n_halo


def _first_of_runs(labels: np.ndarray) -> np.ndarray:
    """Return the label of every run of equal ones: all labels there are, and not every voxel's."""
    flat = np.ascontiguousarray(labels).ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.append(flat[starts + 1], flat[:1])


def _mapped(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return ``table[labels]``, part by part."""
    out = np.empty(labels.shape, table.dtype)
    for part, target in zip(_parts(labels), _parts(out), strict=True):
        np.take(table, part, out=target, mode="clip")
    return out


def _parts(array: np.ndarray) -> Iterable[np.ndarray]:
    """Return the parts along the first axis, or the whole if it is small or has but two axes.

    Parts fit the processor's cache; each has its price.
    """
    return (array,) if array.ndim < 3 or array.size <= SMALL else array
