"""Which tiles hold signal: the map of maxima that tells, from where it is kept to where it is kept.

::

    kept beside the image ─► in the stage, for all workers ─► asked by the tile reader
             ▲                         ▲                              │
             └──────── what was learned of chunks that were decoded ◄─┘
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from patchworks.errors import InputError
from patchworks.geometry.box_grid import BoxGrid, plan_boxes
from patchworks.geometry.grid import Tile, TileGrid
from patchworks.io.absent_chunks import learn_absent
from patchworks.io.frames import pack, unpack
from patchworks.io.image_source import ImageSource
from patchworks.io.kept_map import KeptMap
from patchworks.io.maximum_map import MaximumMap
from patchworks.io.stage import Stage
from patchworks.run import finite_number
from patchworks.steps.background import RULE, Background, find_background

logger = logging.getLogger("patchworks")

STAGED_MAP = "maxima.map"
LEARNED = "maxima-"
"""The map in a stage, and the beginning of the names of arrays that say what batches learned."""

SAMPLED_VOXELS = 2**20
"""Voxels of the sample that the threshold is found in."""


def check_threshold(name: str, value: object, dtype: np.dtype) -> float | None:
    """Return a threshold as a float, None as None.

    Raises
    ------
    InputError
        If it is no finite number, or negative for an image that has no negative voxels.
    """
    threshold = finite_number(name, value)
    if threshold is not None and threshold < 0 and dtype.kind in "bu":
        raise InputError(
            f"{name}={value!r}: every voxel of an image of {dtype} lies above a negative number; "
            f"expected 0 or more"
        )
    return threshold


@dataclass
class Emptiness:
    """What is known of the maxima of an image, and where that is kept.

    Parameters
    ----------
    source : ImageSource
        The image; in a store, or at least in chunks.
    maxima : MaximumMap
        What is known.
    place : KeptMap, optional
        Where it is kept for other runs.
    threshold : float, optional
        What was found to be the threshold of the image, if none is given.
    """

    source: ImageSource
    maxima: MaximumMap
    place: KeptMap | None = None
    threshold: float | None = None
    _kept: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    _was_kept: bool = False

    @classmethod
    def of(cls, source: ImageSource) -> Emptiness | None:
        """Return what is known of an image; None for one in memory, which is looked at itself."""
        grid = boxes_of_image(source)
        if grid is None:
            return None
        place = KeptMap.of(source)
        kept = place.load(grid) if place is not None else None
        found = kept[0] if kept is not None else MaximumMap.unknown(grid, source.dtype)
        emptiness = cls(source, found, place, None, found.known.copy(), kept is not None)
        if kept is not None and kept[1].get("rule") == RULE:
            emptiness.threshold = kept[1]["threshold"]
        if not found.is_complete:
            learn_absent(source, found)
        return emptiness

    @property
    def was_begun(self) -> bool:
        """Whether another run left a part of the map."""
        return self._was_kept and not self.maxima.is_complete

    @cached_property
    def units(self) -> TileGrid:
        """The parts in which the image is read for its map alone."""
        return self.maxima.grid.units(self.source.dtype.itemsize)

    def choose_threshold(self, given: float | None) -> float:
        """Return the intensity above which a voxel is signal, found once for each image."""
        if given is not None:
            return given
        if self.threshold is not None:
            logger.info("signal is above %g (as found before)", self.threshold)
            return self.threshold
        found = sampled_background(self.source).threshold
        self.note_threshold(found)
        return found

    def note_threshold(self, found: float) -> None:
        """Note the threshold that was found in a sample of the image, to be kept with the map."""
        if self.threshold != found:
            self.threshold = found
            self._kept = np.zeros(0, bool)

    def look_at(self, units: Sequence[int]) -> int:
        """Read what is not known of some units of the image; returns how many voxels were read."""
        n_read = 0
        for index in units:
            for part in self.maxima.open_parts(self.units[index].core, inf):
                self.maxima.learn(part, self.source.read(part))
                n_read += part.size
        return n_read

    def take(self, learned: MaximumMap | None) -> None:
        """Take over what a reader has learned."""
        if learned is not None:
            self.maxima.take(learned)

    def keep(self) -> bool:
        """Keep what is known for other runs, if that is more than was kept; returns whether."""
        known = self.maxima.known
        if self.place is None or np.array_equal(self._kept, known) or not known.any():
            return False
        self._kept = known.copy()
        kept = self.place.load(self.maxima.grid)
        if kept is not None:  # by a run at the same time, which may have looked elsewhere
            self.take(kept[0])
        facts = {} if self.threshold is None else {"threshold": self.threshold, "rule": RULE}
        return self.place.keep(self.maxima, **facts)


def boxes_of_image(source: ImageSource) -> BoxGrid | None:
    """Return the boxes of an image's map; None for an image in memory, or of several channels."""
    if source.lead:
        return None
    array: Any = source.stored.array
    if source.chunks is None or isinstance(array, np.ndarray) or hasattr(array, "__dask_graph__"):
        return None
    return plan_boxes(source.shape, source.chunks)


def sampled_background(source: ImageSource) -> Background:
    """Return what is background by a sample of the image, and say so in the log."""
    found = find_background(source.sample(SAMPLED_VOXELS))
    logger.info("signal is above %g (%s)", found.threshold, found.said)
    return found


def stage_map(stage: Stage, maxima: MaximumMap) -> None:
    """Write what is known to a stage, where all workers of the run find it."""
    arrays = {"maxima": maxima.maxima, "known": np.packbits(maxima.known)}
    stage.write(STAGED_MAP, pack({}, arrays))


def staged_map(stage: Stage, source: ImageSource) -> MaximumMap | None:
    """Return what is known by a stage; nothing where it has no map."""
    grid = boxes_of_image(source)
    if grid is None:
        return None
    found = MaximumMap.unknown(grid, source.dtype)
    with suppress(OSError, ValueError):
        _, arrays = unpack(Path(stage.root / STAGED_MAP).read_bytes())
        if arrays["maxima"].shape == found.maxima.shape:
            found.maxima[...] = arrays["maxima"]
            bits = np.unpackbits(arrays["known"], count=found.known.size)
            found.known[...] = bits.reshape(found.known.shape)
    return found


def stage_learned(
    stage: Stage, units: Sequence[int], maxima: MaximumMap, known: np.ndarray
) -> None:
    """Write what units of the image added to a map of which some boxes were known."""
    stage.write_array(_learned_in(units), maxima.learned_beside(known))


def is_staged(stage: Stage, units: Sequence[int]) -> bool:
    """Return whether a stage says what units of the image added to the map."""
    return stage.read_array(_learned_in(units)) is not None


def _learned_in(units: Sequence[int]) -> str:
    return f"{LEARNED}{units[0]}-{units[-1]}"


def knows_empty(maxima: MaximumMap, tile: Tile, threshold: float) -> bool:
    """Return whether a map says that a tile holds no signal."""
    return maxima.is_signal(tile.read, threshold) is False


def gather_learned(stage: Stage, maxima: MaximumMap) -> None:
    """Add to a map what the stage says that batches have learned."""
    for path in sorted(stage.root.glob(f"{LEARNED}*.npy")):
        learned = stage.read_array(path.stem)
        if learned is not None:
            maxima.add(learned)
