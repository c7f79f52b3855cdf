"""A box cut into blocks of planes of its last two axes, to be gone through one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

from patchworks.geometry.box import Box


def blocks_of_planes(box: Box, n_voxels: int, chunk: tuple[int, ...]) -> Iterator[Box]:
    """Yield the planes of a box, as many at a time as hold `n_voxels`, one at least.

    Parameters
    ----------
    box : Box
        Begins at a chunk.
    n_voxels : int
        Voxels of a block at most, unless one plane holds more.
    chunk : tuple of int
        Extents of the chunks; no block reaches over the end of one, but on the last two axes.

    Examples
    --------
    >>> for block in blocks_of_planes(Box((0, 0, 0), (5, 4, 4)), 40, (4, 4, 4)):
    ...     print(block.start, block.stop)
    (0, 0, 0) (2, 4, 4)
    (2, 0, 0) (4, 4, 4)
    (4, 0, 0) (5, 4, 4)
    """
    if box.ndim == 2:
        yield box
        return
    axis = box.ndim - 3
    most = max(1, n_voxels // prod(box.shape[-2:]))
    step = max(d for d in range(1, min(most, chunk[axis]) + 1) if chunk[axis] % d == 0)
    for outer in product(*map(range, box.start[:axis], box.stop[:axis])):
        for start in range(box.start[axis], box.stop[axis], step):
            stop = min(start + step, box.stop[axis])
            yield Box(
                (*outer, start, *box.start[-2:]),
                (*[i + 1 for i in outer], stop, *box.stop[-2:]),
            )
