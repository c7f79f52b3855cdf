"""Where the voxels of a TIFF image lie in its files, and how a box of them is read.

A TIFF page holds samples, planes, rows, columns and samples again, most of them of extent 1. Any
image of many pages is an array of (page, sample, depth, row, column, sample) in C order: its own
axes are these, with the pages cut into further axes and what has extent 1 left out.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from patchworks.errors import MissingExtraError
from patchworks.readers.mapped_files import MappedFiles

N_PAGE_AXES = 5


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its file, and where its strips or tiles lie in it.

    `keyframe` is the tifffile page whose tags stand for this one's.
    """

    path: Path
    keyframe: Any
    offsets: Sequence[int]
    counts: Sequence[int]
    jpeg_tables: bytes | None = None

    @property
    def decoding(self) -> dict[str, Any]:
        """What the decoder wants to know besides the segment's bytes and index."""
        if self.keyframe.compression not in {6, 7, 34892, 33007}:
            return {}
        return {"jpegtables": self.jpeg_tables, "jpegheader": self.keyframe.jpegheader}


@dataclass(frozen=True)
class Level:
    """One level of an image.

    Parameters
    ----------
    shape : tuple of int
        Extents of the file's own axes.
    pages : tuple of Page or None
        In C order of the leading axes; None where the file has no such page.
    places : tuple of int
        For each trailing axis, which of the page's five axes it is.
    keyframe : object
        The tifffile page whose tags stand for all pages of the level.
    raw : bool
        Whether pages are stored as arrays, of which any part can be taken.
    transform : callable or None
        What tifffile applies to decoded voxels.
    """

    shape: tuple[int, ...]
    pages: tuple[Page | None, ...]
    places: tuple[int, ...]
    keyframe: Any
    raw: bool
    transform: Any = None

    @property
    def n_leading(self) -> int:
        """Number of axes along which pages are counted."""
        return len(self.shape) - len(self.places)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the pages."""
        return tuple(dict.fromkeys([page.path for page in self.pages if page is not None]))

    @property
    def page_shape(self) -> tuple[int, ...]:
        """Extents of a page's five axes."""
        return tuple(self.keyframe.shaped)

    @property
    def segment(self) -> tuple[int, ...]:
        """Extents of a strip or tile on a page's five axes."""
        page = self.keyframe
        depth, rows, columns = page.tiledepth, page.tilelength, page.tilewidth
        if not page.is_tiled:
            depth, rows, columns = 1, page.rowsperstrip, page.imagewidth
        return (1, depth, rows, columns, self.page_shape[4])

    @property
    def block(self) -> tuple[int, ...]:
        """Smallest box that is decoded at once, on the file's own axes."""
        if self.raw:
            return (1,) * len(self.shape)
        parts = [min(s, n) for s, n in zip(self.segment, self.page_shape, strict=True)]
        return (*(1,) * self.n_leading, *[parts[place] for place in self.places])

    def read(self, part: tuple[slice, ...], maps: MappedFiles) -> np.ndarray:
        """Return a part of the image, on the file's own axes."""
        within = [slice(0, n) for n in self.page_shape]
        for place, wanted in zip(self.places, part[self.n_leading :], strict=True):
            within[place] = wanted
        leading = part[: self.n_leading]
        counts = [s.stop - s.start for s in leading]
        shape = (*counts, *[s.stop - s.start for s in within])
        nodata = self.keyframe.nodata
        dtype = self.keyframe.dtype
        voxels = np.full(shape, nodata, dtype) if nodata else np.zeros(shape, dtype)
        for at in np.ndindex(*counts):
            index = [i + s.start for i, s in zip(at, leading, strict=True)]
            page = self.pages[self._page_index(index)]
            if page is not None:
                fill = self._copy if self.raw else self._decode
                fill(voxels[at], page, within, maps[page.path])
        maps.forget()
        if self.transform is not None:
            voxels = self.transform(voxels)
        return voxels.reshape([s.stop - s.start for s in part])

    def _page_index(self, index: Sequence[int]) -> int:
        found = 0
        for i, n in zip(index, self.shape, strict=False):
            found = found * n + i
        return found

    def _copy(self, into: np.ndarray, page: Page, within: list[slice], content: mmap.mmap) -> None:
        if page.offsets[0] == 0:
            return
        order = self.keyframe.parent.byteorder
        stored = np.ndarray(
            self.page_shape, into.dtype.newbyteorder(order), content, page.offsets[0]
        )
        into[...] = stored[tuple(within)]

    def _decode(
        self, into: np.ndarray, page: Page, within: list[slice], content: mmap.mmap
    ) -> None:
        decode, decoding = page.keyframe.decode, page.decoding
        for index, start in self._segments(within):
            offset, count = page.offsets[index], page.counts[index]
            if offset == 0 or count == 0:
                continue
            try:
                found = decode(content[offset : offset + count], index, **decoding)[0]
            except ImportError as error:  # imagecodecs is there, but built without this codec
                raise MissingExtraError(_no_codec(self.keyframe)) from error
            source: list[slice] = []
            target: list[int | slice] = [start[0] - within[0].start]
            for first, extent, wanted in zip(start[1:], found.shape, within[1:], strict=True):
                low = max(first, wanted.start)
                high = max(low, min(first + extent, wanted.stop))
                source.append(slice(low - first, high - first))
                target.append(slice(low - wanted.start, high - wanted.start))
            into[tuple(target)] = found[tuple(source)]

    def _segments(self, within: list[slice]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield index and first voxel of the segments that a part of a page needs."""
        steps = self.segment[:4]
        grid = [math.ceil(n / s) for n, s in zip(self.page_shape, steps, strict=False)]
        needed = [
            range(w.start // s, math.ceil(w.stop / s)) for w, s in zip(within, steps, strict=False)
        ]
        for at in itertools.product(*needed):
            start = tuple([i * s for i, s in zip(at, steps, strict=True)])
            yield int(np.ravel_multi_index(at, grid)), (*start, 0)


def level_of(series: Any, kept: Sequence[int], sizes: dict[Path, int]) -> Level:
    """Return where the pages of one level of a tifffile series lie; its file must be open.

    Parameters
    ----------
    series : tifffile.TiffPageSeries
        The level.
    kept : sequence of int
        Which of its axes are kept; the others have extent 1.
    sizes : dict of Path to int
        Bytes of each of the files; those that are missing are added.

    Raises
    ------
    MissingExtraError
        If its compression needs a package that is not installed.
    ValueError
        If a page is not like the others, or data lie outside of their file.
    """
    keyframe = series.keyframe
    _check_codec(keyframe)
    shape = tuple([series.get_shape(False)[i] for i in kept])
    places = _places(shape, tuple(keyframe.shaped))
    n_pages = math.prod(shape[: len(shape) - len(places)])
    offset = None if series.is_multifile else series.dataoffset
    if offset is not None:
        path = Path(keyframe.parent.filehandle.path)
        n_bytes = math.prod(keyframe.shaped) * keyframe.dtype.itemsize
        pages: tuple[Page | None, ...] = tuple(
            [Page(path, keyframe, (offset + i * n_bytes,), (n_bytes,)) for i in range(n_pages)]
        )
        raw = True
    else:
        pages = tuple([_page_of(page) for page in series])
        raw = keyframe.is_final and all(map(_is_one_run, pages))
    if len(pages) != n_pages or all(page is None for page in pages):
        raise ValueError(f"{len(pages)} pages for an image of shape {shape} with {n_pages} pages")
    level = Level(shape, pages, places, keyframe, raw, series.transform)
    for page in pages:
        if page is not None:
            _check_page(page, level, sizes)
    return level


def _page_of(page: Any) -> Page | None:
    """Return what is needed of a tifffile page, or None for one that is not there."""
    if page is None:
        return None
    page.keyframe.decode  # noqa: B018 - made now: not safe to be made by several threads
    path = Path(page.parent.filehandle.path)
    return Page(path, page.keyframe, page.dataoffsets, page.databytecounts, page.jpegtables)


def _is_one_run(page: Page | None) -> bool:
    """Whether the strips of a page follow one another as those of its keyframe do."""
    if page is None:
        return True
    model = page.keyframe.dataoffsets
    return page.offsets[-1] - page.offsets[0] in {0, model[-1] - model[0]}


def _check_page(page: Page, level: Level, sizes: dict[Path, int]) -> None:
    """Raise ValueError unless the page's data lie inside its file."""
    grid = [math.ceil(n / s) for n, s in zip(level.page_shape, level.segment, strict=True)]
    expected = 1 if level.raw else math.prod(grid)
    if min(len(page.offsets), len(page.counts)) < expected:
        raise ValueError(f"a page has {len(page.offsets)} strips or tiles, not {expected}")
    if page.path not in sizes:
        sizes[page.path] = page.path.stat().st_size
    if level.raw:
        n_bytes = math.prod(level.page_shape) * level.keyframe.dtype.itemsize
        ends = [page.offsets[0] + n_bytes if page.offsets[0] else 0]
    else:
        ends = [o + n for o, n in zip(page.offsets, page.counts, strict=False) if o and n]
    if max(ends, default=0) > sizes[page.path]:
        raise ValueError(
            f"cut off: voxels lie up to byte {max(ends)}, {page.path.name} has {sizes[page.path]}"
        )


def _check_codec(keyframe: Any) -> None:
    """Raise MissingExtraError if the package that decodes the pages is not installed."""
    if keyframe.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise MissingExtraError(_no_codec(keyframe))


def _no_codec(keyframe: Any) -> str:
    name = getattr(keyframe.compression, "name", keyframe.compression)
    return (
        f"{keyframe.parent.filehandle.path}: compressed with {name}, which needs the package "
        f"imagecodecs in a version that has it; install it with pip install -U imagecodecs"
    )


def _places(shape: tuple[int, ...], page_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return which of a page's axes the trailing axes of an image are.

    Examples
    --------
    >>> _places((7, 3, 512, 640), (1, 1, 512, 640, 1))
    (2, 3)
    >>> _places((7, 512, 640, 3), (1, 1, 512, 640, 3))
    (2, 3, 4)
    """
    places: list[int] = []
    for place in reversed(range(N_PAGE_AXES)):
        n_left = len(shape) - len(places)
        if n_left and shape[n_left - 1] == page_shape[place]:
            places.insert(0, place)
        elif page_shape[place] != 1:
            raise ValueError(f"an image of shape {shape} in pages of shape {page_shape}")
    return tuple(places)
