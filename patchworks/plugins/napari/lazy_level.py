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
        starts, stops, rest = [], [], []
        for part, extent in zip(parts, self.shape, strict=True):
            taken = np.arange(extent)[part]
            low, high = (int(taken.min()), int(taken.max()) + 1) if taken.size else (0, 0)
            starts.append(low)
            stops.append(high)
            rest.append(slice(None) if _is_plain(part) else taken - low)
        voxels = self.source.read(Box(tuple(starts), tuple(stops)))
        return voxels[tuple(rest)].astype(self.dtype, copy=False)


def _is_plain(part: Any) -> bool:
    return isinstance(part, slice) and part.step in (None, 1)


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
