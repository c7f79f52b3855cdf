"""A few real pieces of an image → what a function takes of memory and time.

The pieces grow, so that what a call takes is known before the next larger one is made: a probe
stops before it would take the memory that there is, or more time than it was given.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod

import numpy as np
from numcodecs import zstd

from patchworks.errors import SegmenterError
from patchworks.execution.gpu_memory import GpuWatch
from patchworks.execution.gpus import Gpu
from patchworks.execution.machine import held_bytes
from patchworks.execution.out_of_memory import forget_frames, free_memory, ran_out_of_memory
from patchworks.execution.peak_memory import measured
from patchworks.function_need import FunctionNeed
from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile
from patchworks.geometry.reuse import voxels_of_chunks
from patchworks.geometry.tile_shape import halve_until
from patchworks.io.identity import sample_boxes
from patchworks.io.image_source import ImageSource
from patchworks.io.level_store import ZSTD_LEVEL
from patchworks.segmenters import Segmenter
from patchworks.steps.segment import segment_tile

logger = logging.getLogger("patchworks")

FIRST_VOXELS = 2**17
"""Voxels of the first piece: large enough to be told from what any call takes."""

GROWTH = 8
"""How many times larger the next piece is."""

N_PLACES = 27
"""Places of the image that are looked at, to find those with most in them."""

N_FULL = 3
"""Places at which pieces of the largest size are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One call of the function, measured.

    Parameters
    ----------
    box : Box
        What it was given, in the image.
    seconds, read_s : float
        In the function; reading its voxels.
    n_decoded : int
        Voxels of the chunks that were decoded for it.
    peak_bytes, gpu_bytes : int
        Memory at its peak beside the voxels, and that of the GPU.
    label_bytes : int
        Of one label, as the function returned them.
    n_objects : int
        Labels that it found.
    stored_bytes : int
        Of the labels, compressed as in a label image.
    store_s : float
        Seconds to compress them.
    """

    box: Box
    seconds: float
    read_s: float
    n_decoded: int
    peak_bytes: int
    gpu_bytes: int
    label_bytes: int
    n_objects: int
    stored_bytes: int
    store_s: float

    @property
    def n_voxels(self) -> int:
        """Voxels that it was given."""
        return self.box.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What calls of a function on a few pieces of an image took.

    Parameters
    ----------
    pieces : tuple of Piece
        In the order of their sizes; the last ones have the same.
    need : FunctionNeed
        What follows for any piece.
    ended : str
        Why the largest piece is no larger; empty if it is as large as was asked for.
    failed_voxels : int or None
        Of the piece that the function had no memory for.
    """

    pieces: tuple[Piece, ...]
    need: FunctionNeed
    ended: str = ""
    failed_voxels: int | None = None

    @property
    def largest(self) -> Piece:
        """The largest piece that went well."""
        return max(self.pieces, key=lambda piece: piece.n_voxels)

    @property
    def full(self) -> list[Piece]:
        """All pieces of the largest size."""
        return [piece for piece in self.pieces if piece.n_voxels == self.largest.n_voxels]

    def mean(self, of: str, per: str = "n_voxels") -> float:
        """Return something of the largest pieces, per voxel that they hold or that was decoded."""
        total = float(sum(getattr(piece, per) for piece in self.full))
        return float(sum(getattr(piece, of) for piece in self.full)) / total


def probe_function(
    source: ImageSource,
    segmenter: Segmenter,
    largest: tuple[int, ...],
    *,
    max_seconds: float,
    budget_bytes: int,
    apart: tuple[int, ...] = (),
    gpus: Sequence[Gpu] = (),
) -> Probe:
    """Call a function on pieces of an image, larger and larger ones, and measure it.

    Parameters
    ----------
    source : ImageSource
        The image.
    segmenter : callable
        The function, prepared.
    largest : tuple of int
        Shape of the largest piece to try, in voxels.
    max_seconds : float
        No piece is begun that would end later, as far as can be told.
    budget_bytes : int
        No piece is begun that would take more memory, as far as can be told.
    apart : tuple of int
        Axes that the function does not see; `largest` is 1 there.
    gpus : sequence of Gpu
        GPUs whose memory is looked at.

    Raises
    ------
    SegmenterError, ImageReadError
        If the function fails on the smallest piece, or for another reason than memory; or the
        image cannot be read.
    """
    probing = _Probing(source, segmenter, apart, GpuWatch(gpus))
    places = _places(source)
    held, end = held_bytes(), time.monotonic() + max_seconds
    boxes = _growing(source, places[0], largest)
    probing.measure(boxes[0])  # it may load a model, or compile
    pieces, ended, failed = [probing.measure(boxes[0])], "", None
    fixed = max(0, held_bytes() - held)
    for box in boxes[1:]:
        last, growth = pieces[-1], box.size / pieces[-1].n_voxels
        if time.monotonic() + probing.seconds_for(box, last) > end:
            ended = f"a larger piece would take more than the {max_seconds:g} s of a probe"
            break
        if growth * (last.peak_bytes + last.n_voxels * source.voxel_bytes) > budget_bytes:
            ended = f"a larger piece would not fit {budget_bytes / 2**30:.1f} GiB of memory"
            break
        piece = probing.try_measure(box)
        if piece is None:
            ended, failed = f"the function ran out of memory with {box.shape}", box.size
            break
        pieces.append(piece)
    for place in places[1:N_FULL]:
        last = pieces[-1]
        if time.monotonic() + last.seconds + last.read_s > end:
            break
        pieces.append(probing.measure(_box_at(source, place, last.box.shape)))
    return Probe(pieces=tuple(pieces), need=_need(pieces, fixed), ended=ended, failed_voxels=failed)


