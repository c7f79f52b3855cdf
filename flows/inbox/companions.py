"""Which files of a folder are one image, and what is still missing of it.

A file is looked into only once it has stopped growing; what it says is remembered with its size
and time.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote

import tifffile

from flows.inbox.listing import Entry, Listing
from patchworks.errors import InputError
from patchworks.readers.ome_xml import images_in, metadata_file
from patchworks.readers.registry import FORMATS, TIFF
from patchworks.readers.sequence_names import by_marks

COMPANION = ".companion.ome"
SUFFIXES = (*[suffix for form in FORMATS for suffix in form.suffixes], COMPANION)
"""Endings of the files that are images; everything else in an inbox is left alone."""

ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
SEQUENCE_SUFFIXES = (".tif", ".tiff")
LEICA_REFERENCE = re.compile(r'\bFile="([^"]+)"')

_CZI_HEADER = struct.Struct("<16sqqiiii16s16siqqi")
"""Segment header (name, allocated, used), then version, two reserved numbers, the identities of the
first part and of this one, which part it is, two positions, and whether it is being written."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a file says of the image that it is, or is a part of.

    Parameters
    ----------
    main : str
        The file to open, by its path below the inbox.
    others : tuple of str
        All other files of the image.
    waits_for : str
        What is missing, in words; empty if nothing is.
    """

    main: str
    others: tuple[str, ...] = ()
    waits_for: str = ""


def is_image(name: str) -> bool:
    """Whether a file's name ends like one that a reader knows.

    Examples
    --------
    >>> is_image("scan.CZI"), is_image("notes.txt")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES)


def is_zarr_store(folder: Entry, inside: Sequence[Entry]) -> bool:
    """Whether a folder is a zarr store."""
    names = {entry.name for entry in inside}
    return folder.name.lower().endswith(".zarr") or not names.isdisjoint(ZARR_MARKS)


def sequence_in(inside: Sequence[Entry], *, is_named: bool) -> Parts | None:
    """Return what a folder of TIFF files is as one image, or None if it holds several images.

    It is one image where it holds nothing but TIFF files whose names carry numbers of t, c or z,
    such as ``scan_t001_z003.tif``, or where a settings file beside it carries its name.

    Parameters
    ----------
    inside : sequence of Entry
        What lies in the folder.
    is_named : bool
        Whether such a settings file is there.
    """
    files = [entry for entry in inside if not entry.is_hidden]
    if not files or any(f.is_folder or not _is_plain_tiff(f.name) for f in files):
        return None
    paths = [Path(entry.path) for entry in files]
    missing = ""
    try:
        placed = by_marks(paths, paths[0].parent)
    except InputError as error:
        placed, missing = None, str(error)
    if placed is None and not missing and not is_named:
        return None
    folder = str(PurePosixPath(files[0].path).parent)
    return Parts(folder, tuple([entry.path for entry in files]), missing)


def _is_plain_tiff(name: str) -> bool:
    lowered = name.lower()
    return lowered.endswith(SEQUENCE_SUFFIXES) and not lowered.endswith((".ome.tif", ".ome.tiff"))


def parts_of(listing: Listing, entry: Entry, siblings: Sequence[Entry]) -> Parts:
    """Return which image a file that has stopped growing belongs to.

    A file that cannot be made out is an image of its own: its reader will say what is wrong.

    Parameters
    ----------
    listing : Listing
        The inbox.
    entry : Entry
        The file.
    siblings : sequence of Entry
        All files in its folder.
    """
    name = entry.name.lower()
    try:
        if name.endswith(".czi"):
            return _of_czi(listing, entry, siblings)
        if name.endswith(COMPANION):
            with listing.open(entry.path) as file:
                return _of_ome(file.read().decode("utf-8", "replace"), entry)
        if name.endswith(".xlef"):
            return _of_leica(listing, entry)
        if name.endswith(TIFF.suffixes):
            xml = _ome_xml_of(listing, entry)
            return Parts(entry.path) if xml is None else _of_ome(xml, entry)
    except Exception:  # noqa: BLE001 - of a damaged file, tifffile raises whatever it stumbles on
        pass
    return Parts(entry.path)


def _ome_xml_of(listing: Listing, entry: Entry) -> str | None:
    with listing.open(entry.path) as file, tifffile.TiffFile(file, name=entry.name) as tif:
        return tif.ome_metadata


def _of_ome(xml: str, entry: Entry) -> Parts:
    """Return the set of files that OME-XML names; it stands in each of them, or in one."""
    folder = PurePosixPath(entry.path).parent
    described_in = metadata_file(xml)
    if described_in:
        return Parts(str(folder / described_in), (entry.path,))
    named = [name for image in images_in(xml) for name in image.file_names]
    paths = list(dict.fromkeys([str(folder / name) for name in named]))
    if entry.name.lower().endswith(COMPANION):
        return Parts(entry.path, tuple(paths))
    if entry.path not in paths:  # it was renamed after it was written
        return Parts(entry.path)
    return Parts(entry.path, tuple([path for path in paths if path != entry.path]))


def _of_leica(listing: Listing, entry: Entry) -> Parts:
    folder = PurePosixPath(entry.path).parent
    with listing.open(entry.path) as file:
        content = file.read()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    named = [unquote(name).replace("\\", "/") for name in LEICA_REFERENCE.findall(text)]
    return Parts(entry.path, tuple([str(folder / name) for name in dict.fromkeys(named)]))


@dataclass(frozen=True, slots=True)
class CziHeader:
    """What the first bytes of a CZI file say.

    Parameters
    ----------
    first, own : bytes
        Identity of the first part of the image, and of this part.
    part : int
        0 for the first part, or the only one.
    is_open : bool
        Whether the microscope still writes it.
    """

    first: bytes
    own: bytes
    part: int
    is_open: bool

    @classmethod
    def read(cls, file: IO[bytes]) -> CziHeader:
        """Read the header.

        Raises
        ------
        ValueError, struct.error
            If it is none.
        """
        name, _, _, _, _, _, _, first, own, part, _, _, pending = _CZI_HEADER.unpack(
            file.read(_CZI_HEADER.size)
        )
        if name.rstrip(b"\0") != b"ZISRAWFILE":
            raise ValueError(f"not a CZI file: it begins with {name!r}")
        return cls(first, own, part, bool(pending))


def _of_czi(listing: Listing, entry: Entry, siblings: Sequence[Entry]) -> Parts:
    """Return the parts of a CZI file: later ones name the first one."""
    with listing.open(entry.path) as file:
        header = CziHeader.read(file)
    waits_for = f"{entry.path} is still open in the microscope's program" * header.is_open
    if header.part == 0 or header.first == header.own:
        return Parts(entry.path, (), waits_for)
    for other in siblings:
        if other.path != entry.path and other.name.lower().endswith(".czi"):
            # One that is no CZI file yet may be on its way: it says nothing of this one.
            with suppress(OSError, ValueError, struct.error), listing.open(other.path) as file:
                if CziHeader.read(file).own == header.first:
                    return Parts(other.path, (entry.path,), waits_for)
    missing = f"{entry.path} is part {header.part} of an image whose first part is not there"
    return Parts(entry.path, (), missing)
