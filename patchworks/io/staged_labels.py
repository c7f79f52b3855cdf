"""Labels of a tile's core as they are staged: as runs of equal labels, or voxel by voxel.

Of a core that is labelled in a part of it only, the labels of that part are staged.

Labels of objects come in runs: stretches of one label along the last axis, of which there are far
fewer than voxels. Finding them tells which labels there are, writing them takes a fraction of what
all voxels take, and repeating each label over its run gives the voxels back. Labels that change
nearly everywhere are staged voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import imagecodecs
import numpy as np

from patchworks.geometry.box import Box
from patchworks.io.frames import pack, unpack

PART = 2**19
"""Voxels looked at in one go: they fit the processor's cache, and each go has its price."""

LONGEST = 2**16 - 1
"""Voxels of a run at most: its length takes two bytes."""

MIN_RUN = 4
"""Voxels of a run, on average, from which on runs are less to write than voxels."""


@dataclass(frozen=True, slots=True)
class LabelRuns:
    """Labels as runs; none goes on from one plane of the last two axes to the next.

    Parameters
    ----------
    shape : tuple of int
        Of the labels, two axes or more.
    values : numpy.ndarray
        The label of each run, in C order.
    lengths : numpy.ndarray
        Voxels of each run, uint16.
    first : numpy.ndarray
        Per plane the index of its first run; one more entry with the number of runs at the end.
    """

    shape: tuple[int, ...]
    values: np.ndarray
    lengths: np.ndarray
    first: np.ndarray

    def mapped(self, table: np.ndarray) -> LabelRuns:
        """Return the labels ``table[label]``."""
        return replace(self, values=table.take(self.values, mode="clip"))

    def planes(self, start: int, stop: int) -> np.ndarray:
        """Return planes of the last two axes, counted in C order; shape ``(n, ny, nx)``."""
        runs = slice(int(self.first[start]), int(self.first[stop]))
        found = _repeated(self.values[runs], self.lengths[runs])
        return found.reshape(stop - start, *self.shape[-2:])

    def to_array(self) -> np.ndarray:
        """Return all labels, of the tile's shape."""
        return self.planes(0, len(self.first) - 1).reshape(self.shape)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is written of them, by name."""
        return {"values": self.values, "lengths": self.lengths, "first": self.first}

    def to_bytes(self) -> bytes:
        """Return them as the bytes of a file."""
        return pack({"shape": self.shape}, self.arrays)


@dataclass(frozen=True, slots=True)
class LabelVoxels:
    """Labels voxel by voxel.

    Parameters
    ----------
    labels : numpy.ndarray
        Two axes or more.
    table : numpy.ndarray, optional
        What to give in place of each label, looked up where labels are read.
    """

    labels: np.ndarray
    table: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the labels."""
        return self.labels.shape

    def mapped(self, table: np.ndarray) -> LabelVoxels:
        """Return the labels ``table[label]``."""
        return replace(self, table=table)

    def planes(self, start: int, stop: int) -> np.ndarray:
        """Return planes of the last two axes, counted in C order; shape ``(n, ny, nx)``."""
        planes = self.labels.reshape(-1, *self.shape[-2:])[start:stop]
        return planes if self.table is None else self.table.take(planes, mode="clip")

    def to_array(self) -> np.ndarray:
        """Return all labels, of the tile's shape."""
        return self.labels if self.table is None else self.table.take(self.labels, mode="clip")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is written of them, by name."""
        return {"labels": self.to_array()}

    def to_bytes(self) -> bytes:
        """Return them as the bytes of a file."""
        return pack({"shape": self.shape}, self.arrays)


WholeLabels = LabelRuns | LabelVoxels

PART_SHAPE, CORE_SHAPE, START = "part_shape", "core_shape", "start"
"""Facts of a part's file. It lacks those of a whole core's: nobody takes the one for the other."""


@dataclass(frozen=True, slots=True)
class PartLabels:
    """Labels of a part of a core; all others are 0.

    Parameters
    ----------
    shape : tuple of int
        Of the core.
    start : tuple of int
        First voxel of the part in the core.
    labels : LabelRuns or LabelVoxels
        Those of the part.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    labels: WholeLabels

    @property
    def box(self) -> Box:
        """The part, in the core."""
        return Box.whole(self.labels.shape).placed_at(self.start)

    def mapped(self, table: np.ndarray) -> PartLabels:
        """Return the labels ``table[label]``; 0 stays 0."""
        return replace(self, labels=self.labels.mapped(table))

    def to_array(self) -> np.ndarray:
        """Return all labels, of the core's shape."""
        part = self.labels.to_array()
        whole: np.ndarray = np.zeros(self.shape, part.dtype)
        whole[self.box.slices] = part
        return whole

    def to_bytes(self) -> bytes:
        """Return them as the bytes of a file."""
        facts = {PART_SHAPE: self.labels.shape, CORE_SHAPE: self.shape, START: self.start}
        arrays = self.labels.arrays
        return pack(facts, {f"part_{name}": array for name, array in arrays.items()})


