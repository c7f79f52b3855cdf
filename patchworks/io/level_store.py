"""The levels of an image or label image on disk: built beside their place, put there when whole.

On a local file system the levels are written to a hidden sibling and renamed, so that under its
name an image is either whole or not there, and one that is replaced stays until the new one is
finished. Object stores know no renaming: there the metadata that makes a group an image is written
last.
"""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from patchworks.errors import TargetExistsError
from patchworks.geometry.box import Box
from patchworks.geometry.grid import ceil_div
from patchworks.geometry.pyramid import PyramidPlan
from patchworks.io.chunk_writer import ChunkWriter
from patchworks.io.location import Location, ZarrArray, open_array, open_group
from patchworks.io.ngff import PROVENANCE_KEY, Version
from patchworks.io.region_chunks import RegionChunks
from patchworks.io.source import NOT_ZARR
from patchworks.io.writing import writing

ZARR_FORMAT: dict[Version, Literal[2, 3]] = {"0.4": 2, "0.5": 3}

PARTIAL_KEY = "patchworks-partial"
"""Attribute of a group whose levels are being written."""

Codec = Literal["zstd", "blosc"]
"""How chunks are compressed: zstd is smallest and fastest on labels; blosc (zstd after shuffling
bytes) on intensities, whose high bytes hardly change: a fifth smaller and twice as fast."""


ZSTD_LEVEL = 1


@dataclass(frozen=True)
class LevelStore:
    """Level arrays being written.

    Parameters
    ----------
    place : Location
        Where the group is to be.
    version : {"0.4", "0.5"}
        OME-NGFF version, and with it the zarr format (2 or 3).
    axis_names : tuple of str
        Names of the axes.
    pyramid : PyramidPlan
        Shapes, chunks and shards of the levels.
    dtype : numpy.dtype
        Of the voxels.
    fingerprint : str
        What is being written; what another left here is not gone on with.
    codec : {"zstd", "blosc"}
        How chunks are compressed.
    """

    place: Location
    version: Version
    axis_names: tuple[str, ...]
    pyramid: PyramidPlan
    dtype: np.dtype
    fingerprint: str
    codec: Codec = "zstd"

    @property
    def building(self) -> Location:
        """Where the levels are written before they are whole."""
        return self._sibling("partial") if self.place.is_local else self.place

    def _sibling(self, ending: str) -> Location:
        name = f".{self.place.path.name}.{self.fingerprint[:8]}.{ending}"
        return Location(str(self.place.path.parent / name))

    def create(self) -> None:
        """Make the empty levels, in place of any that an interrupted run left.

        Raises
        ------
        TargetNotWritableError
            If the place cannot be written; so do all that write.
        """
        with writing(self.place):
            self._create()

    def _create(self) -> None:
        self._clear()
        store = self.building.store(read_only=False)
        group = zarr.open_group(store, mode="w", zarr_format=ZARR_FORMAT[self.version])
        for level, (shape, chunks) in enumerate(
            zip(self.pyramid.shapes, self.pyramid.chunks, strict=True)
        ):
            group.create_array(
                str(level),
                shape=shape,
                chunks=chunks,
                shards=None if self.pyramid.shards is None else self.pyramid.shards[level],
                dtype=storable(self.dtype),
                fill_value=0,
                **self._encoding(),
            )
        group.attrs[PARTIAL_KEY] = self.fingerprint  # last: now it is begun

    def _encoding(self) -> dict[str, Any]:
        size = self.dtype.itemsize
        if self.version == "0.4":
            shuffle = numcodecs.Blosc.SHUFFLE
            old: dict[Codec, Any] = {
                "zstd": numcodecs.Zstd(level=ZSTD_LEVEL),
                "blosc": numcodecs.Blosc(cname="zstd", clevel=1, shuffle=shuffle),
            }
            separator = {"name": "v2", "separator": "/"}
            return {"compressors": old[self.codec], "chunk_key_encoding": separator}
        new: dict[Codec, Any] = {
            "zstd": ZstdCodec(level=ZSTD_LEVEL),
            "blosc": BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=size),
        }
        return {"compressors": new[self.codec], "dimension_names": list(self.axis_names)}

    def is_begun(self) -> bool:
        """Return whether the levels are there, left by an interrupted run of this kind.

        Those that were whole but for their name, too: then their metadata are the final ones.
        """
        return self._is_ours(self.building)

    def _is_ours(self, there: Location) -> bool:
        """Whether a group was made by a run of this kind, whole or not."""
        with suppress(*NOT_ZARR):
            attributes = open_group(there).attrs
            made = attributes.get(PROVENANCE_KEY)
            whole = isinstance(made, Mapping) and made.get("fingerprint") == self.fingerprint
            return whole or attributes.get(PARTIAL_KEY) == self.fingerprint
        return False

    def sweep(self) -> None:
        """Remove the temporary files of writes that a kill cut off: zarr renames finished ones."""
        if self.building.is_local:
            for stray in self.building.path.rglob("*.partial"):
                stray.unlink(missing_ok=True)

    def _clear(self) -> None:
        if self.building.is_local:
            shutil.rmtree(self.building.path, ignore_errors=True)
            self.building.path.parent.mkdir(parents=True, exist_ok=True)
        else:
            self.building.remove()

    @functools.cached_property
    def levels(self) -> list[ZarrArray]:
        """The level arrays, opened for writing once per process."""
        return [
            open_array(self.building, str(level), mode="r+")
            for level in range(self.pyramid.n_levels)
        ]

    @functools.cached_property
    def _writers(self) -> list[ChunkWriter] | None:
        """What writes the levels without zarr, where that is possible."""
        plain = self.codec == "zstd" and self.pyramid.shards is None
        if not (plain and self.building.is_local and ChunkWriter.suits(self.dtype)):
            return None
        folder = self.building.path
        return [
            ChunkWriter(array, folder / str(level), ZSTD_LEVEL)
            for level, array in enumerate(self.levels)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("levels", "_writers")}

    def write(self, level: int, box: Box, voxels: np.ndarray) -> None:
        """Write voxels, which hold whole stored objects, to a level; empty ones make no file.

        What a kill cut off is removed first: a chunk at the end of an axis is read before it is
        written, which fails for half a file.
        """
        with writing(self.place):
            self._write(level, box, voxels)

    def _write(self, level: int, box: Box, voxels: np.ndarray) -> None:
        if self._writers is not None:
            self._writers[level].write(box, voxels)
            return
        if self.building.is_local:  # object stores put whole objects
            remove_chunks(self.levels[level], self.building.path / str(level), [box])
        self.levels[level][box.slices] = voxels

    def write_chunks(self, level: int, filled: RegionChunks) -> None:
        """Write the chunks of a region to a level; empty ones make no file."""
        with writing(self.place):
            if self._writers is None:
                self._write(level, filled.box, filled.to_array())
                return
            for position, chunk in filled.chunks():
                self._writers[level].put(position, chunk)

    def read(self, level: int, box: Box) -> np.ndarray:
        """Return the voxels of a box of a level that is written."""
        return np.asarray(self.levels[level][box.slices])

    def publish(self, attributes: Mapping[str, Any], *, may_replace: bool) -> None:
        """Write the metadata and put the levels in their place.

        Parameters
        ----------
        attributes : mapping
            The metadata.
        may_replace : bool
            Whether what another run has put there may be replaced. What one of this kind has may.

        Raises
        ------
        TargetExistsError
            If something came to the place while the levels were written, and may not be replaced.
        """
        if self.building == self.place and not self.is_begun():
            raise not_ours(self.place)
        with writing(self.place):
            open_group(self.building, mode="r+").attrs.put(dict(attributes))
            if self.building != self.place:
                self._move_into_place(may_replace=may_replace or self._is_ours(self.place))

    def _move_into_place(self, *, may_replace: bool) -> None:
        put_in_place(self.building.path, self.place.path, may_replace=may_replace)


