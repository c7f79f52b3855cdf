"""The record of a tile: that it is done, how many labels it has, what its seams look like.

One small file per tile, and the one truth for "done": it is written after the staged labels, under
a temporary name, and renamed. Layout: magic, header length and CRC-32 of all that follows, a JSON
header, then the seam planes one after the other, each a zstd frame of C-ordered local labels.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from numcodecs import zstd

MAGIC = b"PWR1"
PREFIX = struct.Struct("<4sII")
LEVEL = 1
"""zstd's fastest level: on labels it is both smaller and quicker than blosc."""


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

    def to_bytes(self) -> bytes:
        """Return the record as the bytes of its file."""
        frames, index = [], []
        for key, plane in self.planes.items():
            frame = zstd.compress(np.ascontiguousarray(plane), LEVEL)
            index.append([key, plane.dtype.str, plane.shape, len(frame)])
            frames.append(bytes(frame))
        header = json.dumps(
            {
                "tile": self.tile,
                "n_labels": self.n_labels,
                "n_nodes": self.n_nodes,
                "planes": index,
            },
        ).encode()
        body = b"".join([header, *frames])
        return PREFIX.pack(MAGIC, len(header), crc32(body)) + body

    @classmethod
    def from_bytes(cls, content: bytes) -> TileRecord:
        """Return the record in a file's bytes; raises ValueError if it is damaged."""
        header, offset = read_header(content)
        if crc32(content[PREFIX.size :]) != PREFIX.unpack_from(content)[2]:
            raise ValueError("its checksum is wrong")
        try:
            planes = {}
            for key, dtype, shape, length in header["planes"]:
                frame = zstd.decompress(content[offset : offset + length])
                planes[key] = np.frombuffer(frame, dtype).reshape(shape)
                offset += length
            return cls(header["tile"], header["n_labels"], header["n_nodes"], planes)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def read_header(content: bytes) -> tuple[dict[str, Any], int]:
    """Return a record's header and where its planes begin; raises ValueError if damaged."""
    if len(content) < PREFIX.size:
        raise ValueError("the file is too short")
    magic, length, _ = PREFIX.unpack_from(content)
    if magic != MAGIC or len(content) < PREFIX.size + length:
        raise ValueError("the header is damaged")
    header = json.loads(content[PREFIX.size : PREFIX.size + length])
    if not isinstance(header, dict) or not {"tile", "n_labels", "n_nodes"} <= header.keys():
        raise ValueError("the header lacks an entry")
    return header, PREFIX.size + length
