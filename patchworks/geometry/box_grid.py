"""The boxes of a maximum map: small enough to tell tiles apart, and never across a chunk's border.

::

    chunks:  |---------------|---------------|-------      of 256
    boxes:   |---|---|---|---|---|---|---|---|---|---      of 64: parts of a chunk
    cells:   |---------------|---------------|-------      whole chunks and whole boxes

    chunks:  |-|-|-|-|-|-|-|-|-|-|-|-|-|-|-|-|-            of 1
    boxes:   |---------------|---------------|-            of 16: several chunks
    cells:   |---------------|---------------|-
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from math import prod

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid, ceil_div

BOX = (16, 64, 64)
"""Extents of a box to aim for, on the last three axes; on those before them it is 1."""

BOX_VOXELS = 2**16
"""Voxels of a box at least, where the image is that large: a map takes that fraction of it."""

UNIT_BYTES = 2**23
"""Bytes of an image that are read at once where it is read for its map alone."""

Spans = tuple[slice, ...]
"""Which boxes, per axis."""


@dataclass(frozen=True)
class BoxGrid:
    """A grid of boxes over an image.

    Parameters
    ----------
    edges : tuple of tuple of int
        Per axis the first voxel of every box and, last, the extent of the image.
    cell : tuple of int
        Voxels of a cell, per axis: each holds whole boxes and whole chunks.
    """

    edges: tuple[tuple[int, ...], ...]
    cell: tuple[int, ...]

    @cached_property
    def boxes(self) -> TileGrid:
        """The boxes, as a grid without halos."""
        return TileGrid(self.edges, (0,) * len(self.edges))

    def units(self, itemsize: int) -> TileGrid:
        """Return the parts in which the image is read for its map alone: some cells each.

        Parameters
        ----------
        itemsize : int
            Bytes of a voxel.
        """
        shape = self.boxes.shape
        unit = list(map(min, self.cell, shape))
        while prod(unit) * itemsize < UNIT_BYTES:
            growing = [axis for axis, n in enumerate(shape) if unit[axis] < n]
            if not growing:
                break
            axis = growing[-1]
            unit[axis] = unit[axis] + ceil_div(unit[axis], self.cell[axis]) * self.cell[axis]
        return TileGrid.regular(shape, tuple(map(min, unit, shape)), (0,) * len(shape))

    def touching(self, box: Box) -> Spans:
        """Return which boxes share voxels with a box of the image that has some.

        Examples
        --------
        >>> grid = BoxGrid(((0, 4, 8, 10),), (4,))
        >>> grid.touching(Box((3,), (9,))), grid.inside(Box((3,), (10,)))
        ((slice(0, 3, None),), (slice(1, 3, None),))
        """
        return tuple(
            [
                slice(bisect_right(edges, start) - 1, bisect_left(edges, stop))
                for edges, start, stop in zip(self.edges, box.start, box.stop, strict=True)
            ]
        )

    def inside(self, box: Box) -> Spans:
        """Return which boxes lie wholly in a box of the image; a span may be empty."""
        spans = []
        for edges, start, stop in zip(self.edges, box.start, box.stop, strict=True):
            first = bisect_left(edges, start)
            spans.append(slice(first, max(first, bisect_right(edges, stop) - 1)))
        return tuple(spans)

    def voxels_of(self, spans: Spans) -> Box:
        """Return the box of the image that some boxes cover; no span is empty."""
        pairs = list(zip(self.edges, spans, strict=True))
        return Box(tuple([e[s.start] for e, s in pairs]), tuple([e[s.stop] for e, s in pairs]))


def plan_boxes(shape: tuple[int, ...], chunks: tuple[int, ...]) -> BoxGrid:
    """Choose the boxes for an image.

    Parameters
    ----------
    shape, chunks : tuple of int
        Of the image, in voxels.

    Examples
    --------
    >>> grid = plan_boxes((40, 600, 600), (32, 256, 256))
    >>> grid.edges[0], grid.edges[1][:5], grid.cell
    ((0, 16, 32, 40), (0, 64, 128, 192, 256), (32, 256, 256))
    >>> plan_boxes((100, 512, 512), (1, 64, 512)).cell
    (16, 64, 512)
    """
    aims = [1] * max(0, len(shape) - len(BOX)) + list(BOX[-len(shape) :])
    wanted = list(aims)
    while True:
        cuts = [_cut(n, chunk, w) for n, chunk, w in zip(shape, chunks, wanted, strict=True)]
        extents = [extent for _, extent in cuts]
        growing = [a for a, n in enumerate(shape) if extents[a] < n]
        if not growing or prod(extents) >= BOX_VOXELS:
            break
        wanted[min(growing, key=lambda a: (wanted[a] / aims[a], -a))] *= 2
    edges = [
        tuple([s for c in range(0, n, cell) for s in range(c, min(c + cell, n), extent)] + [n])
        for n, (cell, extent) in zip(shape, cuts, strict=True)
    ]
    return BoxGrid(tuple(edges), tuple([cell for cell, _ in cuts]))


def _cut(extent: int, chunk: int, wanted: int) -> tuple[int, int]:
    """Return the extents of a cell and of a box on an axis."""
    chunk = min(chunk, extent)
    if chunk < wanted:
        cell = min(extent, chunk * max(1, round(wanted / chunk)))
        return cell, cell
    return chunk, ceil_div(chunk, max(1, round(chunk / wanted)))
