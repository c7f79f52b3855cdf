"""Laws of reading chunks without zarr: the voxels that zarr reads, or no word."""

from __future__ import annotations

from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from patchworks.geometry.box import Box
from patchworks.io.chunk_reader import reader_of
from patchworks.io.image_source import ImageSource
from patchworks.io.source import open_source
from tests.strategies import boxes

SHAPE, CHUNKS = (20, 50, 70), (8, 16, 32)

READ = {
    "zstd": {"compressors": ZstdCodec(level=1)},
    "zstd with checksum": {"compressors": ZstdCodec(level=3, checksum=True)},
    "blosc": {"compressors": BloscCodec(cname="zstd", typesize=2)},
    "blosc lz4, bits shuffled": {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")},
    "plain": {"compressors": None},
    "other fill value": {"fill_value": 5},
    "2 zstd": {"zarr_format": 2, "compressors": numcodecs.Zstd()},
    "2 blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc()},
    "2 plain": {"zarr_format": 2, "compressors": None},
}
LEFT_TO_ZARR = {
    "gzip": {"compressors": GzipCodec()},
    "shards": {"shards": (16, 32, 32)},
    "big-endian": {"serializer": BytesCodec(endian="big")},
    "two codecs": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "2 zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "2 Fortran order": {"zarr_format": 2, "compressors": None, "order": "F"},
    "2 filters": {"zarr_format": 2, "compressors": None, "filters": [numcodecs.Delta("<u2")]},
}


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    made = np.random.default_rng(0).integers(0, 60_000, SHAPE).astype("uint16")
    made[:8, :16, :32] = 0  # no file, or one of the fill value
    return made


def write(folder: Path, voxels: np.ndarray, **options) -> Path:
    dtype = options.pop("dtype", voxels.dtype)
    array = zarr.create_array(folder, shape=SHAPE, chunks=CHUNKS, dtype=dtype, **options)
    array[...] = voxels
    return folder


@pytest.fixture(scope="module", params=READ, ids=str)
def array(request, voxels, tmp_path_factory) -> zarr.Array:
    folder = tmp_path_factory.mktemp("array") / "a.zarr"
    return zarr.open_array(write(folder, voxels, **READ[request.param]), mode="r")


@given(boxes(SHAPE))
@settings(deadline=None, max_examples=25)
def test_a_box_is_what_zarr_reads(array, box):
    reader = reader_of(array)
    out = np.empty(box.shape, array.dtype)
    assert reader is not None
    assert reader.read(box, out)
    np.testing.assert_array_equal(out, array[box.slices])


@pytest.mark.parametrize("name", LEFT_TO_ZARR)
def test_what_is_unusual_is_left_to_zarr(name, voxels, tmp_path):
    folder = write(tmp_path / "a.zarr", voxels, **LEFT_TO_ZARR[name])
    assert reader_of(zarr.open_array(folder, mode="r")) is None
    source = open_source(folder, channel=0, level=0)
    box = Box((3, 5, 7), (19, 50, 66))
    np.testing.assert_array_equal(source.read(box), voxels[box.slices])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "float32", "bool"])
def test_every_dtype(dtype, voxels, tmp_path):
    made = voxels.astype(dtype)
    source = open_source(write(tmp_path / "a.zarr", made), channel=0, level=0)
    assert source.chunk_reader is not None
    found = source.read(Box.whole(SHAPE))
    assert found.dtype == made.dtype
    np.testing.assert_array_equal(found, made)


def damaged(content: bytes) -> list[bytes]:
    shorter = numcodecs.Zstd(level=1).encode(np.zeros(100, "uint8"))
    return [b"", content[: len(content) // 2], b"nonsense", bytes(shorter)]


@pytest.mark.parametrize("kind", range(4))
def test_a_damaged_chunk_is_left_to_zarr_which_says_so(kind, voxels, tmp_path):
    folder = write(tmp_path / "a.zarr", voxels, compressors=ZstdCodec())
    path = folder / "c" / "1" / "1" / "1"
    path.write_bytes(damaged(path.read_bytes())[kind])
    source = open_source(folder, channel=0, level=0)
    assert source.chunk_reader is not None
    box = Box((8, 16, 32), (16, 32, 64))
    assert not source.chunk_reader.read(box, np.empty(box.shape, "uint16"))
    assert not source.chunk_reader.read(Box((0, 0, 0), (20, 50, 64)), np.empty((20, 50, 64), "u2"))
    with pytest.raises(Exception):  # noqa: B017 - zarr's own, whichever it is
        source.read(box)


def channels(tmp_path: Path, per_chunk: int) -> tuple[ImageSource, np.ndarray]:
    made = np.random.default_rng(1).integers(0, 99, (3, 10, 12)).astype("uint8")
    zarr.create_array(
        tmp_path / "c.zarr", data=made, chunks=(per_chunk, 5, 5), dimension_names=["c", "y", "x"]
    )
    return open_source(tmp_path / "c.zarr", channel=1, level=0), made[1]


@pytest.mark.parametrize("per_chunk", [1, 2, 3])
def test_one_channel_of_several(per_chunk, tmp_path):
    source, expected = channels(tmp_path, per_chunk)
    assert source.chunk_reader is not None
    for box in (Box.whole((10, 12)), Box((0, 5), (5, 10)), Box((3, 4), (9, 12))):
        np.testing.assert_array_equal(source.read(box), expected[box.slices])
        out = np.zeros(box.shape, "uint8")
        assert source.read(box, out) is out
        np.testing.assert_array_equal(out, expected[box.slices])
