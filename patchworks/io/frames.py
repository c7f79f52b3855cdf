"""Arrays with a few facts about them → the bytes of one file, and back.

Layout: magic, header length and CRC-32 of all that follows, a JSON header, then the arrays one
after the other, each a zstd frame of its values in C order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np
from numcodecs import zstd

MAGIC = b"PWF1"
PREFIX = struct.Struct("<4sII")
LEVEL = 1
"""zstd's fastest level: on labels it is both smaller and quicker than blosc."""

ARRAYS = "arrays"


def pack(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return facts, which JSON can say, and arrays as the bytes of a file."""
    frames, index = [], []
    for name, array in arrays.items():
        frame = zstd.compress(np.ascontiguousarray(array), LEVEL)
        index.append([name, array.dtype.str, array.shape, len(frame)])
        frames.append(frame)
    header = json.dumps({**facts, ARRAYS: index}).encode()
    body = b"".join([header, *frames])
    return PREFIX.pack(MAGIC, len(header), crc32(body)) + body


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the facts and the arrays of a file; raises ValueError if it is damaged.

    Examples
    --------
    >>> facts, arrays = unpack(pack({"tile": 3}, {"labels": np.array([1, 1, 2], "uint8")}))
    >>> facts["tile"], arrays["labels"]
    (3, array([1, 1, 2], dtype=uint8))
    """
    facts, offset = read_facts(content)
    if crc32(memoryview(content)[PREFIX.size :]) != PREFIX.unpack_from(content)[2]:
        raise ValueError("its checksum is wrong")
    try:
        arrays = {}
        for name, dtype, shape, length in facts[ARRAYS]:
            frame = memoryview(content)[offset : offset + length]
            arrays[name] = _decompressed(frame, np.dtype(dtype), tuple(shape))
            offset += length
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return facts, arrays


def _decompressed(frame: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    found: np.ndarray = np.empty(shape, dtype)
    if found.size:
        # Into memory of numpy's: it comes in huge pages, which halves the time.
        zstd.decompress(frame, found)
    return found


def read_facts(content: bytes) -> tuple[dict[str, Any], int]:
    """Return a file's facts and where its arrays begin; raises ValueError if they are damaged."""
    if len(content) < PREFIX.size:
        raise ValueError("the file is too short")
    magic, length, _ = PREFIX.unpack_from(content)
    if magic != MAGIC or len(content) < PREFIX.size + length:
        raise ValueError("the header is damaged")
    facts = json.loads(content[PREFIX.size : PREFIX.size + length])
    if not isinstance(facts, dict) or ARRAYS not in facts:
        raise ValueError("the header lacks an entry")
    return facts, PREFIX.size + length
