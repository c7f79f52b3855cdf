"""One level of an image as an array of which only what is shown is read."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from patchworks.geometry.box import Box
from patchworks.io.image_source import ImageSource


class _Voxels:
    """An image source that slices like an array."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.shape = source.shape
        self.dtype = source.dtype.newbyteorder("=")
        self.ndim = len(source.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return voxels; of a step or a list of indices, what lies between is read as well."""
        parts = index if isinstance(index, tuple) else (index,)
        parts += (slice(None),) * (self.ndim - len(parts))
        spans = [_span(part, extent) for part, extent in zip(parts, self.shape, strict=True)]
        box = Box(tuple([a for a, _, _ in spans]), tuple([b for _, b, _ in spans]))
        voxels = self.source.read(box)[tuple([rest for _, _, rest in spans])]
        return np.asarray(voxels, self.dtype)


def _span(part: Any, extent: int) -> tuple[int, int, Any]:
    """Return what is read on an axis, from and to, and what is taken of that.

    Examples
    --------
    >>> _span(-1, 9), _span(slice(2, None, 3), 9), _span(slice(None, None, -2), 9)
    ((8, 9, 0), (2, 9, slice(None, None, 3)), (0, 9, slice(None, None, -2)))
    """
    if isinstance(part, slice):
        found = range(extent)[part]
        if not found:
            return 0, 0, slice(None)
        ends = sorted((found[0], found[-1]))
        return ends[0], ends[1] + 1, slice(None, None, found.step)
    if isinstance(part, (int, np.integer)):
        place = range(extent)[part]
        return place, place + 1, 0
    taken = np.arange(extent)[part]
    low = int(taken.min()) if taken.size else 0
    return low, int(taken.max()) + 1 if taken.size else 0, taken - low


def lazy_level(source: ImageSource) -> da.Array:
    """Return a Dask array over an image source, in its chunks; nothing is read.

    No graph is made of the image's chunks until some of them are asked for.
    """
    voxels = _Voxels(source)
    lazy: da.Array = da.from_array(
        voxels,
        chunks=source.chunks or source.shape,
        name=False,
        inline_array=True,
        meta=np.empty((0,) * voxels.ndim, voxels.dtype),
    )
    return lazy
