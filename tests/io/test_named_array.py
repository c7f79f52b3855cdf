"""Arrays whose axes have names: what an array without them gives, and channel and time by name."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from patchworks import estimate_empty_tiles, merge_tile_labels, plan_run, tile_process
from patchworks.errors import InputError
from patchworks.geometry.box import Box
from patchworks.plan import describe_image
from patchworks.plugins.ome_zarr import to_ome_zarr
from tests.stores import blobs, components

IMAGE = blobs((20, 60, 50))
KEYWORDS = {"tile_shape": (20, 32, 32), "overlap": 4, "progress": False, "pyramid_levels": 2}


class Named:
    """What `xarray.DataArray` is to this library; that has a Dask graph, if only an empty one."""

    def __init__(self, data, dims=None):
        self.data = data
        self.dims = dims or tuple([f"dim_{i}" for i in range(data.ndim)])
        self.shape, self.ndim, self.dtype = data.shape, data.ndim, data.dtype

    @property
    def chunks(self):
        return getattr(self.data, "chunks", None)

    def __dask_graph__(self):
        return None


def real(data, dims=None):
    return pytest.importorskip("xarray").DataArray(data, dims=dims)


@pytest.fixture(params=[Named, real])
def named(request):
    return request.param


def lazy(image):
    return da.from_array(image, chunks=tuple([max(1, n // 2) for n in image.shape]))


@pytest.mark.parametrize("held", [np.asarray, lazy])
@pytest.mark.parametrize("dims", [None, ("z", "y", "x"), ("plane", "Y", "X")])
def test_names_of_space_change_no_label(named, held, dims):
    expected = tile_process(IMAGE, components, **KEYWORDS).compute()
    found = tile_process(named(held(IMAGE), dims), components, **KEYWORDS).compute()
    np.testing.assert_array_equal(found, expected)


def test_tiles_are_the_chunks_of_the_array_inside(named):
    image = da.from_array(IMAGE[None], chunks=(1, 10, 30, 25))
    assert plan_run(named(image, ("c", "z", "y", "x")), components).tile_shape == (10, 30, 25)


@pytest.mark.parametrize("held", [np.asarray, lazy])
def test_the_channel_is_taken_by_name(named, held):
    both = named(held(np.stack([IMAGE, np.zeros_like(IMAGE)], 1)), ("z", "channel", "y", "x"))
    expected = tile_process(IMAGE, components, **KEYWORDS).compute()
    found = [tile_process(both, components, channel=c, **KEYWORDS).compute() for c in (0, 1)]
    np.testing.assert_array_equal(found[0], expected)
    assert not found[1].any()
    with pytest.raises(InputError, match=r"channel=2: the array with axes .* 2 channel"):
        tile_process(both, components, channel=2, **KEYWORDS)


@pytest.mark.parametrize("held", [np.asarray, lazy])
def test_time_points_are_apart(named, held):
    def seen(tile):
        assert tile.ndim == 2
        return components(tile)

    series = named(held(IMAGE[:4]), ("time", "y", "x"))
    labels = tile_process(series, seen, tile_shape=(32, 32), overlap=4, progress=False).compute()
    assert labels.shape == (4, *IMAGE.shape[1:])
    of_points = [set(np.unique(point)) - {0} for point in labels]
    assert sum(map(len, of_points)) == len(set().union(*of_points))
    one = named(held(IMAGE[:1]), ("t", "y", "x"))
    assert tile_process(one, components, progress=False).shape == IMAGE.shape[1:]


def test_other_functions_take_them(named):
    assert estimate_empty_tiles(named(IMAGE), (20, 30, 25), threshold=1)["n_tiles"] == 4
    tiles = da.from_array((IMAGE > 0).astype("i4"), chunks=(20, 30, 50))
    assert merge_tile_labels(named(tiles), progress=False).shape == IMAGE.shape


@pytest.mark.parametrize("held", [np.asarray, lazy])
def test_converted_they_keep_the_names(named, held, tmp_path):
    series = named(held(IMAGE), ("Time", "y", "x"))
    to_ome_zarr(series, tmp_path / "i.zarr", pixel_size={"y": 1, "x": 1}, progress=False)
    found = describe_image(tmp_path / "i.zarr")
    assert found.time_axis == 0
    np.testing.assert_array_equal(found.read(Box.whole(found.shape)).squeeze(), IMAGE)


def test_a_data_set_of_several_arrays_is_refused():
    xarray = pytest.importorskip("xarray")
    with pytest.raises(InputError, match=r"type Dataset: expected .*xarray\.DataArray"):
        tile_process(xarray.Dataset({"a": (("y", "x"), IMAGE[0])}), components)
