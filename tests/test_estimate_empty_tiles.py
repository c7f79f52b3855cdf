"""`estimate_empty_tiles`: exactly the tiles that read a voxel above the threshold."""

from __future__ import annotations

from math import prod

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks import estimate_empty_tiles
from patchworks.errors import PatchworksError
from patchworks.geometry.grid import TileGrid
from patchworks.io.source import open_source
from patchworks.segmenters import otsu_threshold
from tests.stores import blobs, contents, ome_zarr
from tests.strategies import generators, halos, shapes, tile_shapes

IMAGE = blobs((10, 60, 50))
IMAGE[:, :25] = 0


@settings(deadline=None, max_examples=100)
@given(st.data(), generators(), st.floats(-1, 10))
def test_a_tile_is_occupied_where_it_reads_a_voxel_above_the_threshold(data, rng, threshold):
    shape = data.draw(shapes(max_axes=4))
    tiles = data.draw(tile_shapes(shape))
    halo = [min(h, t) for h, t in zip(data.draw(halos(len(shape))), tiles, strict=True)]
    image = (rng.random(shape) < 0.05) * rng.integers(0, 12, shape)
    found = estimate_empty_tiles(image, tiles, threshold=threshold, overlap=halo)
    grid = TileGrid.regular(shape, tiles, tuple(halo))
    expected = [bool((image[tile.read.slices] > threshold).any()) for tile in grid]
    assert found["occupied"].ravel().tolist() == expected


def test_the_numbers_add_up():
    found = estimate_empty_tiles(IMAGE, (5, 20, 20), threshold=0)
    assert found["n_tiles"] == prod(found["occupied"].shape) == 18
    assert found["n_occupied"] == found["occupied"].sum() > 0
    assert found["n_empty"] == 18 - found["n_occupied"] > 0
    assert found["empty_fraction"] == pytest.approx(found["n_empty"] / 18)
    assert found["threshold"] == 0


INPUTS = {
    "path": lambda tmp: ome_zarr(tmp / "image.zarr", [IMAGE], chunks=(10, 16, 16)),
    "memory URL": lambda tmp: ome_zarr(f"memory://{tmp.name}/image.zarr", [IMAGE]),
    "zarr array": lambda tmp: zarr.create_array(tmp / "a.zarr", data=IMAGE, chunks=(5, 20, 20)),
    "dask": lambda tmp: da.from_array(IMAGE, chunks=((3, 7), (60,), (1, 49))),
    "numpy": lambda tmp: IMAGE,
}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_of_input_is_looked_at(kind, tmp_path):
    found = estimate_empty_tiles(INPUTS[kind](tmp_path), (5, 20, 20), threshold=0)
    expected = estimate_empty_tiles(IMAGE, (5, 20, 20), threshold=0)
    assert np.array_equal(found["occupied"], expected["occupied"])


def test_the_channel_and_level_asked_for_are_looked_at(tmp_path):
    image = np.stack([np.zeros_like(IMAGE), IMAGE])
    store = ome_zarr(tmp_path / "image.zarr", [image, image[..., ::2, ::2]], axes="czyx")
    found = estimate_empty_tiles(store, (10, 10, 10), channel=1, level=1, threshold=0)
    expected = estimate_empty_tiles(IMAGE[..., ::2, ::2], (10, 10, 10), threshold=0)
    assert np.array_equal(found["occupied"], expected["occupied"])


def test_without_a_threshold_one_is_found_between_background_and_signal():
    image = np.where(IMAGE > 0, 200, 10).astype("u1")
    found = estimate_empty_tiles(image, (5, 20, 20))
    expected = estimate_empty_tiles(image, (5, 20, 20), threshold=10)
    assert 10 <= found["threshold"] < 200
    assert np.array_equal(found["occupied"], expected["occupied"])


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "?"])
def test_an_image_of_zeros_is_empty_and_one_of_another_value_may_be_full(dtype):
    assert estimate_empty_tiles(np.zeros((8, 8), dtype), (4, 4))["n_empty"] == 4
    assert estimate_empty_tiles(np.full((8, 8), 7).astype(dtype), (4, 4))["n_empty"] == 0


def test_voxels_that_are_no_numbers_are_no_signal():
    image = np.full((8, 8), np.nan, "f4")
    image[0, 0] = 5
    assert estimate_empty_tiles(image, (4, 4), threshold=1)["n_occupied"] == 1


def test_the_image_is_left_as_it_is(tmp_path):
    store = ome_zarr(tmp_path / "image.zarr", [IMAGE])
    before = contents(tmp_path)
    estimate_empty_tiles(store, (5, 20, 20))
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in set(after) - set(before)} == {"image.zarr.maxima"}


REFUSED = {
    "a missing path": ("nowhere.zarr", (5, 20, 20), {}),
    "a tile of too few axes": (IMAGE, (20, 20), {}),
    "a tile of no voxels": (IMAGE, (0, 20, 20), {}),
    "a tile of floats": (IMAGE, (5.0, 20, 20), {}),
    "a threshold of nan": (IMAGE, (5, 20, 20), {"threshold": float("nan")}),
    "a negative threshold": (IMAGE, (5, 20, 20), {"threshold": -1}),
    "a threshold as text": (IMAGE, (5, 20, 20), {"threshold": "low"}),
    "a negative overlap": (IMAGE, (5, 20, 20), {"overlap": -1}),
    "an overlap beyond the tile": (IMAGE, (5, 20, 20), {"overlap": 6}),
    "a channel of an array": (IMAGE, (5, 20, 20), {"channel": 1}),
}


def test_a_negative_threshold_means_something_where_voxels_may_be_negative():
    for dtype in ("i2", "f4"):
        image = np.full((8, 8), -5, dtype)
        image[0, 0] = -2
        assert estimate_empty_tiles(image, (4, 4), threshold=-3)["n_occupied"] == 1


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case):
    image, tile_shape, keywords = REFUSED[case]
    with pytest.raises(PatchworksError):
        estimate_empty_tiles(image, tile_shape, **keywords)


def test_a_sample_sees_what_lies_in_the_middle_alone(tmp_path):
    """Two whole chunks, the first and the last, would be all background."""
    voxels = np.random.default_rng(0).poisson(100, (8, 1024, 1024)).astype("uint16")
    voxels[:, 412:612, 412:612] += 900
    zarr.create_array(tmp_path / "image.zarr", data=voxels, chunks=(8, 128, 128))
    source = open_source(tmp_path / "image.zarr", channel=0, level=0)
    found = source.sample(max_voxels=2**15)
    assert len(found) <= 2**15
    assert 130 < otsu_threshold(found) < 1000, "between background and signal"
