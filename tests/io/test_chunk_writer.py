"""Laws of writing chunks without zarr: zarr reads what was written, and finds the same files."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.io.chunk_writer import ChunkWriter


def make(folder: Path, zarr_format: int, shape, chunks, dtype="uint32"):
    if zarr_format == 3:
        compressor = ZstdCodec(level=1)
        extra = {}
    else:
        import numcodecs

        compressor = numcodecs.Zstd(level=1)
        extra = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    return zarr.create_array(
        folder, shape=shape, chunks=chunks, dtype=dtype, fill_value=0, compressors=compressor,
        zarr_format=zarr_format, overwrite=True, **extra,
    )  # fmt: skip


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("zarr_format", [2, 3])
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_zarr_reads_what_was_written(tmp_path_factory, zarr_format, data):
    ndim = data.draw(st.integers(2, 4))
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=ndim, max_size=ndim)))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    region = tuple(c * data.draw(st.integers(1, 3)) for c in chunks)
    seed = data.draw(st.integers(0, 9))
    voxels = np.random.default_rng(seed).integers(0, 2, shape).astype("uint32") * 70_000
    voxels[tuple(slice(n // 2) for n in shape)] = 0
    folder = tmp_path_factory.mktemp("arrays")
    ours = make(folder / "ours", zarr_format, shape, chunks)
    theirs = make(folder / "theirs", zarr_format, shape, chunks)
    writer = ChunkWriter(ours, folder / "ours", 1)
    for tile in TileGrid.regular(shape, region, (0,) * ndim):
        writer.write(tile.core, voxels[tile.core.slices])
    theirs[...] = voxels
    assert np.array_equal(zarr.open_array(folder / "ours")[...], voxels)
    assert files(folder / "ours") == files(folder / "theirs"), "no file for a chunk of zeros"


def test_writing_again_replaces_what_a_kill_cut_off(tmp_path):
    array = make(tmp_path / "a", 3, (5, 8), (4, 4))
    voxels = np.arange(40, dtype="uint32").reshape(5, 8)
    writer, whole = ChunkWriter(array, tmp_path / "a", 1), Box.whole((5, 8))
    writer.write(whole, voxels)
    for path in (tmp_path / "a" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5])
    writer.write(whole, voxels)
    assert np.array_equal(array[...], voxels)
    writer.write(whole, np.zeros_like(voxels))
    assert files(tmp_path / "a") == {"zarr.json"}, "what was there is gone where all is zero"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int16", "float32"])
def test_every_dtype_that_suits(tmp_path, dtype):
    array = make(tmp_path / "a", 3, (6, 6), (4, 4), dtype)
    voxels = np.arange(prod((6, 6))).reshape(6, 6).astype(dtype)
    assert ChunkWriter.suits(np.dtype(dtype))
    ChunkWriter(array, tmp_path / "a", 1).write(Box.whole((6, 6)), voxels)
    assert np.array_equal(array[...], voxels)
    assert not ChunkWriter.suits(np.dtype(dtype).newbyteorder(">")) or dtype == "uint8"
