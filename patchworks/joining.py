"""Records of tiles → their labels, and which of these are one object."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patchworks.geometry.seam import SeamPlan
from patchworks.io.record import TileRecord
from patchworks.io.stage import Stage
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
    """

    tiles: np.ndarray
    n_labels: np.ndarray
    n_nodes: np.ndarray
    joins: np.ndarray


def join_records(stage: Stage, seams: SeamPlan, tiles: Sequence[int]) -> Joined:
    """Return what the records of tiles say, and their joins with the tiles after them."""
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
    return Joined(np.array(tiles, np.int64), counts[0], counts[1], np.concatenate(found))


JOINED = "joined-"
"""How the names begin under which the stage keeps what tiles said."""

JOINED_PARTS = ("tiles", "n_labels", "n_nodes", "joins")


def save_joined(stage: Stage, name: str, joined: Joined) -> None:
    """Write what some tiles said to the stage, for whoever numbers the objects."""
    for part in JOINED_PARTS:
        stage.write_array(f"{JOINED}{name}-{part}", getattr(joined, part))


def load_joined(stage: Stage, name: str) -> Joined | None:
    """Return what was written under a name, mapped from its files, or None."""
    parts = [stage.read_array(f"{JOINED}{name}-{part}") for part in JOINED_PARTS]
    return None if any(part is None for part in parts) else Joined(*parts)  # type: ignore[arg-type]


class Records:
    """The records last used; a tile's record is needed once for each of its seams."""

    def __init__(self, stage: Stage, max_bytes: int = RECORDS_BYTES) -> None:
        self.stage = stage
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.kept: OrderedDict[int, TileRecord] = OrderedDict()

    def __getitem__(self, tile: int) -> TileRecord:
        record = self.kept.pop(tile, None)
        if record is None:
            record = self.stage.read_record(tile)
            self.n_bytes += record.n_bytes
        self.kept[tile] = record
        while self.n_bytes > self.max_bytes and len(self.kept) > 1:
            _, dropped = self.kept.popitem(last=False)
            self.n_bytes -= dropped.n_bytes
        return record
