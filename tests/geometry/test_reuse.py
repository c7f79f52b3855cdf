"""How often chunks are decoded: told beforehand, against what the reader of tiles does."""

from __future__ import annotations

from math import prod

import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.grid import TileGrid
from patchworks.geometry.reuse import chunk_reuse
from patchworks.io.source import source_of_zarr_array
from patchworks.io.tile_reader import TileReader

laws = settings(deadline=None, max_examples=60)


@st.composite
def grids(draw):
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 40)) for _ in range(ndim))
    tile = tuple(draw(st.integers(1, n)) for n in shape)
    halo = tuple(draw(st.integers(0, t)) for t in tile)
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    return TileGrid.regular(shape, tile, halo), chunks


@laws
@given(grids(), st.integers(0, 500))
def test_every_chunk_is_decoded_and_never_more_often_than_it_is_read(drawn, max_kept):
    grid, chunks = drawn
    n_reads = sum(
        prod(
            -(-b // c) - a // c
            for a, b, c in zip(tile.read.start, tile.read.stop, chunks, strict=True)
        )
        for tile in grid
    )
    found = chunk_reuse(grid, chunks, max_kept)
    assert found.n_chunks - 1e-6 <= found.n_decoded <= n_reads + 1e-6
    assert found.n_waiting <= max_kept


@laws
@given(grids(), st.integers(0, 500))
def test_keeping_more_never_decodes_more(drawn, max_kept):
    grid, chunks = drawn
    less = chunk_reuse(grid, chunks, max_kept).n_decoded
    assert chunk_reuse(grid, chunks, 2 * max_kept + 1).n_decoded <= less + 1e-6


@pytest.mark.parametrize("n_kept", [0, 8, 24, 48, 96, 10_000])
def test_the_reader_decodes_about_as_often_as_told(tmp_path, n_kept):
    chunks, shape = (8, 128, 128), (64, 1024, 1024)
    array = zarr.create_array(tmp_path / "i.zarr", shape=shape, chunks=chunks, dtype="u4")
    source = source_of_zarr_array(array, None)
    grid = TileGrid.regular(shape, (16, 256, 256), (4, 16, 16))
    n_bytes = prod(chunks) * 4
    reader = TileReader(source, grid, n_kept * n_bytes)
    order = reader.order
    decoded = sum(reader.read(grid[i])[1] for i in order.ordered(range(grid.n_tiles)))
    n_kept = n_kept if reader.shares_blocks else 0
    told = chunk_reuse(grid, chunks, n_kept, order.axes, order.bands).n_decoded * n_bytes
    assert told == pytest.approx(decoded, rel=0.3)
