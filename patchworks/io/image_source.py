"""The image of a run: one spatial array, wherever its voxels lie. Several channels: `channels`."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from zarr.storage import FsspecStore, LocalStore

from patchworks.errors import SourceNotFoundError
from patchworks.geometry.box import Box
from patchworks.geometry.grid import ceil_div
from patchworks.io.chunk_reader import ChunkReader, reader_of
from patchworks.io.identity import identity_of_array, identity_of_zarr_array, sample_boxes
from patchworks.io.location import Location, ZarrArray, open_array, open_group
from patchworks.io.ngff import Calibration, Version, read_multiscale

SAMPLED_BOXES = 64
SAMPLED_BYTES = 2**27
"""Boxes that a sample is taken from, and bytes that are read for it, at most."""

SAMPLE_THREADS = 4


@dataclass(frozen=True)
class StoredArray:
    """An array in a store; opened when first read, anew in every process."""

    location: Location
    component: str = ""

    @functools.cached_property
    def array(self) -> ZarrArray:
        """The opened array."""
        return open_array(self.location, self.component)

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "component": self.component}


@dataclass(frozen=True, slots=True)
class HeldArray:
    """An array that this process holds: NumPy, or anything that slices like it."""

    array: Any


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """One spatial array of an image, and where its labels would go.

    Parameters
    ----------
    stored : StoredArray or HeldArray
        The array as it is stored, with all of its axes.
    pick : tuple of (int or None)
        Per stored axis the index taken, or None for an axis that is kept.
    shape, dtype
        Spatial shape, in voxels, and dtype.
    chunks : tuple of int or None
        Chunk shape on the kept axes; None for an array in memory.
    calibration : Calibration
        Axes, voxel size and position on the kept axes.
    name : str
        What messages call the image.
    group : Location or None
        The group that the array belongs to: labels go below it.
    version : {"0.4", "0.5"}
        OME-NGFF version that goes with the group's zarr format.
    n_levels : int
        Levels of the group's image.
    time_axis : int or None
        Which of the kept axes is time, where the image says so and has several time points.
    has_one_time_point : bool
        Whether there is an axis of time that is not kept, as it has one time point.
    """

    stored: StoredArray | HeldArray
    pick: tuple[int | None, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None
    calibration: Calibration
    name: str
    group: Location | None = None
    version: Version = "0.5"
    n_levels: int = 1
    time_axis: int | None = None
    has_one_time_point: bool = False

    @property
    def lead(self) -> tuple[int, ...]:
        """Extents of the axes before the spatial ones in what is read: none, for one channel."""
        return ()

    @property
    def channels(self) -> tuple[ImageSource, ...]:
        """Each channel as an image of its own."""
        return (self,)

    @property
    def n_decoded(self) -> int:
        """How often chunks are decoded to read a box once."""
        return 1

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel, all its channels together."""
        return self.dtype.itemsize * prod(self.lead)

    @functools.cached_property
    def chunk_reader(self) -> ChunkReader | None:
        """What reads the array's chunks without zarr, where that is possible."""
        return reader_of(self.stored.array)

    @property
    def shards(self) -> tuple[int, ...] | None:
        """Shape on the kept axes of the stored objects that hold several chunks; None without."""
        shards = getattr(self.stored.array, "shards", None)
        if shards is None:
            return None
        return tuple([int(s) for s, p in zip(shards, self.pick, strict=True) if p is None])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "chunk_reader"}

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """Return the voxels of `box`, shape ``box.shape``; the caller's own.

        Parameters
        ----------
        box : Box
            Which.
        out : numpy.ndarray, optional
            Where to put them: shape ``box.shape``, contiguous.
        """
        if self.chunk_reader is not None:
            found = np.empty(box.shape, self.dtype) if out is None else out
            stored = self._stored_box(box)
            if self.chunk_reader.read(stored, found.reshape(stored.shape)):
                return found
        kept = iter(box.slices)
        index = tuple([next(kept) if p is None else p for p in self.pick])
        voxels = np.asarray(self.stored.array[index])
        if out is not None:
            out[...] = voxels
            return out
        # The function gets voxels of its own: it may work in place.
        return voxels.copy() if isinstance(self.stored.array, np.ndarray) else voxels

    def _stored_box(self, box: Box) -> Box:
        """Return a box with all axes of the stored array, those that are picked too."""
        kept = iter(zip(box.start, box.stop, strict=True))
        bounds = [next(kept) if p is None else (p, p + 1) for p in self.pick]
        return Box(tuple([a for a, _ in bounds]), tuple([b for _, b in bounds]))

    def sample(self, max_voxels: int = 2**22) -> np.ndarray:
        """Return up to about `max_voxels` voxels from boxes spread over the image, flat.

        From many boxes some voxels of each, not all of a few: what there is to be seen may lie in
        the middle of the image alone.
        """
        chunk = tuple([min(c, 256) for c in self.chunks or self.shape])
        n_voxels = prod(chunk)
        n_boxes = min(SAMPLED_BOXES, SAMPLED_BYTES // (n_voxels * self.dtype.itemsize))
        boxes = sample_boxes(self.shape, chunk, max(2, n_boxes, max_voxels // n_voxels))
        step = ceil_div(sum([box.size for box in boxes]), max_voxels)
        step += 1 - step % 2  # an even one would meet the same columns in every row
        with ThreadPoolExecutor(SAMPLE_THREADS, "patchworks-sample") as pool:
            parts = list(pool.map(lambda box: self.read(box).ravel()[::step].copy(), boxes))
        return np.concatenate(parts)

    def identity(self) -> str:
        """Return a digest that changes when the image is written anew."""
        array = self.stored.array
        if isinstance(array, np.ndarray):
            return identity_of_array(array)
        return f"{identity_of_zarr_array(array)}{self.pick}"

    def coarser_levels(self) -> list[ImageSource]:
        """Return the coarser levels of the image that this is a level of, read alike.

        Raises
        ------
        SourceNotFoundError
            If one of them cannot be opened.
        """
        if self.group is None or self.n_levels == 1 or isinstance(self.stored, HeldArray):
            return []
        multiscale = read_multiscale(dict(open_group(self.group).attrs), str(self.group))
        paths = [level.path for level in multiscale.levels] if multiscale else []
        if self.stored.component not in paths:
            return []
        kept = [axis for axis, picked in enumerate(self.pick) if picked is None]
        found = []
        for path in paths[paths.index(self.stored.component) + 1 :]:
            stored = StoredArray(self.stored.location, path)
            try:
                shape = tuple([stored.array.shape[axis] for axis in kept])
            except (FileNotFoundError, PermissionError) as error:
                raise SourceNotFoundError(
                    f"{self.group}: its level {path!r} cannot be opened ({error}); restore it, or "
                    f"ask its owner for the right to read it"
                ) from error
            chunks = tuple([stored.array.chunks[axis] for axis in kept])
            found.append(replace(self, stored=stored, shape=shape, chunks=chunks))
        return found

    def lies_in(self, location: Location) -> bool:
        """Whether the array is stored at or below `location`, by whatever way it is named."""
        if isinstance(self.stored, StoredArray):
            found = self.stored.location / self.stored.component
        elif isinstance(store := getattr(self.stored.array, "store", None), LocalStore):
            found = Location(str(store.root)) / self.stored.array.path
        else:
            return False
        if not (found.is_local and location.is_local):
            return f"{found.url}/".startswith(f"{location.url}/")
        return found.path.resolve().is_relative_to(location.path.resolve())

    def held_by_this_process(self) -> bool:
        """Whether other processes could not read it (NumPy, or a store in memory)."""
        if isinstance(self.stored, HeldArray):
            store = getattr(self.stored.array, "store", None)
            return not isinstance(store, (LocalStore, FsspecStore))
        return self.stored.location.url.startswith("memory://")