class _Probing:
    """Calls the function, and measures."""

    def __init__(
        self, source: ImageSource, segmenter: Segmenter, apart: tuple[int, ...], gpu: GpuWatch
    ) -> None:
        self.source = source
        self.apart = apart
        self.segmenter = segmenter
        self.gpu = gpu

    def n_decoded(self, box: Box) -> int:
        """Return the voxels of the chunks that are decoded for a box."""
        chunks = self.source.chunks
        return box.size if chunks is None else voxels_of_chunks(box, chunks)

    def seconds_for(self, box: Box, last: Piece) -> float:
        """Return how long a larger piece will take, after that of the last."""
        read_s = last.read_s * self.n_decoded(box) / last.n_decoded
        return read_s + last.seconds * box.size / last.n_voxels

    def try_measure(self, box: Box) -> Piece | None:
        """Return what a call took, or None if there was no memory for it."""
        try:
            return self.measure(box)
        except SegmenterError as error:
            if not ran_out_of_memory(error):
                raise
            forget_frames(error)
        free_memory()
        return None

    def measure(self, box: Box) -> Piece:
        """Return what a call took."""
        tile = Tile(0, (0,) * len(box.shape), box, box, self.apart)
        start = time.perf_counter()
        voxels = self.source.read(box)
        read_s = time.perf_counter() - start
        with self.gpu:
            call = measured(lambda: segment_tile(voxels, tile, self.segmenter))
        labels = call.result
        start = time.perf_counter()
        stored = zstd.compress(np.ascontiguousarray(labels.astype(np.uint32)), ZSTD_LEVEL)
        return Piece(
            box=box,
            seconds=call.seconds,
            read_s=read_s,
            n_decoded=self.n_decoded(box),
            peak_bytes=call.peak_bytes,
            gpu_bytes=self.gpu.peak_bytes,
            label_bytes=labels.itemsize,
            n_objects=len(np.unique(labels[labels > 0])),
            stored_bytes=len(stored),
            store_s=time.perf_counter() - start,
        )


def _need(pieces: Sequence[Piece], fixed: int) -> FunctionNeed:
    """Return what follows from pieces for any: a line through the two largest sizes."""
    sizes = sorted({piece.n_voxels for piece in pieces})[-2:]
    full = [piece for piece in pieces if piece.n_voxels == sizes[-1]]

    def line(attribute: str) -> tuple[float, int]:
        peaks = [max(getattr(p, attribute) for p in pieces if p.n_voxels == n) for n in sizes]
        slope = (peaks[-1] - peaks[0]) / max(1, sizes[-1] - sizes[0])
        if slope <= 0:
            slope = peaks[-1] / sizes[-1]
        return slope, max(0, int(peaks[-1] - slope * sizes[-1]))

    per_voxel, more = line("peak_bytes")
    gpu_per_voxel, gpu_fixed = line("gpu_bytes")
    return FunctionNeed(
        bytes_per_voxel=per_voxel,
        label_bytes=full[0].label_bytes,
        fixed_bytes=fixed + more,
        gpu_bytes_per_voxel=gpu_per_voxel,
        gpu_fixed_bytes=gpu_fixed,
        seconds_per_voxel=sum(p.seconds for p in full) / sum(p.n_voxels for p in full),
    )


def _places(source: ImageSource) -> list[tuple[int, ...]]:
    """Return centres of parts of the image: first where most is to be seen, then evenly spread."""
    chunk = tuple([min(c, 256) for c in source.chunks or source.shape])
    boxes = sample_boxes(source.shape, halve_until(chunk, 2**20), N_PLACES)
    richest = int(np.argmax([_brightness(source.read(box)) for box in boxes]))
    order = [richest, *[len(boxes) * (2 * i + 1) // (2 * (N_FULL - 1)) for i in range(N_FULL - 1)]]
    return [_centre(boxes[i]) for i in order]


def _brightness(voxels: np.ndarray) -> float:
    """Return the mean of what is a number; less than any where nothing is."""
    finite = voxels[np.isfinite(voxels)]
    return float(finite.mean(dtype=np.float64)) if finite.size else -inf


def _centre(box: Box) -> tuple[int, ...]:
    return tuple([(a + b) // 2 for a, b in zip(box.start, box.stop, strict=True)])


def _growing(source: ImageSource, place: tuple[int, ...], largest: tuple[int, ...]) -> list[Box]:
    """Return boxes at a place, from a small one to the largest."""
    shapes, n_voxels = [], FIRST_VOXELS
    while True:
        shapes.append(halve_until(largest, n_voxels))
        if n_voxels >= prod(largest):
            break
        n_voxels *= GROWTH
    distinct = list(dict.fromkeys(shapes))
    return [_box_at(source, place, shape) for shape in distinct]


def _box_at(source: ImageSource, place: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    return Box.around(place, shape, Box.whole(source.shape))
