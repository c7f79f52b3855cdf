"""Labels of a tile → staged labels of its core, and its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from patchworks.errors import SegmenterError
from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile
from patchworks.geometry.seam import SeamPlan
from patchworks.io.record import LABELS, TINY_BYTES, TileRecord, smallest_unsigned
from patchworks.io.stage import Stage
from patchworks.io.staged_labels import (
    MIN_RUN,
    LabelRuns,
    LabelVoxels,
    PartLabels,
    StagedLabels,
    WholeLabels,
    find_runs,
)

TINY = 2**12
"""Voxels of a core in which no runs are looked for: its voxels are few enough."""

DENSE = 4
"""Ids up to this many times the voxels go through a table; larger ones are ranked first."""


def stage_tile(
    stage: Stage,
    seams: SeamPlan,
    tile: Tile,
    labels: np.ndarray,
    segmenter_name: str = "the function",
    part: Tile | None = None,
) -> TileRecord:
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
        Labels of everything the tile reads, or its part, integers >= 0.
    segmenter_name : str
        What made them, for the message.
    part : Tile, optional
        The part of the tile that the function was handed; beyond it labels are 0.

    Returns
    -------
    TileRecord
        As it was written.

    Raises
    ------
    SegmenterError
        If a label is negative.
    """
    part = part or tile
    core = labels[part.core_in_read.slices]
    runs = None if core.size <= TINY else find_runs(core)
    values = core.ravel() if runs is None else runs.values
    views = _views(seams, tile, part)
    seen = [labels[view.seen.relative_to(part.read.start).slices] for view in views]
    least = int(min([values.min(), *[plane.min() for plane in seen]]))
    check_not_negative(least, tile, segmenter_name)
    values, planes, largest = ranked(values, seen)
    table, n_labels, n_nodes = _local_ids(values, planes, largest)
    nodes = table.astype(smallest_unsigned(n_nodes))
    kept = {
        view.key: view.whole(nodes[plane])
        for view, plane in zip(views, planes, strict=True)
        if plane.any()
    }
    if n_labels:
        local = table.astype(smallest_unsigned(n_labels))
        values = local.take(values, mode="clip")
        staged = _placed(_staged(core, runs, values), tile, part)
        if isinstance(staged, LabelVoxels) and staged.labels.nbytes <= TINY_BYTES:
            kept[LABELS] = staged.labels
        else:
            stage.write_labels(tile.index, staged)
    record = TileRecord(tile.index, n_labels, n_nodes, kept)
    stage.write_record(record)
    return record


def check_not_negative(least: int, tile: Tile, segmenter_name: str) -> None:
    """Raise SegmenterError if the least label of a tile is negative."""
    if least < 0:
        raise SegmenterError(
            f"tile {tile.index} at {tile.core.start}: {segmenter_name!r} returned the negative "
            f"label {least}; return 0 for background and positive numbers for objects"
        )


@dataclass(frozen=True, slots=True)
class _View:
    """Seam planes of a tile, and as much of them as its part sees."""

    key: str
    box: Box
    seen: Box

    def whole(self, nodes: np.ndarray) -> np.ndarray:
        """Return the planes, of which these are the nodes that are seen."""
        if self.seen == self.box:
            return nodes
        planes: np.ndarray = np.zeros(self.box.shape, nodes.dtype)
        planes[self.seen.relative_to(self.box.start).slices] = nodes
        return planes


def _views(seams: SeamPlan, tile: Tile, part: Tile) -> list[_View]:
    """Return the seam planes of a tile of which its part sees something."""
    views = []
    for plane, box in seams.planes(tile):
        seen = box.intersect(part.read)
        if seen is not None:
            views.append(_View(plane.key, box, seen))
    return views


def _placed(labels: WholeLabels, tile: Tile, part: Tile) -> StagedLabels:
    """Return the labels of a part's core as those of the tile's."""
    if part.core == tile.core:
        return labels
    shape, start = tile.core.shape, part.core.relative_to(tile.core.start).start
    found = PartLabels(shape, start, labels)
    # A tiny core's labels go into the record, where there is no saying which part they are of.
    is_tiny = (
        isinstance(labels, LabelVoxels) and tile.core.size * labels.labels.itemsize <= TINY_BYTES
    )
    return LabelVoxels(found.to_array()) if is_tiny else found


def _staged(core: np.ndarray, runs: LabelRuns | None, values: np.ndarray) -> WholeLabels:
    """Return the labels of a core as they are staged: those of its runs, or of its voxels."""
    if runs is None:
        return LabelVoxels(values.reshape(core.shape))
    found = replace(runs, values=values)
    is_tiny = core.size * values.itemsize <= TINY_BYTES
    return LabelVoxels(found.to_array()) if is_tiny or len(values) * MIN_RUN > core.size else found


def stage_empty_tile(stage: Stage, tile: Tile) -> TileRecord:
    """Write the record of a tile that holds nothing."""
    record = TileRecord(tile.index, 0, 0)
    stage.write_record(record)
    return record


def ranked(
    values: np.ndarray, planes: Sequence[np.ndarray]
) -> tuple[np.ndarray, Sequence[np.ndarray], int]:
    """Return labels whose ids are not much more than their number, and the largest of them.

    So few that a table can map them.
    """
    parts = (values, *planes)
    largest = max([int(part.max()) for part in parts])
    if largest <= DENSE * sum([part.size for part in parts]) + 1024:
        return values, planes, largest
    ids = np.unique(np.concatenate([part.ravel() for part in parts]))
    values, *planes = [np.searchsorted(ids, part) + (ids[0] != 0) for part in parts]
    return values, planes, len(ids)


def _where_they_change(plane: np.ndarray) -> np.ndarray:
    """Return the labels of a plane, each about once: far fewer to be noted than voxels."""
    flat = plane.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.append(flat.take(ends), flat[-1:])


def _local_ids(
    values: np.ndarray, planes: Sequence[np.ndarray], largest: int
) -> tuple[np.ndarray, int, int]:
    """Return the table id -> local id, the number of labels in the core, and that of all nodes."""
    owned = np.zeros(largest + 1, bool)
    owned[values] = True
    seen = np.zeros(largest + 1, bool)
    for plane in planes:
        seen[_where_they_change(plane)] = True
    owned[0] = seen[0] = False
    halo_only = seen & ~owned
    n_labels, n_halo = int(owned.sum()), int(halo_only.sum())
    table = np.zeros(largest + 1, np.int64)
    table[owned] = np.arange(1, n_labels + 1)
    table[halo_only] = np.arange(n_labels + 1, n_labels + n_halo + 1)
    return table, n_labels, n_labels + n_halo
