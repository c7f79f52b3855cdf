"""The record of a tile: that it is done, how many labels it has, what its seams look like.

One small file per tile, and the one truth for "done": it is written after the staged labels, under
a temporary name, and renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from patchworks.io.frames import pack, read_facts, unpack

LABELS = "labels"
"""Name among the planes of a tiny tile's staged labels: one file is half as dear as two."""

TINY_BYTES = 2**15


def smallest_unsigned(largest: int) -> np.dtype:
    """Return the smallest unsigned dtype that holds `largest`.

    Examples
    --------
    >>> smallest_unsigned(255), smallest_unsigned(256)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.min_scalar_type(largest)


@dataclass(frozen=True, slots=True)
class TileRecord:
    """What is kept of a tile beside its staged labels.

    Parameters
    ----------
    tile : int
        Index of the tile.
    n_labels : int
        Local labels 1..n_labels own voxels of the core; 0 means that nothing was staged.
    n_nodes : int
        Local labels up to n_nodes appear in the seam planes; those above n_labels lie in the halo
        only and own no voxel here, but carry an object from one neighbour to the next.
    planes : mapping of str to numpy.ndarray
        Local labels on each side's seam planes; a side with nothing on it has none. And of a tiny
        tile its staged labels.
    """

    tile: int
    n_labels: int
    n_nodes: int
    planes: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of its planes in memory."""
        return sum([plane.nbytes for plane in self.planes.values()])

    def to_bytes(self) -> bytes:
        """Return the record as the bytes of its file."""
        facts = {"tile": self.tile, "n_labels": self.n_labels, "n_nodes": self.n_nodes}
        return pack(facts, self.planes)

    @classmethod
    def from_bytes(cls, content: bytes) -> TileRecord:
        """Return the record in a file's bytes; raises ValueError if it is damaged."""
        facts, planes = unpack(content)
        try:
            return cls(facts["tile"], facts["n_labels"], facts["n_nodes"], planes)
        except KeyError as error:
            raise ValueError(f"the header lacks an entry: {error}") from error


def read_counts(content: bytes) -> tuple[int, int]:
    """Return number of labels and of nodes from the beginning of a record's file.

    Raises ValueError if that is damaged.
    """
    facts, _ = read_facts(content)
    try:
        return int(facts["n_labels"]), int(facts["n_nodes"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the header lacks an entry: {error}") from error
