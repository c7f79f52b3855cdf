"""From a path to the reader of its format, and from a scene's name to its index."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from patchworks.errors import (
    InputError,
    MissingExtraError,
    PatchworksError,
    SourceNotFoundError,
)
from patchworks.io.location import Location, readable
from patchworks.io.named_array import axis_names, bare_array
from patchworks.readers.array import ArrayReader
from patchworks.readers.ome_zarr import ZarrReader
from patchworks.readers.scene import SceneReader

ALL_SCENES = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A file format and the module that reads it.

    Parameters
    ----------
    name : str
        What `reader=` calls it; also the module's name.
    reader : str
        The reader's class in that module.
    suffixes : tuple of str
        Endings of files.
    magic : tuple of bytes
        What a file of the format begins with.
    extra : str or None
        The extra of patchworks that installs what the reader needs.
    takes_axes : bool
        Whether the reader can be told what the file's axes are.
    """

    name: str
    reader: str
    suffixes: tuple[str, ...] = ()
    magic: tuple[bytes, ...] = ()
    extra: str | None = None
    takes_axes: bool = False

    def load(self, location: Location) -> type[SceneReader]:
        """Return the reader's class, to read what is at a location.

        Raises
        ------
        MissingExtraError
            If what it needs is not installed.
        """
        try:
            module = import_module(f"patchworks.readers.{self.name}")
        except ImportError as error:
            raise MissingExtraError(
                f"{location}: the reader {self.name!r} needs a package that is not installed "
                f"({error}); install it with pip install 'patchworks[{self.extra}]'"
            ) from error
        found: type[SceneReader] = getattr(module, self.reader)
        return found


TIFF = Format(
    name="tiff",
    reader="TiffReader",
    suffixes=(
        ".tif", ".tiff", ".btf", ".tf2", ".tf8", ".svs", ".ndpi", ".scn", ".bif", ".qptiff",
        ".lsm", ".stk", ".gel",
    ),
    magic=(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    takes_axes=True,
)  # fmt: skip
SEQUENCE = Format(name="sequence", reader="SequenceReader", takes_axes=True)
BIOIO = Format(name="bioio", reader="BioioReader", extra="bioio")
FORMATS = (
    TIFF,
    Format(
        name="imaris",
        reader="ImarisReader",
        suffixes=(".ims",),
        magic=(b"\x89HDF\r\n\x1a\n",),
        extra="imaris",
    ),
    Format(
        name="czi", reader="CziReader", suffixes=(".czi",), magic=(b"ZISRAWFILE",), extra="bioio"
    ),
    Format(
        name="lif",
        reader="LifReader",
        suffixes=(".lif", ".lof", ".xlif", ".xlef"),
        magic=(b"p\0\0\0",),
        extra="bioio",
    ),
    Format(
        name="nd2",
        reader="Nd2Reader",
        suffixes=(".nd2",),
        magic=(b"\xda\xce\xbe\n", b"\0\0\0\x0cjP"),
        extra="bioio",
    ),
    SEQUENCE,
    BIOIO,
)

Opener = Callable[[int], SceneReader]


def open_reader(
    source: Any, *, scene: int | str = 0, axes: str | None = None, reader: str | None = None
) -> SceneReader:
    """Return the reader of one image of a source.

    Parameters
    ----------
    source : path, URL, glob pattern, numpy.ndarray, dask.array.Array or zarr.Array
        What holds the image.
    scene : int or str
        Which image, by index or name.
    axes : str, optional
        What its axes are, where it does not say it.
    reader : str, optional
        Name of the reader to use, such as ``"bioio"``; chosen by the file otherwise.

    Raises
    ------
    SourceNotFoundError
        If it is not there, or cannot be read.
    MissingExtraError
        If the reader of its format is not installed.
    InputError
        If there is no such scene or reader, or the axes do not fit.
    """
    names, opener = _opener(source, axes, reader)
    opened = opener(_scene_index(scene, names, _name_of(source)))
    try:
        _ = opened.scene  # what is damaged fails here, before any work
    except PatchworksError:
        opened.close()
        raise
    return opened


def scene_names(source: Any, *, reader: str | None = None) -> tuple[str, ...]:
    """Return the names of the images that a source holds, ``""`` for one without."""
    return _opener(source, None, reader)[0]


def _opener(source: Any, axes: str | None, reader: str | None) -> tuple[tuple[str, ...], Opener]:
    if isinstance(axes, str) and not axes:
        raise InputError(f"axes={axes!r}: expected one letter per axis, such as axes='czyx'")
    names, source = axis_names(source), bare_array(source)
    if isinstance(source, (np.ndarray, zarr.Array)) or hasattr(source, "__dask_graph__"):
        if reader is not None:
            raise InputError(f"reader={reader!r}: the source is an array; leave reader out")
        array = ArrayReader(source, axes or (None if names is None else "".join(names)))
        return ("",), lambda _: array
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"source of type {type(source).__name__}: expected a path, a URL, or a NumPy, Dask or "
            f"zarr array"
        )
    location = Location.parse(source, "source")
    if reader is None and is_zarr(location):
        return ZarrReader.names_at(location), lambda index: ZarrReader(location, index, axes)
    if not location.is_local:
        raise SourceNotFoundError(
            f"{location}: there is no zarr store at this URL; files of other formats are read from "
            f"local paths: copy it here first"
        )
    return _file_opener(location, axes, reader)


