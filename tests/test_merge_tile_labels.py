"""`merge_tile_labels`: labels of any tiling become those of the whole; the input stays."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks import merge_tile_labels
from patchworks.errors import InputError, PatchworksError, SegmenterError, TargetExistsError
from tests.cells import same_partition
from tests.stores import blobs, contents
from tests.strategies import binary_images, chunks_of, shapes

laws = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def connected(image, connectivity=1):
    return ndimage.label(image, ndimage.generate_binary_structure(image.ndim, connectivity))[0]


def tiled(image, chunks, connectivity=1, overlap=0):
    """Label every block for itself, each from 1; with its halo if there is an overlap."""
    array = da.from_array(image, chunks=chunks)
    if overlap:
        array = da.overlap.overlap(array, depth=overlap, boundary="none")
    return array.map_blocks(lambda block: connected(block, connectivity), dtype="i4")


@settings(laws, max_examples=80)
@given(st.data(), st.integers(2, 3))
def test_what_touches_is_joined_with_the_connectivity_asked_for(data, ndim):
    shape = data.draw(shapes(min_axes=ndim, max_axes=ndim))
    image, chunks = data.draw(binary_images(shape)), data.draw(chunks_of(shape))
    connectivity = data.draw(st.integers(1, ndim))
    merged = merge_tile_labels(
        tiled(image, chunks, connectivity), connectivity=connectivity, pyramid_levels=1, n_workers=1
    )
    assert same_partition(connected(image, connectivity), merged.compute())


@settings(laws, max_examples=60)
@given(st.data(), st.integers(2, 3), st.integers(1, 3))
def test_blocks_that_still_have_their_halos_are_trimmed_and_joined(data, ndim, overlap):
    shape = data.draw(shapes(min_axes=ndim, max_axes=ndim))
    image, chunks = data.draw(binary_images(shape)), data.draw(chunks_of(shape))
    if min(shape) < overlap:
        return
    connectivity = data.draw(st.integers(1, ndim))
    labels = tiled(image, chunks, connectivity, overlap)
    merged = merge_tile_labels(
        labels, overlap=overlap, connectivity=connectivity, pyramid_levels=1, n_workers=1
    )
    assert merged.shape == image.shape
    assert same_partition(connected(image, connectivity), merged.compute())


def store_of_tiles(path, image, chunks, **keywords):
    group = zarr.open_group(path, mode="w")
    labels = tiled(image, chunks).compute()
    array = group.create_array(
        "labels", shape=image.shape, chunks=chunks, dtype=labels.dtype, **keywords
    )
    array[...] = labels
    return path


IMAGE = blobs((20, 50, 45)) > 0


def test_an_overlap_of_numpy_is_an_integer():
    blocks = da.overlap.overlap(da.ones((8, 8), chunks=4, dtype=int), depth=1, boundary="none")
    assert (merge_tile_labels(blocks, overlap=np.int64(1)).compute() == 1).all()


@pytest.mark.parametrize("chunks", [(20, 50, 45), (7, 20, 20), (1, 50, 45), (20, 1, 45), (5, 5, 5)])
def test_the_chunks_of_a_store_are_its_tiles(tmp_path, chunks):
    store = store_of_tiles(tmp_path / "tiles.zarr", IMAGE, chunks)
    assert same_partition(connected(IMAGE), merge_tile_labels(store).compute())


def test_the_input_store_keeps_every_byte(tmp_path):
    store = store_of_tiles(tmp_path / "tiles.zarr", IMAGE, (7, 20, 20))
    before = contents(store)
    merge_tile_labels(store, tmp_path / "merged.zarr")
    assert contents(store) == before


def test_a_zarr_array_is_merged_like_its_store(tmp_path):
    store = store_of_tiles(tmp_path / "tiles.zarr", IMAGE, (7, 20, 20))
    array = zarr.open_group(store, mode="r")["labels"]
    assert same_partition(connected(IMAGE), merge_tile_labels(array).compute())


def test_another_component_can_be_named(tmp_path):
    store = store_of_tiles(tmp_path / "tiles.zarr", IMAGE, (7, 20, 20))
    group = zarr.open_group(store, mode="r+")
    cells = group.create_array("cells", data=np.ones((4, 4), "u2"), chunks=(2, 2))
    assert cells.shape == (4, 4)
    merged = merge_tile_labels(store, input_component="cells").compute()
    assert np.array_equal(merged, np.ones((4, 4)))


def test_blocks_without_a_label_join_nothing():
    labels = np.zeros((8, 8), "i4")
    labels[:2, :2] = labels[-2:, -2:] = 5
    merged = merge_tile_labels(da.from_array(labels, chunks=4)).compute()
    assert merged[0, 0] != merged[7, 7]
    assert merged.max() == 2


def test_objects_that_touch_within_a_block_stay_apart():
    labels = da.from_array(np.array([[1, 2, 1, 2]]), chunks=(1, 2))
    assert len(np.unique(merge_tile_labels(labels).compute())) == 3


@pytest.mark.parametrize("dtype", ["u1", "i2", "u8", "i8", ">i4"])
def test_every_integer_dtype_is_merged(dtype):
    labels = tiled(IMAGE, (10, 25, 25)).astype(dtype)
    assert same_partition(connected(IMAGE), merge_tile_labels(labels).compute())


def test_ids_above_four_thousand_million_are_merged():
    labels = tiled(IMAGE, (10, 25, 25)).astype("u8")
    labels = da.where(labels > 0, labels + 2**63, 0)
    assert same_partition(connected(IMAGE), merge_tile_labels(labels).compute())


def test_labels_are_numbered_from_one_without_a_gap():
    merged = merge_tile_labels(tiled(IMAGE, (10, 25, 25)), sequential_labels=True).compute()
    assert np.array_equal(np.unique(merged), np.arange(merged.max() + 1))
    assert merged.dtype == np.uint32


def test_the_name_of_the_label_image_is_the_one_asked_for(tmp_path):
    place = tmp_path / "merged.zarr"
    merge_tile_labels(tiled(IMAGE, (10, 25, 25)), place, output_component="nuclei")
    multiscale = zarr.open_group(place, mode="r").attrs["ome"]["multiscales"][0]
    assert multiscale["name"] == "nuclei"


def test_the_stage_is_kept_where_it_was_asked_for(tmp_path):
    merge_tile_labels(
        tiled(IMAGE, (10, 25, 25)), tmp_path / "m.zarr", stage_dir=tmp_path / "s", keep_stage=True
    )
    assert list((tmp_path / "s").glob("*/*/run.json"))


def test_another_merge_onto_the_same_place_needs_overwrite(tmp_path):
    merge_tile_labels(tiled(IMAGE, (10, 25, 25)), tmp_path / "m.zarr")
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        merge_tile_labels(tiled(IMAGE, (10, 20, 25)), tmp_path / "m.zarr")


REFUSED = {
    "floats": (da.ones((4, 4), chunks=2), {}),
    "bools": (da.ones((4, 4), chunks=2, dtype=bool), {}),
    "numpy": (np.ones((4, 4), "i4"), {}),
    "a missing path": ("nowhere.zarr", {}),
    "a negative overlap": (da.ones((4, 4), chunks=2, dtype="i4"), {"overlap": -1}),
    "an overlap of a float": (da.ones((4, 4), chunks=2, dtype="i4"), {"overlap": 1.0}),
    "an overlap that blocks do not have": (
        da.ones((4, 4), chunks=2, dtype="i4"), {"overlap": 2},
    ),
    "a connectivity too high": (da.ones((4, 4), chunks=2, dtype="i4"), {"connectivity": 3}),
    "no workers": (da.ones((4, 4), chunks=2, dtype="i4"), {"n_workers": 0}),
    "workers of a float": (da.ones((4, 4), chunks=2, dtype="i4"), {"n_workers": 1.5}),
    "None": (None, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(tmp_path, case):
    labeled, keywords = REFUSED[case]
    with pytest.raises(PatchworksError):
        merge_tile_labels(labeled, tmp_path / "m.zarr", **keywords)
    assert not list(tmp_path.iterdir())


def test_an_overlap_of_a_store_is_refused(tmp_path):
    store = store_of_tiles(tmp_path / "tiles.zarr", IMAGE, (7, 20, 20))
    with pytest.raises(InputError, match="no halo"):
        merge_tile_labels(store, overlap=2)


def test_a_component_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    store = store_of_tiles(tmp_path / "tiles.zarr", IMAGE, (7, 20, 20))
    with pytest.raises(InputError, match=r"'cells'.*\['labels'\]"):
        merge_tile_labels(store, input_component="cells")


def test_a_negative_label_is_named_with_its_tile():
    labels = da.from_array(-np.ones((4, 4), "i4"), chunks=2)
    with pytest.raises(SegmenterError, match=r"tile \d at .*negative label -1"):
        merge_tile_labels(labels)


def test_a_sharded_store_is_merged_by_its_chunks(tmp_path):
    chunks = (10, 20, 20)
    store = store_of_tiles(tmp_path / "tiles.zarr", IMAGE, chunks, shards=(20, 60, 60))
    assert same_partition(connected(IMAGE), merge_tile_labels(store).compute())
