"""Whose memory labels are: what is staged later must not be what a function writes into next."""

import numpy as np
import pytest
import zarr

from patchworks import tile_process
from patchworks.geometry.grid import TileGrid
from patchworks.io.lent_memory import LentMemory
from patchworks.io.source import open_source
from patchworks.io.tile_reader import TileReader
from patchworks.tile_stream import is_unshared

KEPT = np.arange(12).reshape(3, 4)


class Holder:
    def __init__(self):
        self.buffer = np.zeros((3, 4), int)

    def whole(self):
        return self.buffer

    def part(self):
        return self.buffer[1:]

    def part_of_a_part(self):
        return self.buffer[1:].T[1:]

    def fresh_but_kept_by_a_view(self):
        made = np.zeros((3, 4), int)
        self.view = made[1:]
        return made

    def view_that_is_kept(self):
        self.view = np.zeros((3, 4), int)[1:]
        return self.view

    def fresh(self):
        return np.zeros((3, 4), int)

    def fresh_view(self):
        return np.zeros((3, 4), bool).view("uint8")

    def fresh_part(self):
        return np.zeros((3, 4), int)[1:, ::2].T


@pytest.mark.parametrize(
    "name",
    ["whole", "part", "part_of_a_part", "fresh_but_kept_by_a_view", "view_that_is_kept"],
)
def test_what_a_function_still_holds_is_shared(name):
    holder = Holder()
    labels = getattr(holder, name)()
    assert not is_unshared(labels)


@pytest.mark.parametrize("name", ["fresh", "fresh_view", "fresh_part"])
def test_what_it_has_given_away_is_not_copied(name):
    labels = getattr(Holder(), name)()
    assert is_unshared(labels)


def test_memory_of_others_counts_as_shared():
    labels = np.frombuffer(bytearray(12), "uint8")
    assert not is_unshared(labels)


@pytest.mark.parametrize("kind", ["whole", "part"])
@pytest.mark.parametrize("max_workers", [1, 3])
def test_a_function_may_use_its_buffer_again(kind, max_workers):
    image = np.random.default_rng(0).integers(0, 3, (64, 96)).astype("uint8")
    buffers = {}

    def reusing(tile):
        import threading

        shape = (tile.shape[0] + 1, tile.shape[1])
        key = (threading.get_ident(), shape)
        buffer = buffers.setdefault(key, np.zeros(shape, "int32"))
        labels = buffer[1:]
        np.copyto(labels, np.arange(1, tile.size + 1).reshape(tile.shape) * (tile > 1))
        if kind == "whole":
            buffers[key] = labels.copy()
            return buffers.pop(key)
        return labels

    keywords = {"tile_shape": (16, 16), "overlap": 0, "progress": False, "stitch": "touch"}
    labels = tile_process(image, reusing, max_workers=max_workers, **keywords).compute()
    assert np.array_equal(labels > 0, image > 1)


KEEPING = []


def keeping_the_tile(tile):
    KEEPING.append((tile, tile.copy()))
    return (tile > 0).astype("int32")


def keeping_a_part_of_the_tile(tile):
    KEEPING.append((tile[1:], tile[1:].copy()))
    return (tile > 0).astype("int32")


def tile_as_labels(tile):
    return tile


@pytest.fixture
def image(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 9, (60, 60)).astype("uint16")
    zarr.create_array(tmp_path / "image.zarr", data=voxels, chunks=(20, 20))
    return tmp_path / "image.zarr", voxels


@pytest.mark.parametrize("max_workers", [1, 2])
@pytest.mark.parametrize("fn", [keeping_the_tile, keeping_a_part_of_the_tile])
def test_voxels_that_a_function_keeps_stay_as_they_were(image, tmp_path, fn, max_workers):
    KEEPING.clear()
    options = {"tile_shape": (20, 20), "overlap": 4, "progress": False, "engine": "threads"}
    tile_process(
        image[0], fn, write_to=tmp_path / "labels.zarr", max_workers=max_workers, **options
    )
    assert len(KEEPING) == 9
    for kept, copy in KEEPING:
        np.testing.assert_array_equal(kept, copy)


def test_labels_that_are_the_tile_itself_are_not_written_over(image, tmp_path):
    options = {"tile_shape": (20, 20), "overlap": 4, "progress": False}
    found = tile_process(image[0], tile_as_labels, write_to=tmp_path / "labels.zarr", **options)
    np.testing.assert_array_equal(found.compute() > 0, image[1] > 0)


@pytest.fixture
def wide(tmp_path):
    """Return an image of tiles that are large enough for memory from the system."""
    voxels = np.random.default_rng(0).integers(0, 9, (600, 600)).astype("uint16")
    zarr.create_array(tmp_path / "wide.zarr", data=voxels, chunks=(200, 200))
    grid = TileGrid.regular(voxels.shape, (200, 200), (4, 4))
    return TileReader(open_source(tmp_path / "wide.zarr", channel=0, level=0), grid), voxels


def test_memory_of_voxels_is_used_again(wide):
    reader, image = wide
    first, _ = reader.read(reader.grid[4])
    address = first.ctypes.data
    first.flags.writeable = False
    del first
    second, _ = reader.read(reader.grid[0])
    assert second.ctypes.data == address
    second[...] = second[::-1]
    third, _ = reader.read(reader.grid[4])
    assert not np.shares_memory(second, third)
    np.testing.assert_array_equal(third, image[reader.grid[4].read.slices])


def test_nothing_is_kept_once_all_tiles_have_been_read(wide):
    reader, _ = wide
    for _ in range(2):
        held = [reader.read(tile)[0] for tile in reader.grid]
        assert held.pop() is not None
        del held[:]
        assert reader._tile_memory.spare_bytes == reader._block_memory.spare_bytes == 0


@pytest.mark.parametrize("shape", [(2**16,), (4, 2**14), (2,)], ids=str)
def test_whether_lent_memory_is_shared_is_told_like_that_of_other_arrays(shape):
    memory = LentMemory(2**20)
    lent = memory.lend(shape, np.dtype("u2"))
    assert is_unshared(lent)
    view = lent[:1]
    assert not is_unshared(lent)
    assert not is_unshared(view)
    del lent
    assert is_unshared(view)
    again = view
    assert not is_unshared(view)
    del again
    assert is_unshared(view)
