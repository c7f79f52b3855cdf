"""Chunks taken together: blocks of several tiny ones, and boxes of many at a time."""

from __future__ import annotations

from itertools import product
from math import prod

from patchworks.geometry.box import Box

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
