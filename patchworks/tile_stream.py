"""Tiles on their way through a run: while one is segmented, the next are read, the last are staged.

Tiny tiles go through in groups: a thread that hands over to another costs more than they do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import inf, prod
from typing import Any, Literal, TypeVar

import numpy as np

from patchworks.errors import PatchworksError
from patchworks.execution.out_of_memory import free_memory
from patchworks.execution.overlap import Recall, overlapped
from patchworks.geometry.box import Box
from patchworks.geometry.crops import within
from patchworks.geometry.grid import Tile
from patchworks.halving import Halving, VoxelLimit
from patchworks.io.kept_blocks import part_of
from patchworks.io.lent_memory import is_lent
from patchworks.io.stage import Stage
from patchworks.io.tile_reader import TileReader
from patchworks.run import RunSpec
from patchworks.segmenters import Segmenter, name_of
from patchworks.steps.crop import signal_box
from patchworks.steps.segment import read_box, read_tile
from patchworks.steps.stage import stage_empty_tile, stage_tile

GROUP_S = 0.02
GROUP_BYTES = 2**21
MAX_GROUP = 64
"""Tiles that together take less than so many seconds, and hold less than so many bytes, make a
group of up to so many."""

Status = Literal["segmented", "empty", "reused"]


@dataclass(frozen=True, slots=True)
class TileOutcome:
    """What became of a tile.

    Parameters
    ----------
    tile, n_labels : int
        Its index; its number of local labels.
    status : {"segmented", "empty", "reused"}
        Whether it was worked on now.
    seconds : float
        Reading, segmenting and staging it, one after the other.
    n_bytes : int
        Bytes of the image's chunks that were decoded for it.
    n_bytes_needed : int
        Bytes of its core's voxels, as far as they were read.
    function_s : float
        Seconds in the function alone.
    n_halvings : int
        How often the tile, or a part of it, was cut in two because the function ran out of memory.
    """

    tile: int
    n_labels: int
    status: Status
    seconds: float
    n_bytes: int = 0
    n_bytes_needed: int = 0
    function_s: float = 0.0
    n_halvings: int = 0


@dataclass(slots=True)
class _View:
    """A tile on its way: what was read of it, then its labels.

    The function is handed a part of the tile, which mostly is the tile.
    """

    tile: Tile
    part: Tile
    status: Status
    voxels: np.ndarray | None = None
    labels: np.ndarray | None = None
    n_bytes_needed: int = 0
    n_labels: int = 0
    n_bytes: int = 0
    function_s: float = 0.0
    seconds: float = 0.0
    n_halvings: int = 0


Views = list[_View | PatchworksError]
Part = TypeVar("Part")


class TileWork:
    """The parts of segmenting tiles: read, segment, stage. An error stays with its tile.

    Parameters
    ----------
    spec : RunSpec
        Tiles and seams.
    reader : TileReader
        Reads the image.
    segmenter : callable
        The function.
    stage : Stage
        Where tiles are staged.
    occupied : numpy.ndarray, optional
        Which tiles hold signal, bool on the tile grid, where that was found out before. Else, with
        ``spec.skip_empty``, each tile that the reader's map does not decide is looked at when it
        has been read. What is signal says ``spec.empty_threshold``.
    limit : VoxelLimit, optional
        What this process knows of how many voxels the function has memory for.
    """

    def __init__(
        self,
        spec: RunSpec,
        reader: TileReader,
        segmenter: Segmenter,
        stage: Stage,
        occupied: np.ndarray | None = None,
        limit: VoxelLimit | None = None,
    ) -> None:
        self.spec = spec
        self.reader = reader
        self.segmenter = segmenter
        self.stage = stage
        self.occupied = occupied
        self.itemsize = reader.source.voxel_bytes
        limit = limit or VoxelLimit()
        self.halving = Halving(segmenter, spec.cuts, spec.connectivity, limit, self.itemsize)
        tile_bytes = prod(spec.grid.tile_shape) * self.itemsize
        self.max_group = max(1, min(MAX_GROUP, GROUP_BYTES // tile_bytes))
        self.group_size = 1

    def outcomes(
        self,
        tiles: Iterable[int],
        n_workers: int,
        n_ahead: int | None = None,
        recall: Recall[Sequence[int]] | None = None,
    ) -> Iterator[TileOutcome | PatchworksError]:
        """Yield what becomes of tiles, or the error that one of them ended with."""
        finished = overlapped(
            self._groups(tiles),
            read=self._read_group,
            compute=self._segment_group,
            write=self._stage_group,
            n_workers=n_workers,
            n_ahead=n_ahead,
            recall=recall,
        )
        try:
            for group in finished:
                yield from group.result()
        finally:
            finished.close()

    def _groups(self, tiles: Iterable[int]) -> Iterator[Sequence[int]]:
        """Cut tiles into groups that are handed over together: of one, unless they take no time."""
        todo = iter(tiles)
        while group := list(islice(todo, self.group_size)):
            yield group

    def _read_group(self, group: Sequence[int]) -> Views:
        """Read what there is to be read of each tile."""
        return [_part(self._read, index) for index in group]

    def _segment_group(self, views: Views) -> Views:
        """Call the function on each tile that was read."""
        start = time.perf_counter()
        done: Views = []
        try:
            done.extend(_part(self._segment, view) for view in views)
        except BaseException:  # Ctrl-C: what is done is done
            self._stage_group(done)
            raise
        seconds = time.perf_counter() - start
        if seconds < GROUP_S / 2:
            self.group_size = min(2 * len(views), self.max_group)
        elif seconds > GROUP_S:
            self.group_size = max(1, len(views) // 2)
        return done

    def _stage_group(self, views: Views) -> list[TileOutcome | PatchworksError]:
        """Stage the labels of each tile, and say what became of it."""
        return [_part(self._stage, view) for view in views]

    def _read(self, index: int) -> _View:
        start = time.perf_counter()
        tile, stage, spec = self.spec.grid[index], self.stage, self.spec
        if stage.is_done(index):
            return _View(tile, tile, "reused", n_labels=stage.read_counts(index)[0])
        if self.occupied is not None and not self.occupied.flat[index]:
            return _View(tile, tile, "empty")
        above = spec.empty_threshold if spec.skip_empty and self.occupied is None else None
        if above is not None and self.reader.leaves_out(tile, above):
            return _View(tile, tile, "empty")
        view = _View(tile, self._reach(tile), "segmented")
        voxels, view.n_bytes = read_tile(self.reader, view.part, above)
        view.n_bytes_needed = prod(view.part.core.shape) * self.itemsize
        if voxels is None:
            view.status = "empty"
        else:
            view.part, view.voxels = self._around_signal(tile, view.part, voxels)
        view.seconds = time.perf_counter() - start
        return view

    def _reach(self, tile: Tile) -> Tile:
        """Return as much of a tile as has to be read: its signal lies there, says the map."""
        rule, above = self.spec.crops, self.spec.empty_threshold
        bounds = None if rule is None or above is None else self.reader.signal_bounds(tile, above)
        reach = None if rule is None or bounds is None else rule.reach(tile, bounds)
        return tile if reach is None else within(tile, reach)

    def _around_signal(self, tile: Tile, read: Tile, voxels: np.ndarray) -> tuple[Tile, np.ndarray]:
        """Return the part of a tile that the function is handed, and its voxels."""
        rule, above = self.spec.crops, self.spec.empty_threshold
        if rule is None or above is None:
            return read, voxels
        # The map has learned from what was read. It spares looks, and changes nothing.
        bounds = self.reader.signal_bounds(read, above) or read.read
        signal = signal_box(part_of(voxels, bounds, read.read), above, tile.read.ndim)
        if signal is None:
            return read, voxels
        part = rule.part(tile, signal.placed_at(bounds.start))
        if part.read == read.read:
            return part, voxels
        return part, part_of(voxels, part.read, read.read).copy()

    def _segment(self, view: _View) -> _View:
        if view.voxels is not None:
            start = time.perf_counter()
            # They are staged while the function is at the next tile, and may be a buffer of its.
            labels = self._labels_of(view)
            view.labels = labels if is_unshared(labels) else labels.copy()
            view.function_s = time.perf_counter() - start
        return view

    def _labels_of(self, view: _View) -> np.ndarray:
        """Return the labels of a tile, whole or, for want of memory, of its halves."""
        voxels, view.voxels = view.voxels, None
        assert voxels is not None
        part = view.part
        if self.halving.allows(part):
            found = self.halving.attempt(voxels, part)
            if isinstance(found, np.ndarray):
                return found
            del voxels  # the function may have changed them: they are read anew, half by half
            free_memory()
            read = partial(self._read_anew, view)
            labels, view.n_halvings = self.halving.of_halves(part, read, found)
            return labels
        labels, view.n_halvings = self.halving.of_halves(part, partial(_copy_of, voxels, part.read))
        return labels

    def _read_anew(self, view: _View, box: Box) -> np.ndarray:
        """Return the voxels of a box, past what is kept for other tiles."""
        voxels, n_bytes = read_box(self.reader, view.tile, box)
        view.n_bytes += n_bytes
        return voxels

    def _stage(self, view: _View) -> TileOutcome:
        start = time.perf_counter()
        stage, tile = self.stage, view.tile
        labels, view.labels = view.labels, None
        if labels is not None:
            name = name_of(self.segmenter)
            seams, part = self.spec.seams, view.part
            view.n_labels = stage_tile(stage, seams, tile, labels, name, part).n_labels
        elif view.status == "empty":
            stage_empty_tile(stage, tile)
        return TileOutcome(
            tile.index,
            view.n_labels,
            view.status,
            view.seconds + view.function_s + time.perf_counter() - start,
            view.n_bytes,
            view.n_bytes_needed,
            view.function_s,
            view.n_halvings,
        )


def _copy_of(voxels: np.ndarray, read: Box, box: Box) -> np.ndarray:
    """Return what a tile has read of a box, the caller's own."""
    return part_of(voxels, box, read).copy()


