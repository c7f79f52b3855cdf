"""A tile that the function has no memory for → the labels of its halves, joined like tiles.

What runs out is mostly the memory of a GPU, and nobody knows beforehand when. So the call that
failed is forgotten, what it left in memory is freed, and the tile is cut in two: as often as it
takes, down to a floor. The labels of the pieces are put together to those of the whole tile, and
go on as if the function had given them.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable

import numpy as np

from patchworks.errors import SegmenterError
from patchworks.execution.out_of_memory import forget_frames, free_memory, ran_out_of_memory
from patchworks.geometry.box import Box
from patchworks.geometry.components import components
from patchworks.geometry.grid import Tile
from patchworks.geometry.halves import Cut, CutRule
from patchworks.io.record import smallest_unsigned
from patchworks.segmenters import Segmenter, name_of
from patchworks.steps.seams import join_by_agreement, join_by_touch
from patchworks.steps.segment import segment_tile
from patchworks.steps.stage import check_not_negative, ranked

logger = logging.getLogger(__name__)

RETRY_EVERY = 32
"""Of so many pieces that are as large as one that failed, one is tried whole again: what took the
memory may have been somebody else's, and be gone."""


class VoxelLimit:
    """How many voxels at a time the function has memory for, as far as this process knows.

    Used by several threads.

    Examples
    --------
    >>> limit = VoxelLimit()
    >>> limit.note_failure(1000)
    True
    >>> limit.allows(999), limit.allows(1000)
    (True, False)
    """

    def __init__(self) -> None:
        self._least_failed: int | None = None
        self._n_refused = 0
        self._n_failures = 0
        self._lock = threading.Lock()

    def allows(self, n_voxels: int) -> bool:
        """Return whether to try so many voxels."""
        least_failed = self._least_failed
        if least_failed is None or n_voxels < least_failed:
            return True
        with self._lock:
            self._n_refused += 1
            return self._n_refused % RETRY_EVERY == 0

    def note_failure(self, n_voxels: int) -> bool:
        """Note that memory ran out; return whether it is the first time."""
        with self._lock:
            self._least_failed = min(self._least_failed or n_voxels, n_voxels)
            self._n_failures += 1
            return self._n_failures == 1

    def note_success(self, n_voxels: int) -> None:
        """Note that there was enough memory for so many."""
        least_failed = self._least_failed
        if least_failed is not None and n_voxels >= least_failed:
            with self._lock:  # whatever failed below it, failed for another reason
                self._least_failed = None


