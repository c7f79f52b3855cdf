"""TIFF files that together are one image: a folder of them, or a pattern of their names."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from patchworks.errors import InputError
from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.readers.scene import ORDER, Scene, SceneReader
from patchworks.readers.sequence_names import FILE_AXES, Grid, by_marks, files_of, is_sequence
from patchworks.readers.tiff import TiffReader

__all__ = ["SequenceReader", "is_sequence"]

MOST_KNOWN = 1024
"""Files whose directories are kept in memory; none of them is kept open."""


class SequenceReader(SceneReader):
    """TIFF files of one shape and type that together are one image.

    Their names say where they belong: numbers after ``t`` or ``time``, ``c``, ``ch`` or
    ``channel``, and ``z``, in small or capital letters, in parts of the name set off by ``_``,
    ``-``, ``.`` or a space: ``scan_t001_c02_z0003.tif``, ``scan-Z12.tif``, ``scan_t1z4.tif``. Such
    a mark counts if all files have it, and it differs. ``{t}``, ``{c}`` and ``{z}`` in the pattern
    name any other numbers. The files must fill the grid. Without marks, files in natural order (2
    before 10) are z, or t if they hold stacks.

    The first file says what all are; another one that differs is an error when it is read.

    Parameters
    ----------
    path : Path
        A folder that holds only TIFF files, or a pattern with ``*``, ``?``, ``[...]``, ``{t}``,
        ``{c}`` or ``{z}``.
    index : int
        Which of the images in each file.
    axes : str, optional
        The axis along which the files are counted, in natural order, such as ``"t"``; may be
        followed by the axes of a file, such as ``"tzyx"``.
    """

    format = "TIFF sequence"

    def __init__(self, path: Path, index: int = 0, axes: str | None = None) -> None:
        super().__init__(path, index)
        self.axes = axes
        self._lock = threading.Lock()
        self._readers: OrderedDict[Path, TiffReader] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "axes": self.axes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def identity(self) -> str:
        """Return a digest that changes when one of the files is written anew."""
        return digest(super().identity(), self.axes)

    def close(self) -> None:
        """Forget the files; they are opened again when read again."""
        with self._lock:
            readers = list(self._readers.values())
            self._readers.clear()
        for reader in readers:
            reader.close()

    @classmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]:
        return TiffReader.scene_names(files_of(path)[0])

    @functools.cached_property
    def _grid(self) -> Grid:
        files = files_of(self.path)
        given = self.axes
        if given is None:
            placed = by_marks(files, self.path)
            if placed is not None:
                return placed
            inner = self._reader(files[0]).scene.axes
            given = "t" if "z" in inner else "z"
        if not given or given[0].lower() not in FILE_AXES:
            raise InputError(
                f"{self.path}: axes={given!r}; expected the axis along which files are counted, "
                f"one of {FILE_AXES!r}, followed by nothing or by the axes of a file"
            )
        return Grid.along(given[0].lower(), files)

    def _describe(self) -> Scene:
        grid = self._grid
        first = self._reader(grid.files[0]).scene
        if len(first.files) > 1:
            raise InputError(
                f"{self.path}: {grid.files[0].name} is a part of an image in {len(first.files)} "
                f"files that knows its parts; open {grid.files[0]} instead"
            )
        counted = dict(zip(grid.axes, grid.shape, strict=True))
        both = set(counted) & set(first.axes)
        if both:
            raise InputError(
                f"{self.path}: files are counted along {sorted(both)}, and each has {first.axes} "
                f"{first.shape} already; say along which of {FILE_AXES!r} with axes="
            )
        axes = "".join([a for a in ORDER if a in counted or a in first.axes])
        inner = [dict(zip(first.axes, shape, strict=True)) for shape in first.shapes]
        block = dict(zip(first.axes, first.block, strict=True))
        return Scene(
            name=first.name,
            axes=axes,
            shapes=tuple([tuple([{**counted, **one}[a] for a in axes]) for one in inner]),
            dtype=first.dtype,
            block=tuple([block.get(a, 1) for a in axes]),
            spacing={a: s for a, s in first.spacing.items() if a in axes},
            channels=() if "c" in counted else first.channels,
            files=grid.files,
        )

    def _read(self, box: Box, level: int) -> np.ndarray:
        grid, axes = self._grid, self.scene.axes
        spans = dict(zip(axes, box.slices, strict=True))
        inner = [spans[a] for a in axes if a not in grid.axes]
        part = Box(tuple([s.start for s in inner]), tuple([s.stop for s in inner]))
        voxels = np.empty(box.shape, self.scene.dtype)
        ranges = [range(s.start, s.stop) for s in [spans.get(a, slice(0, 1)) for a in grid.axes]]
        for place in itertools.product(*ranges):
            at = dict(zip(grid.axes, place, strict=True))
            into = [at[a] - spans[a].start if a in at else slice(None) for a in axes]
            file = grid[place]
            reader = self._reader(file)
            self._check(reader.scene, file)
            voxels[tuple(into)] = reader.read(part, level)
            reader.close()
        return voxels

    def _reader(self, file: Path) -> TiffReader:
        with self._lock:
            if file not in self._readers:
                inner = self.axes[1:] if self.axes else None
                self._readers[file] = TiffReader(file, self.index, inner or None)
            self._readers.move_to_end(file)
            while len(self._readers) > MOST_KNOWN:
                self._readers.popitem(last=False)
            return self._readers[file]

    def _check(self, found: Scene, file: Path) -> None:
        """Raise InputError unless a file is like the first one."""
        first = self._reader(self._grid.files[0]).scene
        if (found.axes, found.shapes, found.dtype) != (first.axes, first.shapes, first.dtype):
            raise InputError(
                f"{file}: {found.dtype} {found.axes} {found.shape}, but {self._grid.files[0].name} "
                f"has {first.dtype} {first.axes} {first.shape}; leave out what is no part of the "
                f"sequence {self.path}"
            )
