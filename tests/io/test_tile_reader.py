"""Laws of reading tiles that share chunks: the same voxels, decoded as rarely as memory allows."""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.blocks import BLOCK_BYTES, block_shape, boxes_of
from patchworks.geometry.box import Box
from patchworks.geometry.box_grid import BoxGrid
from patchworks.geometry.grid import Tile, TileGrid
from patchworks.io.image_source import ImageSource
from patchworks.io.maximum_map import MaximumMap, largest_of
from patchworks.io.source import open_source
from patchworks.io.tile_reader import TileReader, decode_threads

SHAPE = (24, 96, 80)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE).astype("uint16")


@pytest.fixture(params=[(8, 32, 32), (5, 7, 80), (1, 96, 80)], ids=str)
def source(request, voxels, tmp_path: Path) -> ImageSource:
    zarr.create_array(tmp_path / "image.zarr", data=voxels, chunks=request.param)
    return open_source(tmp_path / "image.zarr", channel=0, level=0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("patchworks.geometry.blocks.BLOCK_BYTES", 1024)
    monkeypatch.setattr("patchworks.io.kept_blocks.BLOCK_BYTES", 1)


GRIDS = [
    TileGrid.regular(SHAPE, (8, 32, 40), (2, 4, 4)),
    TileGrid.regular(SHAPE, (24, 20, 30), (0, 16, 3)),
    TileGrid(((0, 3, 24), (0, 50, 96), (0, 10, 20, 80)), (1, 9, 5)),
]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: str(g.tile_shape))
@pytest.mark.parametrize("kept", [0, 40_000, 2**30])
@pytest.mark.parametrize("n_threads", [1, 4])
def test_tiles_are_what_the_image_holds_there(source, voxels, grid, kept, n_threads):
    reader = TileReader(source, grid, kept)
    with ThreadPoolExecutor(n_threads) as pool:
        found = list(pool.map(lambda i: reader.read(grid[i]), range(grid.n_tiles)))
    for tile, (read, _) in zip(grid, found, strict=True):
        assert np.array_equal(read, voxels[tile.read.slices])
        assert read.flags.writeable


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: str(g.tile_shape))
@pytest.mark.parametrize("n_threads", [1, 4])
def test_with_memory_enough_every_chunk_is_decoded_once(source, grid, n_threads):
    reader = TileReader(source, grid, 2**30)
    array = source.stored.array
    tiles = reader.order.ordered(range(grid.n_tiles))
    with ThreadPoolExecutor(n_threads) as pool:
        n_bytes = sum(pool.map(lambda i: reader.read(grid[i])[1], tiles))
    assert n_bytes == prod(array.cdata_shape) * prod(array.chunks) * array.dtype.itemsize
    assert not reader._kept._blocks, "nothing is kept that no tile will read"


def test_less_memory_means_more_decoding_and_never_more_than_without(source):
    grid = GRIDS[0]
    n_bytes = [sum(bytes_decoded(source, grid, kept)) for kept in (2**30, 60_000, 30_000, 10_000)]
    alone = sum(bytes_decoded(source, grid, 0))
    assert n_bytes == sorted(n_bytes)
    assert n_bytes[0] < n_bytes[-1] <= alone


def bytes_decoded(source, grid, kept):
    reader = TileReader(source, grid, kept)
    for index in reader.order.ordered(range(grid.n_tiles)):
        yield reader.read(grid[index])[1]
        assert sum(b.n_bytes for b in reader._kept._blocks.values()) <= kept


@pytest.mark.parametrize("in_order", [True, False])
def test_in_a_wide_image_little_is_kept_although_every_chunk_is_decoded_once(tmp_path, in_order):
    """Column by column, and of chunks whose rest has been read only the halo of those to come."""
    shape, chunks = (16, 64, 512), (8, 16, 32)
    voxels = np.random.default_rng(2).integers(0, 60_000, shape).astype("uint16")
    zarr.create_array(tmp_path / "image.zarr", data=voxels, chunks=chunks)
    source = open_source(tmp_path / "image.zarr", channel=0, level=0)
    grid = TileGrid.regular(shape, (8, 32, 64), (2, 2, 2))
    reader = TileReader(source, grid, by_index=not in_order)
    most = n_bytes = 0
    for index in reader.order.ordered(range(grid.n_tiles)):
        found, n_decoded = reader.read(grid[index])
        np.testing.assert_array_equal(found, voxels[grid[index].read.slices])
        n_bytes += n_decoded
        most = max(most, sum(b.n_bytes for b in reader._kept._blocks.values()))
    assert n_bytes == voxels.nbytes
    assert most <= 1.1 * reader.cost.kept_bytes
    assert most < voxels.nbytes / 6 if in_order else most > voxels.nbytes / 2


