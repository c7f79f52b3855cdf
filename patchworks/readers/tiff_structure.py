"""Whether a TIFF file is whole: its chain of directories, and what they point at, lie inside it."""

from __future__ import annotations

import json
import math
import mmap
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 2, 8, 8, 8, 8)
"""Bytes of one value, by the number of its type."""
LAST_CHECKED_TAG = 1000
"""Tags above are private ones, which careless programs copy without what they point at."""
SUB_DIRECTORIES = 330
LET_GO = 256
"""Directories after which the mapped pages that they lie on are let go of."""
IMAGEJ_TAGS = (50838, 50839)
"""Private tags that are read: those of ImageJ."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How numbers are written in a directory: classic TIFF, or BigTIFF."""

    order: str
    count: str
    offset: str
    entry: str
    inline: int

    @classmethod
    def of(cls, head: bytes) -> Layout:
        """Return the layout that a file's first four bytes say."""
        order = {b"II": "<", b"MM": ">"}[head[:2]]
        if struct.unpack(f"{order}H", head[2:4])[0] == 43:
            return cls(order, f"{order}Q", f"{order}Q", f"{order}HHQQ", 8)
        return cls(order, f"{order}H", f"{order}I", f"{order}HHII", 4)


def check_chain(content: mmap.mmap) -> int:
    """Return the number of directories in a file's chain.

    Parameters
    ----------
    content : mmap.mmap
        The whole file.

    Raises
    ------
    ValueError
        If a directory, or the values of one of its public tags, lies outside the file: the file
        was cut off. tifffile goes on with what it finds, and so with fewer planes or with zeros.
    """
    layout = Layout.of(content[:4])
    at = _number(content, layout.offset, 8 if layout.inline == 8 else 4)
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        if len(seen) % LET_GO == 0 and hasattr(content, "madvise"):
            content.madvise(mmap.MADV_DONTNEED)
        at = _check_directory(content, layout, at, len(seen))
    return len(seen)


def _check_directory(content: mmap.mmap, layout: Layout, at: int, which: int) -> int:
    """Check one directory with those below it, and return where the next one is."""
    count = _number(content, layout.count, at)
    start = at + struct.calcsize(layout.count)
    stop = start + count * struct.calcsize(layout.entry)
    if stop > len(content):
        raise ValueError(f"cut off: directory {which} at byte {at} ends at {stop}, the file before")
    for i, entry in enumerate(struct.iter_unpack(layout.entry, content[start:stop])):
        tag, kind, n, value = entry
        if tag >= LAST_CHECKED_TAG and tag not in IMAGEJ_TAGS:
            continue
        n_bytes = n * (TYPE_BYTES[kind] if kind < len(TYPE_BYTES) else 0)
        inline = n_bytes <= layout.inline
        if not inline and value + n_bytes > len(content):
            raise ValueError(
                f"cut off: tag {tag} of directory {which} lies at bytes {value} to "
                f"{value + n_bytes} of {len(content)}"
            )
        if tag == SUB_DIRECTORIES and n_bytes:
            first = start + (i + 1) * struct.calcsize(layout.entry) - layout.inline
            _check_below(content, layout, first if inline else value, n, n_bytes // n, which)
    return _number(content, layout.offset, stop)


def _check_below(
    content: mmap.mmap, layout: Layout, at: int, n: int, n_bytes: int, which: int
) -> None:
    """Check the directories of smaller versions of an image, whose places are at a byte."""
    form = f"{layout.order}{'Q' if n_bytes == 8 else 'I'}"
    for i in range(n):
        place = _number(content, form, at + i * n_bytes)
        if place:
            _check_directory(content, layout, place, which)


def _number(content: mmap.mmap, form: str, at: int) -> int:
    n = struct.calcsize(form)
    if at + n > len(content):
        raise ValueError(f"cut off: a directory should be at byte {at} of {len(content)}")
    return int(struct.unpack(form, content[at : at + n])[0])


def check_extent(series: Any) -> None:
    """Raise ValueError unless a tifffile series is as large as its own first page says.

    Where planes are missing, tifffile logs it and makes a smaller series of what there is.
    """
    page, shape = series.keyframe, series.get_shape(False)
    expected = 0
    if page.is_shaped:
        expected = _extent_described(page.shaped_description)
    elif page.is_imagej and series.kind != "imagej" and page.index == 0:
        expected = page.size * int(page.parent.imagej_metadata.get("images", 1))
    if math.prod(shape) < expected:
        raise ValueError(
            f"cut off: the file describes an image of {expected} values and holds one of "
            f"shape {shape}"
        )


def _extent_described(text: str) -> int:
    """Return the number of values in an image that tifffile's own description says."""
    with suppress(ValueError, KeyError, TypeError):
        return math.prod(json.loads(text)["shape"])
    return 0
