"""A picture of a result without a viewer: outlines of the objects over the image."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from patchworks.errors import InputError
from patchworks.geometry.neighbour_colors import pixel_colors
from patchworks.io.channels import ChannelChoice
from patchworks.io.find_labels import labels_named, only_labels
from patchworks.io.image_source import ImageSource
from patchworks.io.location import Location
from patchworks.io.projection import (
    level_filling,
    maximum_projection,
    planes_of_both,
    why_too_large,
)
from patchworks.io.source import open_source

logger = logging.getLogger(__name__)

MAX_PAGE_PIXELS = 800
"""Pixels across that a page shows without shrinking the picture."""

MIN_PIXELS = 16
"""Longest side of the smallest picture that is tried where bytes are limited."""

PALETTE = np.array(
    [
        [255, 90, 95], [255, 180, 0], [120, 220, 70], [0, 200, 190],
        [70, 150, 255], [180, 120, 255], [255, 120, 210], [240, 230, 80],
    ],
    np.uint8,
)  # fmt: skip
"""Colours of the outlines: the last indices of a picture."""

N_GREYS = 256 - len(PALETTE)
N_FEW_GREYS = N_GREYS // 8

GREYS = np.repeat(np.linspace(0, 255, N_GREYS).astype(np.uint8)[:, None], 3, axis=1)
"""Greys of the image: the first indices of a picture."""

SEAM = 150
"""Grey of the lines where tiles meet."""


def overview_png(
    image: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] = "overview.png",
    *,
    channel: ChannelChoice = 0,
    level: int = 0,
    tile_shape: tuple[int, ...] | None = None,
    max_pixels: int = 1400,
) -> Path:
    """Write a PNG with the outlines of the objects over the maximum projection of the image.

    Parameters
    ----------
    image : path or URL
        The image's store.
    labels : path, URL or name, optional
        The label image: its group, or the name of one that lies in the image's store or beside it;
        None for the only one there is.
    path : path
        The PNG to write.
    channel, level
        Of the image, as it was segmented; of several channels the first is drawn.
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
        If there is no folder for the PNG; if there are no labels, or several and none is named; if
        they do not have the image's shape, or no level small enough to be drawn.
    """
    target = Path(path).expanduser()
    if not target.parent.is_dir():
        raise InputError(
            f"path={os.fspath(path)!r}: there is no folder {target.parent}; make it, or give "
            f"another place for the picture"
        )
    picture = overview_picture(
        image, labels, channel=channel, level=level, tile_shape=tile_shape, max_pixels=max_pixels
    )
    target.write_bytes(picture)
    return target


def overview_picture(
    image: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    channel: ChannelChoice = 0,
    level: int = 0,
    tile_shape: tuple[int, ...] | None = None,
    max_pixels: int = 1024,
    max_bytes: int | None = None,
) -> bytes:
    """Return a picture with the outlines of the objects over the maximum projection of the image.

    Reads at most 256 MiB of each. Where the image cannot be read within that (no pyramid, and one
    plane or one chunk takes more), the outlines are drawn over black, and the log says why.

    Parameters
    ----------
    image : path or URL
        The image's store.
    labels : path, URL or name, optional
        The label image: its group, or the name of one that lies in the image's store or beside it;
        None for the only one there is.
    channel, level
        Of the image, as it was segmented; of several channels the first is drawn.
    tile_shape : tuple of int, optional
        Also draw the seams of tiles of this shape, in voxels.
    max_pixels : int
        Longest side of the picture.
    max_bytes : int, optional
        Size of the picture at most; it gets fewer colours, then lossy, then smaller, until it fits.

    Returns
    -------
    bytes
        A PNG file, or a WebP file where `max_bytes` is given and a PNG does not fit.

    Raises
    ------
    SourceNotFoundError
        If a store is missing.
    InputError
        If there are no labels, or several and none is named; if they do not have the image's
        shape, one plane or chunk of their smallest level is too large to be read, or `max_bytes` is
        less than any picture takes.
    """
    source = open_source(image, channel=channel, level=level)
    return overview_of(
        source,
        labels_of(image, labels),
        tile_shape=tile_shape,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
    )


def labels_of(image: str | os.PathLike[str], labels: str | os.PathLike[str] | None) -> str:
    """Return the place of the label image that `labels` means for an image, see `overview_png`."""
    place = Location.parse(image, "image")
    if labels is None:
        return only_labels(place).url
    return labels_named(place, os.fspath(labels)).url


def overview_of(
    source: ImageSource,
    labels: str | os.PathLike[str],
    *,
    tile_shape: tuple[int, ...] | None = None,
    max_pixels: int = 1024,
    max_bytes: int | None = None,
) -> bytes:
    """Return the picture that `overview_picture` does, of an image that is open already.

    Of several channels the first is drawn.
    """
    source = source.channels[0]
    full = _labels_at(labels, 0)
    if full.shape != source.shape:
        raise InputError(f"{labels}: shape {full.shape}; the image has {source.shape}")
    image_levels = [source, *source.coarser_levels()]
    label_levels = [full, *full.coarser_levels()]
    drawing = _compose(image_levels, label_levels, tile_shape, max_pixels)
    return _fitted(drawing, max_bytes)


def _labels_at(labels: str | os.PathLike[str], level: int) -> ImageSource:
    return open_source(labels, channel=None, level=level)


@dataclass(frozen=True)
class _Drawing:
    """The layers of a picture: greys and labels per pixel, tiles as fractions of its sides."""

    grey: np.ndarray
    labels: np.ndarray
    seams: tuple[float, float] | None

    def shrunk(self, longest: int) -> _Drawing:
        """Return the drawing with its longest side at `longest` pixels."""
        shape = _fitting_shape(self.grey.shape, longest)
        rows, columns = (_centres(n, m) for n, m in zip(self.grey.shape, shape, strict=True))
        grey = _mean(self.grey, shape).astype(np.uint8)
        return _Drawing(grey, self.labels[np.ix_(rows, columns)], self.seams)

    def indexed(self) -> np.ndarray:
        """Return the picture as indices into greys and colours."""
        picture = self.grey.copy()
        if self.seams is not None:
            _draw_seams(picture, self.seams)
        edge = _outlines(self.labels, 1)
        if max(picture.shape) > MAX_PAGE_PIXELS:
            # Wide enough to be seen when a page shrinks it, where objects are not mostly outline.
            wide = _outlines(self.labels, 2)
            edge = wide if wide.sum() < 0.6 * (self.labels > 0).sum() else edge
        colors = pixel_colors(self.labels, edge, len(PALETTE))
        picture[edge] = (N_GREYS + colors).astype(np.uint8)
        return picture


def _draw_seams(picture: np.ndarray, fractions: tuple[float, float]) -> None:
    """Draw dashed lines where tiles meet."""
    height, width = picture.shape
    dash = np.arange(max(height, width)) % 12 < 6
    step_y, step_x = fractions[0] * height, fractions[1] * width
    for y in np.arange(step_y, height - 1, step_y).astype(int):
        picture[y, dash[:width]] = SEAM
    for x in np.arange(step_x, width - 1, step_x).astype(int):
        picture[dash[:height], x] = SEAM


def _compose(
    image_levels: Sequence[ImageSource],
    label_levels: Sequence[ImageSource],
    tile_shape: tuple[int, ...] | None,
    max_pixels: int,
) -> _Drawing:
    """Read what the picture shows of image and labels, from the same planes of both."""
    full = label_levels[0].shape
    shape = _fitting_shape(full[-2:], max_pixels)
    image, labels = (level_filling(levels, max(shape)) for levels in (image_levels, label_levels))
    if problem := why_too_large(labels):
        raise InputError(problem)
    image_boxes, label_boxes = planes_of_both(image, labels)
    problem = why_too_large(image)
    if problem:
        logger.warning("%s; the picture shows the outlines over black", problem)
        grey = np.zeros(shape, np.uint8)
    else:
        grey = _as_grey(_mean(maximum_projection(image, image_boxes), shape))
    ids = maximum_projection(labels, label_boxes)
    rows, columns = (_centres(n, m) for n, m in zip(ids.shape, shape, strict=True))
    seams = None
    if tile_shape is not None:
        seams = (tile_shape[-2] / full[-2], tile_shape[-1] / full[-1])
    return _Drawing(grey, ids[np.ix_(rows, columns)], seams)


def _fitting_shape(shape: Sequence[int], longest: int) -> tuple[int, int]:
    """Return the shape scaled until its longest side fits: up by a whole number, or down."""
    height, width = shape
    side = max(shape)
    if side <= longest:
        zoom = longest // side
        return height * zoom, width * zoom
    return max(1, round(height * longest / side)), max(1, round(width * longest / side))


def _centres(n: int, n_bins: int) -> np.ndarray:
    """Return the pixel in the middle of each of `n_bins` even parts of an axis of `n` pixels."""
    centres: np.ndarray = (2 * np.arange(n_bins) + 1) * n // (2 * n_bins)
    return centres


def _mean(flat: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return `flat` at another shape, float32: means of what falls together, or repeated."""
    # Rows by the hundred: reduceat makes float32 of all that it is given.
    bands = (flat[i : i + 256] for i in range(0, len(flat), 256))
    narrow = np.concatenate([_mean_of_bins(band, shape[1], axis=1) for band in bands])
    return _mean_of_bins(narrow, shape[0], axis=0)


