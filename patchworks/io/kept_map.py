"""Maximum maps kept beside the images they are of, for whoever asks next.

::

    image.zarr                              the image; nothing of it is touched
    image.zarr.maxima/0-0.all.all.all.map   the map of array 0, channel 0 of (c, z, y, x)

A folder beside the store, and beside the outermost one where stores lie in stores; where that
cannot be written, and for URLs, one in the user's cache. Whoever deletes it loses time and nothing
else. A map names the image it was made of by the sizes and times of all of its files, so that an
image that is written anew never meets its old map; and it is put in place by rename, so that runs
side by side do no harm.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from zarr.storage import FsspecStore, LocalStore

from patchworks.fingerprint import digest
from patchworks.geometry.box_grid import BoxGrid
from patchworks.io.frames import pack, unpack
from patchworks.io.image_source import ImageSource, StoredArray
from patchworks.io.location import Location, outermost
from patchworks.io.maximum_map import MaximumMap

logger = logging.getLogger(__name__)

FORMAT = 1
FOLDER = ".maxima"
"""What the name of the folder beside a store ends with."""

NO_OBJECTS = digest("objects", [])
"""The identity of an array of which a server lists no objects."""


@dataclass(frozen=True)
class KeptMap:
    """Where the map of an image is kept, and which image it has to be of.

    Parameters
    ----------
    source : ImageSource
        The image.
    paths : tuple of Path
        Files that may hold its map, the better place first.
    identity : str
        Of the image, before it was read.
    """

    source: ImageSource
    paths: tuple[Path, ...]
    identity: str

    @classmethod
    def of(cls, source: ImageSource) -> KeptMap | None:
        """Return where the map of an image is kept.

        None if it lies in this process's memory, or where it cannot be told when it is written
        anew: a server that lists no files.
        """
        location = location_of(source)
        if location is None or location.url.startswith("memory://"):
            return None
        try:
            identity = source.identity()
        except (OSError, NotImplementedError, ValueError):
            return None
        if identity == f"{NO_OBJECTS}{source.pick}":
            return None
        return cls(source, paths_of(location, source.pick), identity)

    def load(self, grid: BoxGrid) -> tuple[MaximumMap, dict[str, Any]] | None:
        """Return the map, and facts that were kept with it; None if there is none of this image."""
        for path in self.paths:
            with suppress(OSError, ValueError):  # not there, or damaged: it is made again
                facts, arrays = unpack(path.read_bytes())
                if facts.get("stands_for") == self._stands_for(grid):
                    maxima, dims = arrays["maxima"], grid.boxes.dims
                    known = np.unpackbits(arrays["known"], count=maxima.size).astype(bool)
                    return MaximumMap(grid, maxima.reshape(dims), known.reshape(dims)), facts
        return None

    def keep(self, found: MaximumMap, **facts: Any) -> bool:
        """Write a map and facts, which JSON can say; False if nothing can be written.

        Nor is anything where the image has been written to since it was first looked at.
        """
        if self.source.identity() != self.identity:
            logger.info("%s changed meanwhile: its maximum map is not kept", self.source.name)
            return False
        return self.write(found, **facts)

    def write(self, found: MaximumMap, **facts: Any) -> bool:
        """Write a map of the image whose identity is known; False if nothing can be written."""
        arrays = {"maxima": found.maxima, "known": np.packbits(found.known)}
        content = pack({**facts, "stands_for": self._stands_for(found.grid)}, arrays)
        for path in self.paths:
            with suppress(OSError):
                _write(path, content)
                return True
        logger.info("the maximum map of %s can be kept nowhere", self.source.name)
        return False

    def _stands_for(self, grid: BoxGrid) -> str:
        return digest("maximum map", FORMAT, self.identity, str(self.source.dtype), grid.edges)


def location_of(source: ImageSource) -> Location | None:
    """Return where the array of an image lies; None if it lies in this process's memory."""
    if isinstance(source.stored, StoredArray):
        found = source.stored.location
        return found / source.stored.component if source.stored.component else found
    array: Any = source.stored.array
    store = getattr(array, "store", None)
    if isinstance(store, LocalStore):
        return Location(str(Path(store.root) / array.path))
    if isinstance(store, FsspecStore):
        root = str(store.fs.unstrip_protocol(store.path)).rstrip("/")
        return Location(f"{root}/{array.path}".rstrip("/"))
    return None


def paths_of(location: Location, pick: tuple[int | None, ...]) -> tuple[Path, ...]:
    """Return the files that may hold the map of an array, of which some indices are picked."""
    picked = ".".join("all" if index is None else str(index) for index in pick)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchworks"
    if not location.is_local:
        return (cache / "maxima" / f"{location.name}-{digest(location.url)[:16]}-{picked}.map",)
    folder = location.path.resolve()
    top = outermost(folder)
    inside = "-".join(folder.relative_to(top).parts) or "image"
    beside = top.with_name(f"{top.name}{FOLDER}") / f"{inside}-{picked}.map"
    return beside, cache / "maxima" / f"{top.name}-{digest(str(folder))[:16]}-{picked}.map"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