def is_unshared(array: np.ndarray) -> bool:
    """Return whether nobody but the caller, in one variable, can change an array.

    Told from the number of references to the array, and to the one that owns the memory; where that
    is not known (memory of another library's) the answer is no.

    Examples
    --------
    >>> kept = np.zeros(3)
    >>> given, fresh = kept, np.zeros(3)[1:]
    >>> is_unshared(given), is_unshared(fresh)
    (False, True)
    """
    own, owner = _references(array)
    most_own, most_owner = _FRESH[_owner_of(array) is array]
    return own <= most_own and owner <= most_owner


def _references(array: np.ndarray) -> tuple[float, float]:
    own, owner = sys.getrefcount(array), _owner_of(array)
    return own, inf if owner is None else sys.getrefcount(owner)


def _owner_of(array: np.ndarray) -> np.ndarray | None:
    """Return the array that every view of the same memory refers to, if there is one."""
    base: Any = array.base
    while isinstance(base, np.ndarray):
        array, base = base, base.base
    return array if base is None or is_lent(array) else None


def _of_fresh(array: np.ndarray) -> tuple[float, float]:
    # By the same way as in `is_unshared`: what a call counts differs between Pythons.
    return _references(array)


def _fresh_counts() -> dict[bool, tuple[float, float]]:
    """Return the references to fresh arrays that own their memory (True), and to views."""
    owner = np.zeros(2)
    own = _of_fresh(owner)
    del owner
    view = np.zeros(2)[1:]
    return {True: own, False: _of_fresh(view)}


_FRESH = _fresh_counts()


def _part(do: Callable[[Any], Part], what: _View | PatchworksError | int) -> Part | PatchworksError:
    """Do one tile's part; its error takes the tile's place, and goes on in it."""
    if isinstance(what, PatchworksError):
        return what
    try:
        return do(what)
    except PatchworksError as error:
        return error
