"""`auto_overlap`: with the overlap it gives, each object is seen whole by every tile it lies in."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks import auto_overlap, tile_process
from patchworks.errors import InputError
from patchworks.geometry.grid import TileGrid
from tests.images import smooth_noise


def boxes(shape: tuple[int, ...], sizes: list[int]) -> np.ndarray:
    """Return labels of boxes, one in each cell of a grid, of these extents along the last axis."""
    labels = np.zeros(shape, "u4")
    for n, size in enumerate(sizes):
        labels[2:5, n * 50 : n * 50 + size] = 10 * n + 3
    return labels


@pytest.mark.parametrize("diameter", [0.5, 1, 3, 30, np.float32(12.5), np.int64(7)])
def test_a_diameter_gives_one_number_that_covers_larger_objects(diameter):
    overlap = auto_overlap(diameter)
    assert isinstance(overlap, int)
    assert 1.25 * diameter + 2 <= overlap <= 1.4 * diameter + 4


def test_a_diameter_per_axis_gives_an_overlap_per_axis():
    given_z, given_y, given_x = auto_overlap((6, 30, 31.5))
    assert (given_z, given_y) == (auto_overlap(6), auto_overlap(30))
    assert auto_overlap(np.array([6, 30, 31.5])) == (given_z, given_y, given_x)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tiles_see_every_object_that_they_own_a_voxel_of_as_a_whole(data):
    n = data.draw(st.integers(1, 6))
    labels = np.zeros((60, 80), int)
    for i in range(n):
        y, x = data.draw(st.integers(0, 55)), data.draw(st.integers(0, 70))
        h, w = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20))
        labels[y : y + h, x : x + w] = i + 1
    halo = auto_overlap(labels)
    grid = TileGrid.regular(labels.shape, (30, 40), halo)
    sizes = np.bincount(labels.ravel())
    for tile in grid:
        owned = np.unique(labels[tile.core.slices])
        read = labels[tile.read.slices]
        assert all(np.count_nonzero(read == i) == sizes[i] for i in owned if i)


def test_the_largest_hundredth_is_left_out():
    sizes = [10] * 199 + [50]
    one_in_200 = boxes((8, 50 * 200), sizes)
    assert auto_overlap(one_in_200) == (5, 12)
    assert auto_overlap(boxes((8, 200), [10, 10, 10, 50]))[1] == 55


def test_labels_of_any_kind_are_taken_whatever_their_numbers():
    labels = boxes((8, 200), [20, 20, 20, 20])
    expected = auto_overlap(labels)
    assert auto_overlap(np.where(labels, labels.astype("u8") + 2**40, 0)) == expected
    assert auto_overlap(da.from_array(labels, chunks=100)) == expected
    assert auto_overlap(labels.astype("i2")) == expected
    assert auto_overlap(np.ones((9, 40), "u1")) == (11, 44)  # no background at all


BAD = [
    0, -1, -3.5, float("nan"), float("inf"), True, "30", None, (30,), (1, 2, 3, 4, 5, 6), [],
    (30, -1), (30, float("nan")), (30, True), (30, "30"), {30, 31}, 3j, 1e30,
    np.zeros((4, 4), int), np.zeros((0, 4), int), np.full((4, 4), -1), np.ones((4, 4)),
    np.ones((4, 4), bool), np.full((4, 4), np.nan),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:40])
def test_bad_input_is_refused_and_says_what_is_expected(bad):
    with pytest.raises(InputError, match=r"diameter=|auto_overlap: .*(expected|give)"):
        auto_overlap(bad)


def test_it_is_an_overlap_for_a_run():
    image = smooth_noise((16, 120, 120))

    def label(tile):
        return ndimage.label(tile > 1700)[0]

    overlap = auto_overlap(label(image))
    assert max(overlap) < 40
    tiled = tile_process(image, label, tile_shape=(16, 60, 60), overlap=overlap, progress=False)
    assert int(tiled.max().compute()) == label(image).max()
