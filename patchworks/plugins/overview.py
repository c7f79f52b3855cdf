"""A picture of a result without a viewer: outlines of the objects over the image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from patchworks.errors import InputError
from patchworks.geometry.box import Box
from patchworks.io.source import ImageSource, open_source

MAX_VOXELS = 2**28
"""Voxels read for a picture at most."""

PALETTE = np.array(
    [
        [255, 90, 95], [255, 180, 0], [120, 220, 70], [0, 200, 190],
        [70, 150, 255], [180, 120, 255], [255, 120, 210], [240, 230, 80],
    ],
    np.uint8,
)  # fmt: skip


def overview_png(
    image: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    channel: int | None = 0,
    level: int = 0,
    tile_shape: tuple[int, ...] | None = None,
    max_pixels: int = 1400,
) -> Path:
    """Write a PNG with the outlines of the objects over the maximum projection of the image.

    Parameters
    ----------
    image : path or URL
        The image's store.
    labels : path or URL
        The label image's group.
    path : path
        The PNG to write.
    channel, level : int
        Of the image, as it was segmented.
    tile_shape : tuple of int, optional
        Also draw the seams of tiles of this shape, in voxels.
    max_pixels : int
        Longest side of the picture.

    Returns
    -------
    pathlib.Path
        The PNG.

    Raises
    ------
    SourceNotFoundError
        If a store is missing.
    InputError
        If the labels do not have the image's shape, or no level is small enough to be drawn.
    """
    source = open_source(image, channel=channel, level=level)
    full = _labels_at(labels, 0)
    if full.shape != source.shape:
        raise InputError(f"{labels}: shape {full.shape}; the image has {source.shape}")
    ids, factor = _small_labels(labels, full, max_pixels)
    picture = _projection(_image_like(image, channel, level, source), ids.shape[-2:])
    flat = ids.reshape(-1, *ids.shape[-2:]).max(axis=0)
    zoom = max(1, max_pixels // max(flat.shape))
    flat, picture = (np.kron(a, np.ones((zoom, zoom), a.dtype)) for a in (flat, picture))
    colours = np.repeat(picture[..., None], 3, axis=2)
    if tile_shape is not None:
        _draw_seams(colours, [t * zoom / factor for t in tile_shape[-2:]])
    edge = _outlines(flat, 2 if zoom > 1 else 1)
    colours[edge] = PALETTE[flat[edge] % len(PALETTE)]
    Image.fromarray(colours).save(path, optimize=True)
    return Path(path)


def _labels_at(labels: str | os.PathLike[str], level: int) -> ImageSource:
    return open_source(labels, channel=None, level=level)


def _small_labels(
    labels: str | os.PathLike[str], full: ImageSource, max_pixels: int
) -> tuple[np.ndarray, float]:
    """Return the finest level that fits the picture, and its factor against level 0."""
    level = full
    for index in range(64):
        try:
            level = _labels_at(labels, index)
        except InputError:
            break
        if max(level.shape[-2:]) <= max_pixels:
            break
    if np.prod(level.shape) > MAX_VOXELS:
        raise InputError(f"{labels}: the smallest level, {level.shape}, is too large for a picture")
    factor = full.shape[-1] / level.shape[-1]
    return level.read(Box.whole(level.shape)), factor


def _image_like(
    image: str | os.PathLike[str], channel: int | None, level: int, source: ImageSource
) -> ImageSource:
    """Return the coarsest level of the image that is small enough, or the one segmented."""
    found = source
    while np.prod(found.shape) > MAX_VOXELS:
        level += 1
        try:
            found = open_source(image, channel=channel, level=level)
        except InputError as error:
            raise InputError(f"{image}: no level is small enough for a picture") from error
    return found


def _projection(source: ImageSource, shape: tuple[int, ...]) -> np.ndarray:
    """Return the maximum projection as uint8 grey of `shape`, stretched to its percentiles."""
    voxels = source.read(Box.whole(source.shape))
    flat = voxels.reshape(-1, *voxels.shape[-2:]).max(axis=0).astype(np.float32)
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * m / n, m - 1).astype(int)
        for n, m in zip(shape, flat.shape, strict=True)
    )
    flat = flat[np.ix_(rows, columns)]
    low, high = np.percentile(flat, [1, 99.7])
    grey = np.clip((flat - low) / max(high - low, 1e-9), 0, 1) ** 0.7
    scaled: np.ndarray = (grey * 255).astype(np.uint8)
    return scaled


def _outlines(labels: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of objects that lie within `width` of another label."""
    padded = np.pad(labels, width, mode="edge")
    height, length = labels.shape
    edge = np.zeros(labels.shape, bool)
    for step in range(1, width + 1):
        for dy, dx in ((step, 0), (-step, 0), (0, step), (0, -step)):
            y, x = width + dy, width + dx
            edge |= padded[y : y + height, x : x + length] != labels
    return edge & (labels > 0)


def _draw_seams(colours: np.ndarray, spacing: list[float]) -> None:
    """Draw dashed lines where tiles meet."""
    dash = np.arange(max(colours.shape[:2])) % 12 < 6
    for y in np.arange(spacing[0], colours.shape[0] - 1, spacing[0]).astype(int):
        colours[y, dash[: colours.shape[1]]] = 150
    for x in np.arange(spacing[1], colours.shape[1] - 1, spacing[1]).astype(int):
        colours[dash[: colours.shape[0]], x] = 150
