"""`load_ome_zarr`: a level of an image, or of its labels, lazily."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr

from patchworks import load_ome_zarr, tile_process
from patchworks.errors import InputError, PatchworksError, SourceNotFoundError
from tests.stores import blobs, components, contents, ome_zarr

IMAGE = np.stack([blobs((6, 40, 30), seed) for seed in range(3)])
LEVELS = [IMAGE, IMAGE[..., ::2, ::2]]


@pytest.fixture(params=["0.4", "0.5"])
def store(request, tmp_path):
    return ome_zarr(
        tmp_path / "image.zarr", LEVELS, version=request.param, axes="czyx", chunks=(1, 3, 16, 16)
    )


@pytest.mark.parametrize("channel", [0, 2])
@pytest.mark.parametrize("level", [0, 1])
def test_the_channel_and_level_asked_for_are_loaded(store, channel, level):
    loaded = load_ome_zarr(store, channel=channel, level=level)
    assert np.array_equal(loaded.compute(), LEVELS[level][channel])


def test_without_a_channel_all_of_them_are_loaded(store):
    assert np.array_equal(load_ome_zarr(store, channel=None).compute(), IMAGE)


def test_the_array_is_lazy_and_in_the_chunks_of_the_store(store):
    loaded = load_ome_zarr(store)
    assert isinstance(loaded, da.Array)
    assert loaded.chunksize == (3, 16, 16)


def test_chunks_are_those_asked_for(store):
    loaded = load_ome_zarr(store, chunks=(6, 10, 10))
    assert loaded.chunksize == (6, 10, 10)
    assert np.array_equal(loaded.compute(), IMAGE[0])


def test_loading_changes_nothing(store, tmp_path):
    before = contents(tmp_path)
    load_ome_zarr(store).compute()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("n_times, shape", [(1, (6, 40, 30)), (2, (2, 6, 40, 30))])
def test_a_time_axis_is_dropped_only_if_it_holds_one_time_point(tmp_path, n_times, shape):
    image = np.stack([IMAGE] * n_times)
    store = ome_zarr(tmp_path / "image.zarr", [image], axes="tczyx")
    assert load_ome_zarr(store).shape == shape


def test_a_label_image_is_loaded_by_its_name(store):
    labels = tile_process(store, components, output_component="nuclei", progress=False)
    assert np.array_equal(load_ome_zarr(store, label="nuclei").compute(), labels.compute())


def test_a_level_of_a_label_image_is_loaded(store):
    tile_process(store, components, output_component="nuclei", progress=False)
    assert load_ome_zarr(store, label="nuclei", level=1).shape == (6, 20, 15)


def test_a_label_image_of_its_own_is_loaded(tmp_path):
    labels = tile_process(IMAGE[0], components, write_to=tmp_path / "l.zarr", progress=False)
    assert np.array_equal(load_ome_zarr(tmp_path / "l.zarr").compute(), labels.compute())


def test_a_plain_array_is_loaded(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE[0], chunks=(3, 16, 16))
    assert np.array_equal(load_ome_zarr(tmp_path / "a.zarr").compute(), IMAGE[0])


def test_a_plain_group_of_one_array_is_loaded(tmp_path):
    zarr.open_group(tmp_path / "g.zarr").create_array("cells", data=IMAGE[0])
    assert np.array_equal(load_ome_zarr(tmp_path / "g.zarr").compute(), IMAGE[0])


def test_a_url_is_loaded(tmp_path):
    url = ome_zarr(f"memory://{tmp_path.name}/image.zarr", LEVELS, axes="czyx")
    assert np.array_equal(load_ome_zarr(url, channel=1).compute(), IMAGE[1])


def test_what_was_loaded_can_be_segmented(store):
    loaded = load_ome_zarr(store, channel=1)
    expected = tile_process(
        store, components, channel=1, tile_shape=(3, 16, 16), overlap=2, progress=False
    )
    found = tile_process(loaded, components, tile_shape=(3, 16, 16), overlap=2, progress=False)
    assert np.array_equal(found.compute(), expected.compute())


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"channel": 3}, r"3 channel\(s\), 0 to 2"),
        ({"channel": -1}, r"3 channel\(s\), 0 to 2"),
        ({"channel": "DAPI"}, "'DAPI'"),
        ({"level": 2}, r"2 level\(s\), 0 to 1"),
        ({"level": -1}, r"2 level\(s\), 0 to 1"),
        ({"label": "nuclei"}, "nuclei"),
        ({"label": 3}, "label"),
        ({"chunks": (4,)}, "chunks"),
        ({"chunks": (0, 4, 4)}, "chunks"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused_with_what_is(store, keywords, message):
    with pytest.raises(PatchworksError, match=message):
        load_ome_zarr(store, **keywords)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(SourceNotFoundError, match="nothing at this path"):
        load_ome_zarr(tmp_path / "nowhere.zarr")


def test_a_file_that_is_no_store_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "image.tif").write_bytes(b"II*\0")
    with pytest.raises(InputError, match="to_ome_zarr"):
        load_ome_zarr(tmp_path / "image.tif")