class Halving:
    """Calls a function on tiles, and on parts of those that it has no memory for.

    Parameters
    ----------
    segmenter : callable
        The function.
    rule : CutRule
        How tiles are cut.
    connectivity : int
        Of seams that are judged by touch.
    limit : VoxelLimit
        What this process knows of earlier tiles.
    itemsize : int
        Bytes of a voxel, for the message at the end.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        rule: CutRule,
        connectivity: int,
        limit: VoxelLimit,
        itemsize: int,
    ) -> None:
        self.segmenter = segmenter
        self.itemsize = itemsize
        self.rule = rule
        self.connectivity = connectivity
        self.limit = limit

    def allows(self, tile: Tile) -> bool:
        """Return whether to try a tile as a whole: nothing as large has failed, or long ago."""
        return self.limit.allows(tile.read.size) or self.rule.cut(tile) is None

    def attempt(self, voxels: np.ndarray, tile: Tile) -> np.ndarray | SegmenterError:
        """Return the labels of a tile, or what the function said if it ran out of memory.

        Then nothing of the call is left in memory but `voxels`, which the caller is to let go.

        Raises
        ------
        SegmenterError
            If it fails for any other reason.
        """
        before = sys.exception()
        try:
            labels = segment_tile(voxels, tile, self.segmenter)
        except SegmenterError as error:
            if not ran_out_of_memory(error, before):
                raise
            forget_frames(error, before)
            failure = error.with_traceback(None)  # it holds this very call, and so `voxels`
        else:
            self.limit.note_success(tile.read.size)
            return labels
        self._tell(tile, failure)
        return failure

    def _tell(self, tile: Tile, failure: SegmenterError) -> None:
        """Say once what a user can do about it."""
        is_first = self.limit.note_failure(tile.read.size)
        cut = self.rule.cut(tile)
        if cut is None:
            return
        advice = f"; tile_shape={cut.lower.core.shape} would spare what failing costs"
        logger.log(
            logging.WARNING if is_first else logging.INFO,
            "%s; %d voxels are cut in two along axis %d, and so are others as large%s",
            failure, tile.read.size, cut.axis, advice if is_first else "",
        )  # fmt: skip

    def of_halves(
        self, tile: Tile, read: Callable[[Box], np.ndarray], failure: SegmenterError | None = None
    ) -> tuple[np.ndarray, int]:
        """Return the labels of a tile made from its halves, and how often something was cut.

        Parameters
        ----------
        tile : Tile
            The tile, or part of one.
        read : callable
            Returns the voxels of a box of the image: the caller's own, which the function may
            change.
        failure : SegmenterError, optional
            What the function said of the whole, if it was called.

        Raises
        ------
        SegmenterError
            If it cannot be cut any more, or the function fails for another reason.
        """
        cut = self.rule.cut(tile)
        if cut is None:
            raise self._at_the_floor(tile, failure)
        lower, n_lower = self._of_piece(cut.lower, read)
        upper, n_upper = self._of_piece(cut.upper, read)
        return self._joined(tile, cut, lower, upper), 1 + n_lower + n_upper

    def _of_piece(self, piece: Tile, read: Callable[[Box], np.ndarray]) -> tuple[np.ndarray, int]:
        failure = None
        if self.allows(piece):
            found = self.attempt(read(piece.read), piece)
            if isinstance(found, np.ndarray):
                return self._dense(found, piece), 0
            failure = found
            free_memory()
        return self.of_halves(piece, read, failure)

    def _dense(self, labels: np.ndarray, piece: Tile) -> np.ndarray:
        """Return labels in new memory, 1..n: the function may use its own again."""
        check_not_negative(int(labels.min()), piece, name_of(self.segmenter))
        labels, _, largest = ranked(labels, [])
        seen = np.zeros(largest + 1, bool)
        seen[labels] = True
        seen[0] = False
        n_labels = int(seen.sum())
        table = np.zeros(largest + 1, smallest_unsigned(n_labels))
        table[seen] = np.arange(1, n_labels + 1)
        dense: np.ndarray = table[labels]
        return dense

    def _joined(self, tile: Tile, cut: Cut, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Return the labels of a tile, put together from those of its halves."""
        n_lower, n_upper = int(lower.max()), int(upper.max())
        joins = self._joins(cut, lower, upper)
        n = n_lower + n_upper
        table = np.arange(n + 1, dtype=smallest_unsigned(n))
        if len(joins):
            ends = joins[:, 0] - 1, joins[:, 1] - 1 + n_lower
            table[1:] = components(ends[0], ends[1], n) + 1
        labels = np.empty(tile.read.shape, table.dtype)
        below = tile.read.on_axis(cut.axis, tile.read.start[cut.axis], cut.seam)
        above = tile.read.on_axis(cut.axis, cut.seam, tile.read.stop[cut.axis])
        tables = table[: n_lower + 1], np.append(table[:1], table[n_lower + 1 :])
        for box, half, found, to in zip(
            (below, above), (cut.lower, cut.upper), (lower, upper), tables, strict=True
        ):
            part = found[box.relative_to(half.read.start).slices]
            labels[box.relative_to(tile.read.start).slices] = to[part]
        return labels

    def _joins(self, cut: Cut, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Return the labels of the two halves that are one object."""
        ours = lower[cut.planes[0].relative_to(cut.lower.read.start).slices]
        theirs = upper[cut.planes[1].relative_to(cut.upper.read.start).slices]
        if cut.is_slab:
            return join_by_agreement(ours, theirs)
        return join_by_touch(
            np.atleast_1d(ours.squeeze(cut.axis)),
            np.atleast_1d(theirs.squeeze(cut.axis)),
            self.connectivity - 1,
        )

    def _at_the_floor(self, tile: Tile, failure: SegmenterError | None) -> SegmenterError:
        """Return the error of a piece that cannot be cut any more."""
        shape, n_voxels, halo = tile.read.shape, tile.read.size, self.rule.halo
        said = str(failure) if failure is not None else name_of(self.segmenter)
        error = SegmenterError(
            f"{said}; this was the smallest piece of tile {tile.index}, {shape}: {n_voxels} voxels "
            f"in {n_voxels * self.itemsize} bytes. Thinner ones would read as much, for overlaps "
            f"of {halo}: give a smaller overlap=, let the function take less at a time (its batch "
            f"size), or use a device with more memory"
        )
        error.heals = True
        error.__cause__ = None if failure is None else failure.__cause__
        return error
