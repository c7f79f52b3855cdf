"""Laws of writing a region plane by plane: the same levels as of the region in one piece."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.planes import blocks_of_planes
from patchworks.geometry.pyramid import PyramidPlan, plan_pyramid
from patchworks.io.region_chunks import RegionChunks
from patchworks.steps import levels
from patchworks.steps.levels import RegionWriter, write_region
from patchworks.steps.pyramid import pool_labels
from tests.strategies import boxes, label_images

laws = settings(deadline=None, max_examples=60)


UNWRITTEN = 77


@dataclass
class Memory:
    """Levels in memory, by either way of writing them."""

    pyramid: PyramidPlan
    dtype = np.dtype("uint32")
    arrays: list[np.ndarray] = field(init=False)
    n_chunks: int = 0

    def __post_init__(self):
        self.arrays = [np.full(shape, UNWRITTEN, self.dtype) for shape in self.pyramid.shapes]

    def write(self, level: int, box: Box, voxels: np.ndarray) -> None:
        self.arrays[level][box.slices] = voxels

    def read(self, level: int, box: Box) -> np.ndarray:
        return self.arrays[level][box.slices]

    def write_chunks(self, level: int, filled: RegionChunks) -> None:
        np.testing.assert_array_equal(filled.to_array().shape, filled.box.shape)
        for position, chunk in filled.chunks():
            assert chunk.flags.c_contiguous
            start = tuple(p * c for p, c in zip(position, filled.chunk, strict=True))
            target = self.arrays[level][
                tuple(slice(a, a + c) for a, c in zip(start, filled.chunk, strict=True))
            ]
            inside = tuple(slice(n) for n in target.shape)
            target[...] = chunk[inside]
            assert np.count_nonzero(chunk) == np.count_nonzero(chunk[inside]), "zeros beyond"
            self.n_chunks += 1


@st.composite
def pyramids(draw) -> PyramidPlan:
    """Pyramids of two to four axes whose levels are fused as far as chunks allow."""
    ndim = draw(st.integers(2, 4))
    shape = tuple(draw(st.integers(1, 20 if a >= ndim - 2 else 5)) for a in range(ndim))
    tile = tuple(draw(st.integers(1, n)) for n in shape)
    grid = TileGrid.regular(shape, tile, (0,) * ndim)
    return plan_pyramid(grid, draw(st.integers(1, 4)), draw(st.integers(2, 3)))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(
        "patchworks.geometry.pyramid.target_chunk", lambda n: (4,) * (n - 2) + (8, 8)
    )
    monkeypatch.setattr("patchworks.geometry.pyramid.MIN_FUSED_CHUNK", 2)


@laws
@given(pyramid=pyramids(), data=st.data())
def test_plane_by_plane_and_in_one_piece_are_the_same(pyramid, data):
    labels = data.draw(label_images(pyramid.shapes[0], max_id=4))
    whole, planes = Memory(pyramid), Memory(pyramid)
    labelled = data.draw(st.none() | boxes(labels.shape))
    if labelled is not None:
        around = labels
        labels = np.zeros_like(around)
        labels[labelled.slices] = around[labelled.slices]
    levels.PART = data.draw(st.sampled_from([1, 10, 100, 2**19]))
    writer = RegionWriter(planes, pool_labels)
    for region in pyramid.regions():
        write_region(whole, region.core, labels[region.core.slices], pool_labels)
        if labelled is None or labelled.intersect(region.core):
            writer.write(region.core, lambda box: labels[box.slices], labelled)
    levels.PART = 2**19
    for level in range(pyramid.n_fused):
        written = planes.arrays[level]
        if labelled is not None:  # chunks without labels may be left out
            written = np.where(written == UNWRITTEN, 0, written)
        np.testing.assert_array_equal(written, whole.arrays[level])


@laws
@given(pyramid=pyramids(), data=st.data())
def test_blocks_of_planes_cover_a_region_once_and_reach_over_no_chunk(pyramid, data):
    region = pyramid.regions()[0].core
    n_voxels = data.draw(st.integers(1, 1000))
    seen = np.zeros(pyramid.shapes[0], int)
    for block in blocks_of_planes(region, n_voxels, pyramid.chunks[0]):
        seen[block.slices] += 1
        plane = block.shape[-1] * block.shape[-2]
        assert block.size <= max(n_voxels, plane)
        for a, b, c in list(zip(block.start, block.stop, pyramid.chunks[0], strict=True))[:-2]:
            assert a // c == (b - 1) // c
    assert (seen[region.slices] == 1).all()
    assert seen.sum() == region.size


@laws
@given(data=st.data())
def test_memory_that_is_used_again_holds_nothing_of_the_region_before(data):
    chunk = (2, 3, 4)
    filled = RegionChunks(chunk, np.dtype("uint16"))
    for _ in range(3):
        shape = tuple(data.draw(st.integers(1, 3 * c)) for c in chunk)
        labels = data.draw(label_images(shape, dtype="uint16"))
        part = data.draw(boxes(shape)).on_axis(0, 0, shape[0])
        filled.begin(Box.whole(shape), part)
        for z in range(shape[0]):
            plane = part.on_axis(0, z, z + 1)
            filled.put(plane, labels[plane.slices])
        rest = np.ones(shape, bool)
        rest[part.slices] = False
        labels[rest] = 0
        np.testing.assert_array_equal(filled.to_array(), labels)
        total = sum(int(part.sum()) for _, part in filled.chunks())
        assert total == int(labels.sum())


@given(box=boxes((9, 9)))
def test_two_axes_are_one_block(box):
    assert list(blocks_of_planes(box, 1, (4, 4))) == [box]