def _file_opener(
    location: Location, axes: str | None, reader: str | None
) -> tuple[tuple[str, ...], Opener]:
    with readable(location):
        chosen = _format_of(location.path) if reader is None else _format_named(reader)
    if not (location.exists() or _may_be_sequence(location.path)):
        raise SourceNotFoundError(f"{location}: there is nothing at this path")
    found = chosen.load(location)
    names = found.scene_names(location.path)
    if not names:
        raise SourceNotFoundError(f"{location}: there is no image in it; the file may be damaged")
    if axes is None:
        return names, partial(found, location.path)
    if not chosen.takes_axes:
        raise InputError(
            f"{location}: axes={axes!r}, but files of this format say what their axes are; leave "
            f"axes out"
        )
    told: Opener = partial(found, location.path, axes=axes)  # type: ignore[call-arg]
    return names, told


def _name_of(source: Any) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else "array"


def is_zarr(location: Location) -> bool:
    """Return whether a zarr store is, or should be, at a location."""
    found = location.exists()
    if not (found and location.is_local):
        return found
    folder = location.path
    marks = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
    with readable(location):
        return folder.is_dir() and (
            folder.suffix == ".zarr" or any((folder / mark).exists() for mark in marks)
        )


def _format_named(name: str) -> Format:
    for known in FORMATS:
        if known.name == name:
            return known
    raise InputError(f"reader={name!r}: expected one of {[known.name for known in FORMATS]}")


def _may_be_sequence(path: Path) -> bool:
    return path.is_dir() or (not path.exists() and bool(set(str(path)) & set("*?[{")))


def _format_of(path: Path) -> Format:
    """Return the format of what lies at a path: by its ending, else by its first bytes.

    Raises
    ------
    SourceNotFoundError
        If there is nothing to read, or the first bytes are those of another format.
    """
    if _may_be_sequence(path):
        from patchworks.readers.sequence import is_sequence

        if is_sequence(path):
            return SEQUENCE
    if not path.exists():
        raise SourceNotFoundError(f"{path}: there is nothing at this path")
    if path.is_dir():
        raise SourceNotFoundError(
            f"{path}: a folder that is neither a zarr store nor a sequence of TIFF files; give a "
            f"file, a store, or a pattern such as {path}/*.tif"
        )
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise SourceNotFoundError(f"{path}: cannot be read ({error.strerror or error})") from error
    name = path.name.lower()
    named = next((f for f in FORMATS if f.suffixes and name.endswith(f.suffixes)), None)
    begun = next((f for f in FORMATS if f.magic and start.startswith(f.magic)), None)
    if named is not None and begun is not None and named is not begun:
        raise SourceNotFoundError(
            f"{path}: ends like a file of the format {named.name!r}, but begins like one of "
            f"{begun.name!r}; if it is one, rename it or give reader={begun.name!r}"
        )
    return named or begun or BIOIO


def _scene_index(scene: int | str, names: Sequence[str], where: str) -> int:
    """Return the index of a scene, or raise InputError saying which there are."""
    if isinstance(scene, str) and scene in names:
        if list(names).count(scene) > 1:
            raise InputError(
                f"scene={scene!r}: {where} has {list(names).count(scene)} scenes of this name; "
                f"give an index from 0 to {len(names) - 1}"
            )
        return list(names).index(scene)
    whole = isinstance(scene, (int, np.integer)) and not isinstance(scene, bool)
    if whole and 0 <= int(scene) < len(names):
        return int(scene)
    shown = ", ".join([f"{i} {name!r}" for i, name in enumerate(names[:8])])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise InputError(f"scene={scene!r}: {where} has {len(names)} scene(s): {shown}{more}")
