"""The maximum projection of an image or label image of any size, read within bounds.

Of a pyramid the coarsest level that fills the picture, box by box along its chunks; and of a stack
no more planes than the bound allows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from math import prod

import numpy as np

from patchworks.errors import ImageReadError
from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid, ceil_div
from patchworks.io.image_source import ImageSource

logger = logging.getLogger(__name__)

MAX_BYTES = 2**28
"""Bytes read of the image, and of the labels, at most; also of one plane and of one chunk."""

MAX_BOX_BYTES = 2**25
"""Bytes read at a time, unless a chunk holds more."""

MAX_SECONDS = 8.0
"""Time for reading the image, and for the labels; what was read until then is drawn."""


def level_filling(levels: Sequence[ImageSource], side: int) -> ImageSource:
    """Return the coarsest level that fills `side` pixels, or one that can be read as a whole.

    A level of half as many pixels is still taken where all of its planes can be read then, and any
    level where a plane could not be read otherwise.
    """
    filling = [k for k, source in enumerate(levels) if max(source.shape[-2:]) >= side]
    chosen = max(filling, default=0)
    for coarser in range(chosen + 1, len(levels)):
        source = levels[chosen]
        is_whole = _n_bytes(source, source.shape) <= MAX_BYTES
        next_is_too_coarse = 2 * max(levels[coarser].shape[-2:]) < side
        if (is_whole or next_is_too_coarse) and why_too_large(source) is None:
            break
        chosen = coarser
    return levels[chosen]


def _n_bytes(source: ImageSource, shape: Sequence[int]) -> int:
    return prod(shape) * source.dtype.itemsize


def why_too_large(source: ImageSource) -> str | None:
    """Return why a source cannot be read within bounds, or None."""
    parts = {"plane": source.shape[-2:], "chunk": source.chunks or ()}
    for part, shape in parts.items():
        if _n_bytes(source, shape) > MAX_BYTES:
            return (
                f"{source.name}: one {part} of shape {shape} takes "
                f"{_n_bytes(source, shape) / 2**20:.0f} MiB, more than the "
                f"{MAX_BYTES / 2**20:.0f} MiB that are read for a picture; a pyramid helps"
            )
    return None


def planes_of_both(image: ImageSource, labels: ImageSource) -> tuple[list[Box], list[Box]]:
    """Return what is read of an image and of its labels on the axes before (y, x).

    The same planes of both: as many as can be read of the one of which fewer can.
    """
    of_image, of_labels = _leading_boxes(image), _leading_boxes(labels)
    outer = image.shape[:-2], labels.shape[:-2]
    if why_too_large(image) or _coverage(labels, of_labels) < _coverage(image, of_image):
        return [_rescaled(box, outer[1], outer[0]) for box in of_labels], of_labels
    return of_image, [_rescaled(box, outer[0], outer[1]) for box in of_image]


def _leading_boxes(source: ImageSource) -> list[Box]:
    """Return what is read on the axes before (y, x): all, or layers of chunks spread over it."""
    leading = source.shape[:-2]
    n_planes = max(1, MAX_BYTES // _n_bytes(source, source.shape[-2:]))
    if prod(leading) <= n_planes and (not leading or source.chunks is None):
        return [Box.whole(leading)]
    chunk = (source.chunks or source.shape)[:-2]
    layers = TileGrid.regular(leading, chunk, (0,) * len(leading))
    n_layers = min(layers.n_tiles, n_planes // layers[0].core.size)
    if n_layers:
        spread = [(2 * i + 1) * layers.n_tiles // (2 * n_layers) for i in range(n_layers)]
        return [layers[i].core for i in spread]
    slab = layers[layers.n_tiles // 2].core
    for axis, extent in enumerate(slab.shape):
        kept = min(extent, max(1, n_planes * extent // slab.size))
        start = slab.start[axis] + (extent - kept) // 2
        slab = slab.on_axis(axis, start, start + kept)
    return [slab]


def _coverage(source: ImageSource, boxes: Sequence[Box]) -> float:
    return sum(box.size for box in boxes) / prod(source.shape[:-2])


def _rescaled(box: Box, shape: tuple[int, ...], onto: tuple[int, ...]) -> Box:
    """Return the box of an array of shape `onto` that covers a box of an array of `shape`."""
    axes = list(zip(box.start, box.stop, shape, onto, strict=True))
    return Box(
        tuple([a * m // n for a, _, n, m in axes]),
        tuple([ceil_div(b * m, n) for _, b, n, m in axes]),
    )


def maximum_projection(source: ImageSource, leading: Sequence[Box]) -> np.ndarray:
    """Return the maximum over the axes before (y, x), read box by box, within `MAX_SECONDS`."""
    deadline = time.monotonic() + MAX_SECONDS
    flat = np.zeros(source.shape[-2:], source.dtype)
    depth = max(box.size for box in leading)
    planes = TileGrid.regular(flat.shape, _readable_cell(source, depth), (0, 0))
    for before in leading:
        for tile in planes:
            cell = tile.core
            voxels = _read(source, Box(before.start + cell.start, before.stop + cell.stop))
            highest = voxels.reshape(-1, *cell.shape).max(axis=0)
            seen = flat[cell.slices]
            flat[cell.slices] = highest if before is leading[0] else np.maximum(seen, highest)
            if time.monotonic() > deadline:
                logger.warning(
                    "%s: read for %.0f s; the picture shows what came until then",
                    source.name,
                    MAX_SECONDS,
                )
                return flat
    return flat


def _read(source: ImageSource, box: Box) -> np.ndarray:
    """Return the voxels of a box; an error of storage names the image."""
    try:
        return source.read(box)
    except OSError as error:
        raise ImageReadError(
            f"{source.name}: cannot be read at {box.start} ({error}); repair the image, or ask its "
            f"owner for the right to read it"
        ) from error


def _readable_cell(source: ImageSource, depth: int) -> tuple[int, int]:
    """Return the extent in (y, x) that is read at a time: whole chunks, rows first."""
    height, width = (source.chunks or (1,) * len(source.shape))[-2:]
    n_chunks = max(1, MAX_BOX_BYTES // (_n_bytes(source, (height, width)) * depth))
    across = min(n_chunks, ceil_div(source.shape[-1], width))
    return height * (n_chunks // across), width * across