def _mean_of_bins(flat: np.ndarray, n_bins: int, axis: int) -> np.ndarray:
    extent = flat.shape[axis]
    starts = np.arange(n_bins) * extent // n_bins
    counts = np.maximum(np.diff(starts, append=extent), 1).astype(np.float32)
    means: np.ndarray = np.add.reduceat(flat, starts, axis=axis, dtype=np.float32)
    means /= counts[:, None] if axis == 0 else counts
    return means


def _as_grey(flat: np.ndarray) -> np.ndarray:
    """Return intensities as indices of `GREYS`, stretched to their percentiles."""
    flat = np.nan_to_num(flat, posinf=0, neginf=0)
    low, high = np.percentile(flat, [1, 99.7])
    if high <= low:
        high = flat.max()
    grey = np.clip((flat - low) / max(high - low, 1e-9), 0, 1) ** 0.7
    scaled: np.ndarray = (grey * (N_GREYS - 1)).astype(np.uint8)
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


def _fitted(drawing: _Drawing, max_bytes: int | None) -> bytes:
    """Return the drawing as a file of at most `max_bytes`."""
    if max_bytes is None:
        return _encoded(drawing.indexed())
    smallest = 0
    for encoded in _ever_smaller(drawing):
        smallest = len(encoded)
        if smallest <= max_bytes:
            return encoded
    raise InputError(
        f"max_bytes={max_bytes}: the smallest picture takes {smallest} bytes; allow more"
    )


