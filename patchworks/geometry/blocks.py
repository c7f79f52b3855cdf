"""Chunks taken together: blocks of several tiny ones, and boxes of many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from patchworks.geometry.box import Box
from patchworks.geometry.grid import ceil_div

BLOCK_BYTES = 2**19
"""Smaller chunks are kept several at a time: each piece costs some microseconds."""

Position = tuple[int, ...]
"""The place of a block on the grid of blocks."""


def block_shape(
    chunks: tuple[int, ...], tile_shape: tuple[int, ...], itemsize: int
) -> tuple[int, ...]:
    """Return a multiple of the chunks worth keeping: tiny ones are taken together.

    Parameters
    ----------
    chunks, tile_shape : tuple of int
        Extents in voxels.
    itemsize : int
        Bytes of a voxel.

    Examples
    --------
    >>> block_shape((32, 256, 256), (64, 512, 512), 2)
    (32, 256, 256)
    >>> block_shape((1, 64, 64), (64, 512, 512), 2)
    (16, 128, 128)
    """
    block = list(chunks)
    while prod(block) * itemsize < BLOCK_BYTES:
        # Half of a tile at most: what is decoded for one tile is then not much more than it needs.
        growing = [a for a, (b, t) in enumerate(zip(block, tile_shape, strict=True)) if 4 * b <= t]
        if not growing:
            break
        axis = min(growing, key=lambda a: (block[a] / tile_shape[a], -a))
        block[axis] *= 2
    return tuple(block)


@dataclass(frozen=True)
class BlockGrid:
    """The blocks of an image.

    Parameters
    ----------
    shape, block : tuple of int
        Extents of the image and of a block, in voxels.

    Examples
    --------
    >>> grid = BlockGrid((10, 8), (4, 8))
    >>> list(grid.positions(Box((3, 0), (5, 2)))), grid.box((2, 0))
    ([(0, 0), (1, 0)], Box(start=(8, 0), stop=(10, 8)))
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]

    def positions(self, box: Box) -> Iterator[Position]:
        """Yield the positions of the blocks that hold voxels of a box."""
        return product(
            *[
                range(a // n, ceil_div(b, n))
                for a, b, n in zip(box.start, box.stop, self.block, strict=True)
            ]
        )

    def box(self, position: Position) -> Box:
        """Return the voxels of a block."""
        return self.voxels_of(Box(position, tuple([p + 1 for p in position])))

    def voxels_of(self, span: Box) -> Box:
        """Return the voxels of a box of blocks."""
        ends = zip(span.stop, self.block, self.shape, strict=True)
        return Box(
            tuple([a * n for a, n in zip(span.start, self.block, strict=True)]),
            tuple([min(b * n, whole) for b, n, whole in ends]),
        )


def boxes_of(positions: list[Position]) -> list[Box]:
    """Return disjoint boxes that hold just these positions, each as long as it goes.

    Examples
    --------
    >>> boxes_of([(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)])
    [Box(start=(0, 0), stop=(2, 2)), Box(start=(2, 1), stop=(3, 2))]
    """
    left = set(positions)
    boxes = []
    for start in sorted(positions):
        if start not in left:
            continue
        stop = [p + 1 for p in start]
        for axis in reversed(range(len(start))):
            while True:
                layer = [range(a, b) for a, b in zip(start, stop, strict=True)]
                layer[axis] = range(stop[axis], stop[axis] + 1)
                if not left.issuperset(product(*layer)):
                    break
                stop[axis] += 1
        box = Box(start, tuple(stop))
        left.difference_update(product(*map(range, box.start, box.stop)))
        boxes.append(box)
    return boxes
