"""Shared hypothesis strategies: shapes, tiles that do not divide, halos, chunks, small images.

Images are drawn as a shape and a seed: far quicker than voxel by voxel, and what shrinks well is
the geometry, which is where things go wrong.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid

LONGEST = {1: 20, 2: 13, 3: 8, 4: 5, 5: 4}
"""Longest axis of an image, by its number of axes, so that any image has about 10³ voxels."""


@st.composite
def shapes(draw, *, min_axes: int = 2, max_axes: int = 5) -> tuple[int, ...]:
    """Shapes of images, in voxels."""
    ndim = draw(st.integers(min_axes, max_axes))
    return tuple(draw(st.lists(st.integers(1, LONGEST[ndim]), min_size=ndim, max_size=ndim)))


def tile_shapes(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Extents of tiles from one voxel to the whole axis, most of which do not divide it."""
    return st.tuples(*[st.integers(1, n) for n in shape])


def chunks_of(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    """Irregular extents per axis, as a Dask array has them."""
    return st.tuples(*[_cuts(n) for n in shape])


@st.composite
def _cuts(draw, extent: int) -> tuple[int, ...]:
    inner = draw(st.sets(st.integers(1, extent - 1))) if extent > 1 else set()
    return tuple(b - a for a, b in pairwise([0, *sorted(inner), extent]))


def halos(ndim: int, *, min_value: int = 0, max_value: int = 3) -> st.SearchStrategy:
    """Voxels of halo per axis; some axes with, some without."""
    return st.tuples(*[st.integers(min_value, max_value)] * ndim)


@st.composite
def grids(draw, *, min_axes: int = 2, max_axes: int = 5, max_halo: int = 3) -> TileGrid:
    """Regular and irregular tile grids with halos."""
    shape = draw(shapes(min_axes=min_axes, max_axes=max_axes))
    halo = draw(halos(len(shape), max_value=max_halo))
    if draw(st.booleans()):
        return TileGrid.regular(shape, draw(tile_shapes(shape)), halo)
    return TileGrid.from_chunks(draw(chunks_of(shape)), halo)


@st.composite
def boxes(draw, shape: tuple[int, ...], *, min_extent: int = 1) -> Box:
    """Boxes within an image of `shape`."""
    starts = [draw(st.integers(0, n - min_extent)) for n in shape]
    stops = [draw(st.integers(a + min_extent, n)) for a, n in zip(starts, shape, strict=True)]
    return Box(tuple(starts), tuple(stops))


def generators() -> st.SearchStrategy[np.random.Generator]:
    """Random generators; the seed is what an example shows and shrinks."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def binary_images(draw, shape: tuple[int, ...]) -> np.ndarray:
    """Random bool images, from sparse to nearly full."""
    density = draw(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]))
    return draw(generators()).random(shape) < density


@st.composite
def label_images(draw, shape: tuple[int, ...], *, max_id: int = 6, dtype="uint32") -> np.ndarray:
    """Random labels 0..max_id; cut into random boxes, so that labels have neighbours and pieces."""
    rng = draw(generators())
    labels = rng.integers(0, max_id + 1, shape)
    for axis in range(len(shape)):
        if draw(st.booleans()):
            labels = labels.repeat(2, axis).take(np.arange(shape[axis]), axis)
    return labels.astype(dtype)