StagedLabels = LabelRuns | LabelVoxels | PartLabels


def from_bytes(content: bytes) -> StagedLabels:
    """Return the labels in a file's bytes; raises ValueError if it is damaged."""
    facts, arrays = unpack(content)
    try:
        if CORE_SHAPE not in facts:
            return _whole(facts.get("shape"), arrays)
        held = {name.removeprefix("part_"): array for name, array in arrays.items()}
        part = _whole(facts[PART_SHAPE], held)
        return PartLabels(tuple(facts[CORE_SHAPE]), tuple(facts[START]), part)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no staged labels: {error}") from error


def _whole(shape: Any, arrays: Mapping[str, np.ndarray]) -> WholeLabels:
    if arrays.keys() == {"labels"}:
        return LabelVoxels(arrays["labels"])
    return LabelRuns(tuple(shape), **arrays)


def _repeated(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return each value as often as it is long: `numpy.repeat` for threads side by side.

    NumPy's holds the interpreter's lock. So each run's first voxel gets the difference to the run
    before, and sums from the left, made without the lock, give the values back; differences below
    zero wrap around, and so do the sums.
    """
    ends = np.cumsum(lengths, dtype=np.intp)
    found: np.ndarray = np.zeros(ends[-1], values.dtype)
    found[0] = values[0]
    found[ends[:-1]] = values[1:] - values[:-1]
    imagecodecs.delta_decode(found, out=found)
    return found


def find_runs(labels: np.ndarray) -> LabelRuns:
    """Return labels of two axes or more as runs.

    Examples
    --------
    >>> runs = find_runs(np.array([[7, 7, 0], [0, 0, 9]]))
    >>> runs.values.tolist(), runs.lengths.tolist()
    ([7, 0, 9], [2, 3, 1])
    """
    plane_size = prod(labels.shape[-2:])
    starts, values, offset = [], [], 0
    for block in _blocks(labels):
        flat = np.ascontiguousarray(block).ravel()
        begins = np.empty(flat.size, bool)
        np.not_equal(flat[1:], flat[:-1], out=begins[1:])
        begins[::LONGEST] = True
        begins[::plane_size] = True  # blocks begin with a plane, or lie in one
        found = np.flatnonzero(begins)
        values.append(flat.take(found))
        starts.append(found + offset)
        offset += flat.size
    place = np.concatenate([*starts, [labels.size]])
    lengths = np.diff(place).astype(np.uint16)
    first = np.searchsorted(place, np.arange(0, labels.size + 1, plane_size))
    return LabelRuns(labels.shape, np.concatenate(values), lengths, first)


def _blocks(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield blocks of labels, in C order, that fit the processor's cache."""
    ny, nx = labels.shape[-2:]
    planes = labels.reshape(-1, ny, nx)
    n = PART // (ny * nx)
    if n:
        yield from (planes[start : start + n] for start in range(0, len(planes), n))
        return
    n_rows = max(1, PART // nx)
    for plane in planes:
        yield from (plane[start : start + n_rows] for start in range(0, ny, n_rows))