def put_in_place(new: Path, place: Path, *, may_replace: bool) -> None:
    """Give a folder that is whole its name; what has that name stays, unless it may be replaced.

    Raises
    ------
    TargetExistsError
        If something has the name that may not be replaced.
    """
    old = new.with_suffix(".old")
    if may_replace and place.exists():
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    try:
        new.rename(place)  # fails by itself where another program was quicker
    except OSError as error:
        if not os.path.lexists(place):
            with suppress(OSError):  # what was there comes back
                old.rename(place)
            raise
        raise TargetExistsError(
            f"{place}: another program put something there in the meantime ({error.strerror}); "
            f"move it away, and the same call goes on from {new}, where what is written is kept"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def not_ours(place: Location) -> TargetExistsError:
    """Return the error for an object store in which another program wrote to the same place."""
    return TargetExistsError(
        f"{place}: is not what this run has begun there any more: another program wrote to it, or "
        f"deleted it, in the meantime; give another target, or overwrite=True to make it anew"
    )


def storable(dtype: np.dtype) -> np.dtype:
    """Return the dtype of the same voxels that zarr knows.

    C has two 64-bit integers. NumPy takes them for equal, zarr knows only one; tifffile gives the
    other.

    Examples
    --------
    >>> storable(np.dtype("longlong")).char == np.dtype("int64").char
    True
    """
    return np.dtype(dtype.str)


def remove_chunks(array: ZarrArray, folder: Path, boxes: Iterable[Box]) -> None:
    """Delete the stored objects of an array in a local folder that hold voxels of the boxes."""
    stored = array.shards or array.chunks
    for box in boxes:
        spans = [
            range(a // s, ceil_div(b, s))
            for a, b, s in zip(box.start, box.stop, stored, strict=True)
        ]
        for coordinates in product(*spans):
            key = array.metadata.encode_chunk_key(coordinates)
            (folder / key).unlink(missing_ok=True)


def refresh_consolidated(place: Location) -> None:
    """Bring a group's consolidated metadata up to date, if it has any."""
    group = open_group(place, mode="r+")
    if group.metadata.consolidated_metadata is None:
        return
    with warnings.catch_warnings():  # consolidated metadata are no part of zarr 3; it has them
        warnings.simplefilter("ignore", UserWarning)
        zarr.consolidate_metadata(
            place.store(read_only=False), zarr_format=group.metadata.zarr_format
        )
