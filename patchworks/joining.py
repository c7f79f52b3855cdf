"""Records of tiles → their labels, and which of these are one object."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from patchworks.geometry.grid import TileGrid
from patchworks.geometry.seam import SeamPlan
from patchworks.io.record import TileRecord
from patchworks.io.stage import Stage
from patchworks.io.staged_labels import LabelRuns
from patchworks.steps.links import Overlaps, best_partners, extents_of, overlaps_of, runs_of
from patchworks.steps.merge import Relabeling
from patchworks.steps.seams import join_contact

RECORDS_BYTES = 2**26
"""Seam planes kept while seams are judged, in each worker: a tile meets the next row again."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What the records of some tiles say: their labels, and which are one object.

    Parameters
    ----------
    tiles : numpy.ndarray
        Indices, int64.
    n_labels, n_nodes : numpy.ndarray
        Of each, int64: labels that own voxels, and those plus the ones of its halo.
    joins : numpy.ndarray
        ``(n, 4)`` uint32: tile, local label, other tile (one after it), its local label.
    extents : numpy.ndarray
        If slices are to be linked: per local label of these tiles, in order, ``(n, 2)`` int64:
        voxels, and its first voxel in the image.
    overlaps : numpy.ndarray
        ``(n, 6)`` int64: axis, tile, local label, the next tile on that axis, its local label, and
        the voxels that the two share, laid over each other.
    """

    tiles: np.ndarray
    n_labels: np.ndarray
    n_nodes: np.ndarray
    joins: np.ndarray
    extents: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    overlaps: np.ndarray = field(default_factory=lambda: np.empty((0, 6), np.int64))


def join_records(
    stage: Stage, seams: SeamPlan, tiles: Sequence[int], linked: Sequence[int] = ()
) -> Joined:
    """Return what the records of tiles say, and their joins with the tiles after them.

    Parameters
    ----------
    stage : Stage
        Where the records are.
    seams : SeamPlan
        How seams are judged.
    tiles : sequence of int
        Indices.
    linked : sequence of int
        Axes on which labels are also compared with those that lie behind them in the next tile.
    """
    records = Records(stage)
    found = [np.empty((0, 4), np.uint32)]
    counts = np.zeros((2, len(tiles)), np.int64)
    for place, index in enumerate(tiles):
        record = records[index]
        counts[:, place] = record.n_labels, record.n_nodes
        if not record.planes:
            continue
        for contact in seams.contacts(index):
            pairs = join_contact(seams, contact, records.__getitem__)
            if len(pairs):
                ends = np.empty((len(pairs), 4), np.uint32)
                ends[:, 0], ends[:, 1] = contact.tile, pairs[:, 0]
                ends[:, 2], ends[:, 3] = contact.other, pairs[:, 1]
                found.append(ends)
    compared = compare_slices(stage, seams.grid, tiles, linked) if linked else ()
    joins = np.concatenate(found)
    return Joined(np.array(tiles, np.int64), counts[0], counts[1], joins, *compared)


def compare_slices(
    stage: Stage, grid: TileGrid, tiles: Sequence[int], axes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return `extents` and `overlaps` of tiles, as in `Joined`, from their staged labels."""
    staged = _StagedRuns(stage)
    extents, overlaps = [np.empty((0, 2), np.int64)], [np.empty((0, 6), np.int64)]
    for index in tiles:
        n_labels, _ = stage.read_counts(index)
        if not n_labels:
            continue
        ours = staged[index]
        extents.append(extents_of(ours, n_labels, grid[index], grid.shape))
        for axis in axes:
            other = grid.next_on(axis, index)
            if other is None or not stage.read_counts(other)[0]:
                continue
            found = overlaps_of(ours, staged[other])
            ends = np.empty((len(found), 6), np.int64)
            ends[:, 0], ends[:, 1], ends[:, 3] = axis, index, other
            ends[:, [2, 4, 5]] = found
            overlaps.append(ends)
    return np.concatenate(extents), np.concatenate(overlaps)