def _ever_smaller(drawing: _Drawing) -> Iterator[bytes]:
    """Yield files of the drawing: all colours, fewer, lossy, and then with fewer pixels."""
    picture = drawing.indexed()
    yield _encoded(picture)
    yield _encoded(_with_fewer_greys(picture))
    for quality in (80, 60):
        yield _encoded(picture, quality)
    side = max(picture.shape)
    while side > MIN_PIXELS:
        side = max(MIN_PIXELS, side * 4 // 5)
        yield _encoded(drawing.shrunk(side).indexed(), 60)


def _with_fewer_greys(picture: np.ndarray) -> np.ndarray:
    step = N_GREYS // N_FEW_GREYS
    return np.where(picture < N_GREYS, picture // step * step + step // 2, picture)


def _encoded(picture: np.ndarray, quality: int | None = None) -> bytes:
    """Return indices as a PNG file, or as a lossy WebP file of a quality from 0 to 100."""
    indexed = Image.fromarray(picture)
    indexed.putpalette(np.concatenate([GREYS, PALETTE]).tobytes())
    with io.BytesIO() as file:
        if quality is None:
            indexed.save(file, "PNG", optimize=True)
        else:
            indexed.convert("RGB").save(file, "WEBP", quality=quality, method=4)
        return file.getvalue()