def test_room_is_made_before_more_is_decoded(tmp_path, monkeypatch):
    shape, chunks, kept = (48, 64, 128), (8, 16, 32), 2**18
    voxels = np.random.default_rng(3).integers(0, 60_000, shape).astype("uint16")
    zarr.create_array(tmp_path / "image.zarr", data=voxels, chunks=chunks)
    source = open_source(tmp_path / "image.zarr", channel=0, level=0)
    grid = TileGrid.regular(shape, (16, 32, 64), (2, 2, 2))
    reader = TileReader(source, grid, kept)
    real, most = ImageSource.read, 0

    def read(self, box, out=None):
        nonlocal most
        held = [b for b in reader._kept._blocks.values() if b.voxels.done()]
        most = max(most, sum(b.voxels.result().nbytes for b in held))
        return real(self, box, out)

    monkeypatch.setattr(ImageSource, "read", read)
    for index in range(grid.n_tiles):
        tile = grid[index]
        assert np.array_equal(reader.read(tile)[0], voxels[tile.read.slices])
    assert kept / 2 < most <= kept


def test_aligned_tiles_without_halo_are_read_straight(source, voxels):
    chunks = source.chunks
    reader = TileReader(source, TileGrid.regular(SHAPE, chunks, (0, 0, 0)))
    assert not reader.shares_blocks


@pytest.mark.parametrize("n_threads", [1, 3])
def test_what_cannot_be_decoded_fails_for_every_tile_that_reads_it(source, monkeypatch, n_threads):
    grid = GRIDS[0]
    reader = TileReader(source, grid, 2**30)
    real, broken = ImageSource.read, grid[0].core

    def read(self, box, out=None):
        if box.intersect(broken) is not None:
            raise OSError("bad sector")
        return real(self, box, out)

    monkeypatch.setattr(ImageSource, "read", read)

    def attempt(index):
        try:
            return reader.read(grid[index])[0]
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(n_threads) as pool:
        found = list(pool.map(attempt, range(grid.n_tiles)))
    monkeypatch.undo()
    bad = {i for i in range(grid.n_tiles) if isinstance(found[i], str)}
    assert bad >= {t.index for t in grid if t.read.intersect(broken) is not None}
    assert reader.read(grid[0])[0].shape == grid[0].read.shape, "once it is repaired it is read"


