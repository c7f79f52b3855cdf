"""How often chunks are decoded that several tiles read, and how much has to be kept for them.

Tiles are read along one axis after the other, mostly the last axis fastest. A chunk that two tiles
share along the last axis is needed again at once; one shared along the first axis has to wait until
a whole layer of tiles has been read::

    tiles:  0 1 2      a chunk across the seam of 0 and 1 waits for one tile,
            3 4 5      one across the seam of 0 and 3 for three
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf, prod

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid, ceil_div


@dataclass(frozen=True, slots=True)
class ChunkReuse:
    """What reading all tiles of a grid takes, where some chunks can be kept.

    Parameters
    ----------
    n_chunks : int
        Chunks that hold voxels of the image.
    n_decoded : float
        Times that a chunk is decoded, about.
    n_waiting : float
        Chunks that are kept at a time, about; never more than may be kept. Parts count as such.
    n_per_tile : int
        Chunks that the tile with the largest read region reads.
    """

    n_chunks: int
    n_decoded: float
    n_waiting: float
    n_per_tile: int


TRIMMED = 0.5
"""Of a chunk that waits no more is kept than what is needed, if that is this share at most."""


def chunk_reuse(
    grid: TileGrid,
    chunks: tuple[int, ...],
    max_kept: float = inf,
    axes: tuple[int, ...] | None = None,
    bands: tuple[int, ...] | None = None,
) -> ChunkReuse:
    """Return how often chunks are decoded when `max_kept` of them may be kept.

    What is needed latest is given up first, so that the chunks on seams of the slowest axis are the
    first to be decoded again.

    Parameters
    ----------
    grid : TileGrid
        The tiles.
    chunks : tuple of int
        Extents of a chunk, in voxels.
    max_kept : float
        Decoded chunks that may be kept.
    axes : tuple of int, optional
        The axes in the order of reading, the slowest first; by default that of the indices.
    bands : tuple of int, optional
        Per axis the tiles after which the others are gone through first, and what is kept is of no
        use; by default all.

    Examples
    --------
    >>> grid = TileGrid.regular((128, 2048, 2048), (64, 512, 512), (16, 16, 16))
    >>> found = chunk_reuse(grid, (32, 256, 256), 200)
    >>> found.n_chunks, found.n_decoded, round(found.n_waiting), found.n_per_tile
    (256, 256.0, 113, 48)
    >>> round(chunk_reuse(grid, (32, 256, 256), 0).n_decoded / 256, 1)
    4.6
    """
    # Slowest first. In layers of slices all that a chunk holds of an axis come one after the other.
    order = [axis for axis in range(grid.ndim) if grid.layer is None or axis != grid.layer[0]]
    order += [] if grid.layer is None else [grid.layer[0]]
    order = order if axes is None else list(axes)
    spans = [_spans(grid, axis, chunks[axis]) for axis in order]
    counts = [ceil_div(grid.shape[axis], chunks[axis]) for axis in order]
    most = [max(len(span) for span in axis) for axis in spans]
    band = [(bands or grid.dims)[axis] for axis in order]
    passing = [_most_in_band(axis, n) for axis, n in zip(spans, band, strict=True)]
    n_decoded, n_waiting, left, waiting_below = float(prod(counts)), 0.0, max_kept, 0.0
    for axis in reversed(range(grid.ndim)):
        n_decoded *= 1 + _n_common_at_bands(spans[axis], band[axis]) / counts[axis]
        shared = _most_shared(grid, order[axis], chunks[order[axis]]) if band[axis] > 1 else 0.0
        # While a chunk waits, all positions of the faster axes pass; of the slower ones, one stays.
        more = shared * (prod(passing[axis + 1 :]) - waiting_below)
        waiting_below = more + most[axis] * waiting_below
        waiting = prod(most[:axis]) * more
        if waiting <= 0:
            continue
        kept = min(waiting, left)
        left -= kept
        n_waiting += kept
        n_read = sum(map(len, spans[axis])) / counts[axis]  # tiles that read a chunk, on this axis
        n_decoded *= 1 + (1 - kept / waiting) * (n_read - 1)
    return ChunkReuse(prod(counts), n_decoded, n_waiting, prod(most))


def _most_in_band(spans: list[range], band: int) -> int:
    """Return how many chunks of an axis the tiles of a band read, at most."""
    firsts = range(0, len(spans), band)
    return max([spans[min(i + band, len(spans)) - 1].stop - spans[i].start for i in firsts])


def _n_common_at_bands(spans: list[range], band: int) -> int:
    """Return how many chunks of an axis are read by the last tile of a band and the next one."""
    seams = range(band, len(spans), band)
    return sum([max(0, spans[i - 1].stop - spans[i].start) for i in seams])


def voxels_of_chunks(box: Box, chunks: tuple[int, ...]) -> int:
    """Return the voxels of all chunks that have to be decoded for a box.

    Examples
    --------
    >>> voxels_of_chunks(Box((3, 0), (5, 4)), (4, 4))
    32
    """
    axes = zip(box.start, box.stop, chunks, strict=True)
    return prod([(ceil_div(stop, chunk) - start // chunk) * chunk for start, stop, chunk in axes])


def _spans(grid: TileGrid, axis: int, chunk: int) -> list[range]:
    """Return per tile of an axis which chunks it reads there, halo included."""
    halo, end = grid.halo[axis], grid.edges[axis][-1]
    return [
        range(max(a - halo, 0) // chunk, ceil_div(min(b + halo, end), chunk))
        for a, b in pairwise(grid.edges[axis])
    ]


def _most_shared(grid: TileGrid, axis: int, chunk: int) -> float:
    """Return how many chunks wait across a seam of an axis, at most; parts count as such."""
    most, edges, halo = 0.0, grid.edges[axis], grid.halo[axis]
    for seam, last in pairwise(edges[1:]):
        begin, end = max(seam - halo, 0), min(last + halo, edges[-1])
        common = range(begin // chunk, ceil_div(min(seam + halo, edges[-1]), chunk))
        needed = [(min(end, (i + 1) * chunk) - max(begin, i * chunk)) / chunk for i in common]
        most = max(most, sum([1.0 if n > TRIMMED else n for n in needed]))
    return most
