"""The chunks of a region of one level, filled plane by plane and then stored.

Each chunk lies in memory as it goes into its file, so that nothing is put together once more, and
the memory is used again for the next region.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from patchworks.geometry.box import Box
from patchworks.geometry.grid import ceil_div


class RegionChunks:
    """Chunks being filled.

    Parameters
    ----------
    chunk : tuple of int
        Their extents.
    dtype : numpy.dtype
        Of the voxels.
    """

    def __init__(self, chunk: tuple[int, ...], dtype: np.dtype) -> None:
        self.chunk = chunk
        self.dtype = dtype
        self._memory = np.empty(0, dtype)

    def begin(self, box: Box, filled: Box | None = None) -> None:
        """Take the box of a region in place of the one before.

        Parameters
        ----------
        box : Box
            Begins at a chunk.
        filled : Box, optional
            What of it is going to be put: by default all. The rest is 0.
        """
        self.box = box
        self.n_chunks = tuple(map(ceil_div, box.shape, self.chunk))
        shape = (*self.n_chunks, *self.chunk)
        size = int(np.prod(shape))
        if size > self._memory.size:
            self._memory = np.empty(size, self.dtype)
        self._chunks = self._memory[:size].reshape(shape)
        self.is_whole = all(n % c == 0 for n, c in zip(box.shape, self.chunk, strict=True))
        if not self.is_whole or filled not in (None, box):
            self._chunks.fill(0)  # and what lies beyond the end of the level

    def put(self, box: Box, voxels: np.ndarray) -> None:
        """Put planes of the region where they belong.

        Parameters
        ----------
        box : Box
            Anything on the last two axes, and within one chunk on the others.
        voxels : numpy.ndarray
            Shape ``box.shape``.
        """
        inner = box.relative_to(self.box.start)
        leading = list(zip(inner.start[:-2], inner.stop[:-2], self.chunk, strict=False))
        at = tuple([a // c for a, _, c in leading])
        within = tuple([slice(a % c, a % c + b - a) for a, b, c in leading])
        place: tuple[Any, ...] = (*at, slice(None), slice(None), *within)
        target = self._chunks[place]
        (cy, cx), (ny, nx) = self.chunk[-2:], voxels.shape[-2:]
        if target.shape[0] * cy == ny and target.shape[1] * cx == nx:
            cut = voxels.reshape(*voxels.shape[:-2], ny // cy, cy, nx // cx, cx)
            target[...] = np.moveaxis(cut, (-4, -2), (0, 1))
            return
        y, x = inner.start[-2:]
        for (iy, of_y, to_y), (ix, of_x, to_x) in product(_pieces(y, ny, cy), _pieces(x, nx, cx)):
            target[iy, ix][..., to_y, to_x] = voxels[..., of_y, of_x]

    def chunks(self) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Yield the position of each chunk on the grid of chunks, and its voxels as stored."""
        first = [a // c for a, c in zip(self.box.start, self.chunk, strict=True)]
        for place in product(*map(range, self.n_chunks)):
            yield tuple([a + i for a, i in zip(first, place, strict=True)]), self._chunks[place]

    def to_array(self) -> np.ndarray:
        """Return the voxels of the region, shape ``box.shape``."""
        n = len(self.chunk)
        order = [axis for pair in zip(range(n), range(n, 2 * n), strict=True) for axis in pair]
        whole = [a * b for a, b in zip(self.n_chunks, self.chunk, strict=True)]
        found = self._chunks.transpose(order).reshape(whole)
        return found[tuple([slice(extent) for extent in self.box.shape])]


def _pieces(start: int, n: int, chunk: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield the chunks that a stretch lies in: index, voxels of the stretch, and of the chunk."""
    for index in range(start // chunk, ceil_div(start + n, chunk)):
        first, last = max(start, index * chunk), min(start + n, (index + 1) * chunk)
        within = slice(first - index * chunk, last - index * chunk)
        yield index, slice(first - start, last - start), within