@given(
    st.tuples(*[st.integers(1, 300)] * 3),
    st.tuples(*[st.integers(1, 600)] * 3),
    st.sampled_from([1, 2, 4]),
)
def test_blocks_are_whole_chunks_no_longer_than_half_a_tile(chunks, tile_shape, itemsize):
    block = block_shape(chunks, tile_shape, itemsize)
    assert all(b % c == 0 for b, c in zip(block, chunks, strict=True))
    grown = [(b, t) for b, c, t in zip(block, chunks, tile_shape, strict=True) if b > c]
    assert all(2 * b <= t for b, t in grown)
    if prod(chunks) * itemsize >= BLOCK_BYTES:
        assert block == chunks


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))))
def test_boxes_partition_what_is_asked_for(positions):
    boxes = boxes_of(sorted(positions))
    cells = [
        tuple(a + b for a, b in zip(box.start, at, strict=True))
        for box in boxes
        for at in np.ndindex(box.shape)
    ]
    assert len(cells) == len(positions)
    assert set(cells) == positions


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(["no map", "a map to fill", "a part of it", "a whole map"]))
def test_voxels_only_where_one_lies_above(data, known):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = tuple(data.draw(st.integers(1, 12)) for _ in range(2))
    dtype = data.draw(st.sampled_from(["uint8", "int16", "float32", "bool"]))
    voxels = np.where(rng.random(shape) < 0.05, rng.integers(0, 100, shape), 0).astype(dtype)
    if dtype == "float32":
        voxels[rng.random(shape) < 0.05] = np.nan
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    grid = TileGrid.regular(shape, tuple(data.draw(st.integers(1, n)) for n in shape), (2, 1))
    above = data.draw(st.sampled_from([0.0, 30.5, 99.0]))
    with tempfile.TemporaryDirectory() as folder:
        zarr.create_array(f"{folder}/i.zarr", data=voxels, chunks=chunks)
        source = open_source(f"{folder}/i.zarr", channel=0, level=0)
        maxima = None if known == "no map" else small_map(source, data.draw(st.integers(1, 5)))
        if maxima is not None and known != "a map to fill":
            whole = Box.whole(shape)
            part = whole if known == "a whole map" else whole.on_axis(0, 0, (shape[0] + 1) // 2)
            maxima.learn(part, voxels[part.slices])
        kept = data.draw(st.sampled_from([0, 200, 2**20]))
        reader = TileReader(source, grid, kept_bytes=kept, maxima=maxima)
        for tile in [grid[i] for i in reader.order.ordered(range(grid.n_tiles))]:
            expected = voxels[tile.read.slices]
            is_signal = bool((expected > above).any())
            way = data.draw(st.sampled_from(["ask", "leave out", "read"]))
            if way == "ask":
                assert reader.is_signal(tile, above) == is_signal
            elif way == "leave out":
                assert not (reader.leaves_out(tile, above) and is_signal)
            part = data.draw(parts_with_the_signal(reader, tile, above))
            found, _ = reader.read(part, above)
            if is_signal:
                np.testing.assert_array_equal(found, voxels[part.read.slices])
            else:
                assert found is None
        if maxima is not None and reader.learns_all:
            assert_is_of(maxima, voxels)
        assert not any(block.readers for block in reader._kept._blocks.values())


@st.composite
def parts_with_the_signal(draw, reader: TileReader, tile: Tile, above: float) -> Tile:
    """A tile, or a part of it in which all its signal lies, as far as the map knows."""
    bounds = reader.signal_bounds(tile, above)
    if bounds is None:
        return tile
    box = bounds.grow(tuple(draw(st.integers(0, 3)) for _ in bounds.start), tile.read)
    return replace(tile, read=box)


def small_map(source, extent: int) -> MaximumMap:
    """Return a map to be filled, with boxes of so many voxels inside chunks."""
    edges, cells = [], []
    for n, chunk in zip(source.shape, source.chunks, strict=True):
        starts = [s for c in range(0, n, chunk) for s in range(c, min(c + chunk, n), extent)]
        edges.append((*starts, n))
        cells.append(chunk)
    return MaximumMap.unknown(BoxGrid(tuple(edges), tuple(cells)), source.dtype)


def assert_is_of(maxima: MaximumMap, voxels: np.ndarray) -> None:
    """Check that what a map knows are the maxima of these voxels."""
    for box in maxima.grid.boxes:
        if maxima.known[box.position]:
            largest = largest_of(voxels[box.core.slices])
            np.testing.assert_array_equal(maxima.maxima[box.position], largest)


def test_a_tile_that_the_map_decides_is_not_read_for_it(voxels, tmp_path):
    zarr.create_array(tmp_path / "image.zarr", data=voxels, chunks=(4, 16, 16))
    source = open_source(tmp_path / "image.zarr", channel=0, level=0)
    maxima = small_map(source, 8)
    maxima.learn(Box.whole(SHAPE), voxels)
    grid = TileGrid.regular(SHAPE, (8, 32, 40), (2, 4, 4))
    shutil.rmtree(tmp_path / "image.zarr" / "c")  # nothing is there to be read any more
    reader = TileReader(source, grid, maxima=maxima)
    assert all(reader.leaves_out(tile, 60_000) for tile in grid)
    assert all(reader.read(tile, 60_000) == (None, 0) for tile in grid)
    assert all(reader.is_signal(tile, 0) for tile in grid)


@pytest.mark.parametrize("learns", [False, True])
def test_threads_that_evict_each_others_blocks_read_what_is_there(voxels, tmp_path, learns):
    zarr.create_array(tmp_path / "image.zarr", data=voxels, chunks=(4, 16, 16))
    grid = TileGrid.regular(SHAPE, (8, 32, 40), (2, 4, 4))
    source = open_source(tmp_path / "image.zarr", channel=0, level=0)
    maxima = small_map(source, 8) if learns else None
    reader = TileReader(source, grid, kept_bytes=2**13, maxima=maxima)

    def read(index: int) -> None:
        tile = grid[index]
        above = 59_990 if index % 2 else None
        if above is not None:
            is_signal = bool((voxels[tile.read.slices] > above).any())
            assert reader.is_signal(tile, above) == is_signal
        found, _ = reader.read(tile, above)
        expected = voxels[tile.read.slices]
        if above is None or (expected > above).any():
            np.testing.assert_array_equal(found, expected)
        else:
            assert found is None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, list(range(grid.n_tiles)) * 10))


@pytest.mark.parametrize("layer, n_decoded", [((0, 4), 1), (None, 2)])
def test_slices_that_lie_in_the_same_chunks_are_read_one_after_the_other(
    layer, n_decoded, tmp_path
):
    """Chunks of 4 slices, of which 24 are kept: one after the other, each is decoded once."""
    voxels = np.random.default_rng(0).integers(0, 99, (8, 96, 96), "uint8")
    array = zarr.create_array(tmp_path / "image.zarr", data=voxels, chunks=(4, 16, 16))
    grid = TileGrid.regular(voxels.shape, (1, 16, 16), (0, 2, 2))
    grid = TileGrid(grid.edges, grid.halo, apart=(0,), layer=layer)
    source = open_source(tmp_path / "image.zarr", channel=0, level=0)
    reader = TileReader(source, grid, kept_bytes=24 * prod(array.chunks))
    n_bytes = sum(reader.read(tile)[1] for tile in grid)
    assert n_bytes == voxels.nbytes if n_decoded == 1 else n_bytes > n_decoded * voxels.nbytes


@pytest.mark.parametrize("told, most", [("1", 1), ("2", 2), ("0", 8), ("", 8), ("4,2", 8)])
def test_a_worker_decodes_with_its_share_of_the_cores(monkeypatch, told, most):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert decode_threads() == most
    assert decode_threads(3) == min(most, 3)
