"""Files of an array on a local disk → whole chunks, each decoded straight to where it is needed.

What `zarr` does for any array, done for the kinds that images mostly are: one file per chunk,
voxels in C order and little-endian, compressed by one codec or not at all. Through zarr, with the
compiled pipeline too, chunks are decoded to one place and copied to the next. Whatever is unusual
about a file is left to zarr, which reads it or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from math import prod
from operator import add
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from zarr.storage import LocalStore

from patchworks.geometry.box import Box
from patchworks.geometry.grid import ceil_div
from patchworks.io.location import ZarrArray

Decoder = Callable[[bytes, np.ndarray], np.ndarray]
"""Decodes a file into bytes, and returns those that were filled."""


def _as_it_is(content: bytes, out: np.ndarray) -> np.ndarray:
    found = np.frombuffer(content, np.uint8)
    if found.size == out.size:
        out[...] = found
    return found


codecs: Any = imagecodecs  # its types leave out what fills an array

DECODERS: dict[str, Decoder] = {
    "zstd": lambda content, out: codecs.zstd_decode(content, out=out),
    "blosc": lambda content, out: codecs.blosc_decode(content, numthreads=1, out=out),
    "": _as_it_is,
}


@dataclass(frozen=True)
class ChunkReader:
    """Reads boxes of an array, chunk by chunk.

    Parameters
    ----------
    array : zarr.Array
        One that `reader_of` found suitable.
    folder : pathlib.Path
        Of the array.
    decode : callable
        Decodes one file.
    """

    array: ZarrArray
    folder: Path
    decode: Decoder

    def read(self, box: Box, out: np.ndarray) -> bool:
        """Read the voxels of a box; return False if a file of it is not as expected.

        Parameters
        ----------
        box : Box
            With all axes of the array.
        out : numpy.ndarray
            Where to put them: shape ``box.shape``, contiguous.
        """
        chunks = self.array.chunks
        positions = list(self._positions(box))
        if len(positions) == 1 and box.shape == chunks:
            return self._decode(positions[0], out)
        chunk = np.empty(chunks, self.array.dtype)
        for position in positions:
            start = tuple([p * n for p, n in zip(position, chunks, strict=True)])
            common = box.intersect(Box(start, tuple(map(add, start, chunks))))
            if common is None or not self._decode(position, chunk):
                return False
            target = out[common.relative_to(box.start).slices]
            target[...] = chunk[common.relative_to(start).slices]
        return True

    def _positions(self, box: Box) -> Iterator[tuple[int, ...]]:
        return product(
            *[
                range(a // n, ceil_div(b, n))
                for a, b, n in zip(box.start, box.stop, self.array.chunks, strict=True)
            ]
        )

    def _decode(self, position: tuple[int, ...], out: np.ndarray) -> bool:
        """Decode a chunk, filled up where it ends beyond the array; False if it is unusual."""
        try:
            content = (self.folder / self.array.metadata.encode_chunk_key(position)).read_bytes()
        except FileNotFoundError:
            out.fill(self.array.fill_value or 0)
            return True
        with suppress(Exception):  # each codec raises what it likes, and zarr will say it
            return self.decode(content, out.reshape(-1).view(np.uint8)).size == out.nbytes
        return False


def reader_of(array: Any) -> ChunkReader | None:
    """Return what reads an array without zarr, or None where only zarr can."""
    store = getattr(array, "store", None)
    if not isinstance(store, LocalStore) or getattr(array, "shards", None) is not None:
        return None
    if array.dtype.kind not in "biuf" or not array.dtype.isnative or prod(array.shape) == 0:
        return None
    codec = _only_codec(array.metadata)
    if codec not in DECODERS:
        return None
    return ChunkReader(array, Path(store.root) / array.path, DECODERS[codec])


def _only_codec(metadata: Any) -> str | None:
    """Return the name of the one codec that compresses chunks, "" for none, None for others."""
    if metadata.zarr_format == 2:
        if metadata.order != "C" or metadata.filters:
            return None
        return getattr(metadata.compressor, "codec_id", None) if metadata.compressor else ""
    if metadata.chunk_grid.to_dict().get("name") != "regular":
        return None
    steps = [codec.to_dict() for codec in metadata.codecs]
    if not steps or steps[0]["name"] != "bytes" or len(steps) > 2:
        return None
    endian = steps[0].get("configuration", {}).get("endian", "little")
    if endian != "little":
        return None
    return str(steps[1]["name"]) if len(steps) == 2 else ""