def link(
    relabeling: Relabeling, joined: Sequence[Joined], axis: int, least_iou: float
) -> np.ndarray:
    """Return the joins of objects with those that lie behind them on an axis: mutual-best IoU.

    Parameters
    ----------
    relabeling : Relabeling
        Which labels are one object so far.
    joined : sequence of Joined
        Of all tiles, in any order.
    axis : int
        One of those that were compared.
    least_iou : float
        Smallest IoU of two objects that are one.

    Returns
    -------
    numpy.ndarray
        ``(n, 4)`` int64, as `Joined.joins`.
    """
    sizes = np.zeros(relabeling.n_objects + 1, np.int64)
    first = np.full(relabeling.n_objects + 1, np.iinfo(np.int64).max)
    for part in joined:
        tile = np.repeat(part.tiles, part.n_labels)
        start = np.repeat(np.cumsum(part.n_labels) - part.n_labels, part.n_labels)
        ids = relabeling.labels_of(tile, np.arange(len(tile)) - start + 1)
        np.add.at(sizes, ids, part.extents[:, 0])
        np.minimum.at(first, ids, part.extents[:, 1])
    found = np.concatenate([part.overlaps[part.overlaps[:, 0] == axis, 1:] for part in joined])
    ours = relabeling.labels_of(found[:, 0], found[:, 1])
    theirs = relabeling.labels_of(found[:, 2], found[:, 3])
    best = best_partners(Overlaps(ours, theirs, found[:, 4]), sizes, first, least_iou)
    return found[best, :4]


JOINED = "joined-"
"""How the names begin under which the stage keeps what tiles said."""

JOINED_PARTS = ("tiles", "n_labels", "n_nodes", "joins")

LINKED_PARTS = ("extents", "overlaps")
"""Written before the others, and only where there is anything in them."""


def save_joined(stage: Stage, name: str, joined: Joined) -> None:
    """Write what some tiles said to the stage, for whoever numbers the objects.

    Parameters
    ----------
    stage : Stage
        Where.
    name : str
        Names the tiles, and how they were compared.
    joined : Joined
        What they said.
    """
    for part in (*(LINKED_PARTS if len(joined.extents) else ()), *JOINED_PARTS):
        stage.write_array(f"{JOINED}{name}-{part}", getattr(joined, part))


def load_joined(stage: Stage, name: str) -> Joined | None:
    """Return what was written under a name, mapped from its files, or None."""
    parts = {part: stage.read_array(f"{JOINED}{name}-{part}") for part in JOINED_PARTS}
    if any(part is None for part in parts.values()):
        return None
    more = {part: stage.read_array(f"{JOINED}{name}-{part}") for part in LINKED_PARTS}
    parts |= {name: part for name, part in more.items() if part is not None}
    return Joined(**parts)  # type: ignore[arg-type]


Held = TypeVar("Held")


class _LastUsed(Generic[Held]):
    """What was read of tiles, the last used of it, within a number of bytes."""

    def __init__(
        self, read: Callable[[int], Held], size: Callable[[Held], int], max_bytes: int
    ) -> None:
        self.read = read
        self.size = size
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.kept: OrderedDict[int, Held] = OrderedDict()

    def __getitem__(self, tile: int) -> Held:
        found = self.kept.pop(tile, None)
        if found is None:
            found = self.read(tile)
            self.n_bytes += self.size(found)
        self.kept[tile] = found
        while self.n_bytes > self.max_bytes and len(self.kept) > 1:
            _, dropped = self.kept.popitem(last=False)
            self.n_bytes -= self.size(dropped)
        return found


class Records(_LastUsed[TileRecord]):
    """The records last used; a tile's record is needed once for each of its seams."""

    def __init__(self, stage: Stage, max_bytes: int = RECORDS_BYTES) -> None:
        super().__init__(
            lambda tile: stage.read_record(tile), lambda record: record.n_bytes, max_bytes
        )


class _StagedRuns(_LastUsed[LabelRuns]):
    """The staged labels last used; those of a tile are compared with two others on each axis."""

    def __init__(self, stage: Stage, max_bytes: int = RECORDS_BYTES) -> None:
        super().__init__(
            lambda tile: runs_of(stage.read_labels(tile)),
            lambda runs: runs.values.nbytes + runs.lengths.nbytes,
            max_bytes,
        )
