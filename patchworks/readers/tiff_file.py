"""A TIFF file whose directories have been parsed, kept for the images that are asked for next."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tifffile

from patchworks.errors import InputError
from patchworks.readers.ome_xml import OmeImage, metadata_file
from patchworks.readers.tiff_metadata import ome_images_of
from patchworks.readers.tiff_structure import check_chain


@dataclass(frozen=True)
class Parsed:
    """A file, open, and what OME-XML says of each of its series, or None."""

    stamp: tuple[Path, int, int]
    tif: tifffile.TiffFile
    images: tuple[OmeImage | None, ...]


class _Recent(threading.local):
    """The file that a thread has parsed last, closed."""

    parsed: Parsed | None = None


_RECENT = _Recent()


@contextmanager
def parsed(path: Path) -> Iterator[Parsed]:
    """Open a file and parse its directories, unless they are those that were parsed last.

    A file of hundreds of images would be parsed as a whole for each of them otherwise.

    Raises
    ------
    InputError
        If it is a part of an image that another file describes.
    ValueError
        If it was cut off.
    """
    known, stamp = _RECENT.parsed, _stamp(path)
    if known is not None and known.stamp == stamp:
        known.tif.filehandle.open()
        try:
            yield known
        finally:
            known.tif.close()
        return
    _RECENT.parsed = None
    with tifffile.TiffFile(path) as tif:
        _check_whole(path, tif)
        found = Parsed(stamp, tif, tuple(ome_images_of(tif)))
        yield found
    alone = all(set(image.file_names) <= {path.name} for image in found.images if image)
    if alone and len(found.images) > 1:
        _RECENT.parsed = found


def _check_whole(path: Path, tif: tifffile.TiffFile) -> None:
    """Raise unless a file describes its images itself, and its directories lie inside it."""
    other = metadata_file(tif.ome_metadata) if tif.is_ome and tif.ome_metadata else None
    if other is not None:
        raise InputError(
            f"{path}: a part of an image that is described in {other!r}; open that "
            f"file instead if it is a TIFF, or let reader='bioio' read the set"
        )
    if not tif.is_ndpi:  # its directories have a layout of their own
        check_file(path)


def check_file(path: Path) -> None:
    """Raise ValueError unless all directories of a file lie inside it."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        check_chain(content)


def _stamp(path: Path) -> tuple[Path, int, int]:
    found = path.stat()
    return path.absolute(), found.st_size, found.st_mtime_ns
