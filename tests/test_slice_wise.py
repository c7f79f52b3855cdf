"""Slice by slice: tiled is untiled, and slices are linked as whole slices would be."""

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks import tile_process
from patchworks.errors import InputError, SegmenterError
from tests.cells import same_partition
from tests.linked import linked
from tests.stores import blobs, chunk_files, components, ome_zarr
from tests.strategies import binary_images

RUN = {"progress": False, "pyramid_levels": 1}


def by_slice(image):
    return [components(plane) for plane in image]


@st.composite
def stacks(draw):
    shape = (draw(st.integers(1, 4)), *draw(st.tuples(*[st.integers(2, 12)] * 2)))
    image = draw(binary_images(shape))
    tile = draw(st.tuples(*[st.integers(1, n) for n in shape[1:]]))
    overlap = draw(st.integers(0, min(tile)))
    return image.astype("uint8"), tile, overlap


@settings(deadline=None, max_examples=30)
@given(stacks(), st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_tiled_is_untiled(drawn, least):
    image, tile, overlap = drawn
    run = {**RUN, "tile_shape": tile, "overlap": overlap, "max_workers": 1}
    found = tile_process(image, components, slice_wise=True, link_iou=least, **run).compute()
    assert same_partition(linked(by_slice(image), least), found)


@pytest.mark.parametrize("chunks", [(1, 20, 20), (4, 20, 20), (10, 50, 50)])
def test_chunks_of_any_depth(tmp_path, chunks):
    image = blobs((10, 50, 50), seed=3)
    store = ome_zarr(tmp_path / "i.zarr", [image], chunks=chunks)
    run = {**RUN, "tile_shape": (20, 20), "overlap": 6}
    labels = tile_process(store, components, slice_wise=True, **run).compute()
    assert same_partition(linked(by_slice(image)), labels)


def test_tiles_have_two_axes_and_each_is_segmented_once(tmp_path):
    image, seen = blobs((8, 40, 40)), []
    store = ome_zarr(tmp_path / "i.zarr", [image], chunks=(4, 20, 20))

    def note(tile):
        seen.append(tile.shape)
        return components(tile)

    tile_process(store, note, slice_wise=True, tile_shape=(20, 40), overlap=5, progress=False)
    assert sorted(set(seen)) == [(25, 40)]
    assert len(seen) == 2 * 8


class Viewing:
    """Notes what it is given."""

    def __init__(self):
        self.seen = set()

    def __call__(self, tile):
        raise AssertionError("there is a segment_view")

    def segment_view(self, tile, margins):
        self.seen.add((tile.shape, margins))
        return components(tile)


def test_a_function_gets_the_margins_of_the_axes_it_sees():
    viewing = Viewing()
    tile_process(
        np.ones((2, 16, 16), "u1"), viewing, slice_wise=True, tile_shape=(8, 16), overlap=2, **RUN
    )
    assert viewing.seen == {((10, 16), ((0, 2), (0, 0))), ((10, 16), ((2, 0), (0, 0)))}


def test_an_image_without_slices_is_as_ever(tmp_path):
    image = blobs((50, 60))
    run = {**RUN, "tile_shape": (20, 20), "overlap": 4}
    plain, sliced = (
        tile_process(image, components, slice_wise=is_sliced, **run).compute()
        for is_sliced in (False, True)
    )
    assert np.array_equal(plain, sliced)


def test_all_but_y_and_x_of_a_plain_array_stay_apart_and_z_is_linked():
    image = np.ones((2, 3, 12, 12), "uint8")
    found = tile_process(image, components, slice_wise=True, tile_shape=(6, 12), **RUN).compute()
    assert [sorted(set(part.ravel())) for part in found] == [[1], [2]]


@pytest.mark.parametrize(
    "tile_shape", [None, (1, 20, 20), (20, 20), lambda shape, dtype: (shape[0] // 2, 30), "auto"]
)
def test_every_way_to_say_the_tiles(tile_shape):
    image = blobs((4, 40, 60))
    for given_as in (image, da.from_array(image, chunks=(3, 20, 30))):
        found = tile_process(given_as, components, slice_wise=True, tile_shape=tile_shape, **RUN)
        assert same_partition(linked(by_slice(image)), found.compute())


def test_labels_of_thick_chunks_are_written_in_thick_chunks(tmp_path):
    image = blobs((40, 64, 64))
    tile_process(image, components, slice_wise=True, write_to=tmp_path / "o.zarr", **RUN)
    assert zarr.open(tmp_path / "o.zarr")["0"].chunks == (40, 64, 64)
    assert len(chunk_files(tmp_path / "o.zarr")) == 1


def test_another_link_iou_links_anew_without_segmenting(tmp_path):
    cone = np.zeros((2, 40, 40), "uint8")
    cone[0, 5:35, 5:35], cone[1, 10:30, 10:30] = 1, 1  # IoU 0.44
    calls = []

    def count(tile):
        calls.append(tile.shape)
        return components(tile)

    run = {**RUN, "slice_wise": True, "tile_shape": (20, 40), "write_to": tmp_path / "o.zarr"}
    assert tile_process(cone, count, keep_stage=True, **run).max().compute() == 1
    n_calls = len(calls)
    anew = tile_process(cone, count, link_iou=0.5, overwrite=True, **run)
    assert anew.max().compute() == 2
    assert len(calls) == n_calls


REFUSED = {
    "a tile of several slices": ({"tile_shape": (2, 20, 20)}, "give 1 there"),
    "a halo over slices": ({"tile_shape": (20, 20), "overlap": (1, 2, 2)}, "give 0 there"),
    "an overlap on the slices alone": ({"tile_shape": (20, 20), "overlap": (1,)}, "or 2 of them"),
    "a link_iou of 0": ({"link_iou": 0}, "link_iou=0"),
    "a link_iou above 1": ({"link_iou": 1.5}, "link_iou=1.5"),
    "a link_iou that is none": ({"link_iou": None}, "link_iou=None"),
    "a link_iou as text": ({"link_iou": "0.5"}, "link_iou='0.5'"),
    "a link_iou of nan": ({"link_iou": float("nan")}, "finite"),
    "a step over three axes": ({"connectivity": 3, "stitch": "touch"}, "from 1 to 2"),
    "time that is not there": ({"link_time": True}, "no time axis"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_any_work(case, tmp_path):
    keywords, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        tile_process(
            blobs((4, 40, 40)), never, slice_wise=True, write_to=tmp_path / "o", **RUN, **keywords
        )
    assert not list(tmp_path.iterdir())


def never(tile):
    raise AssertionError("the function was called for bad input")


def test_labels_of_another_shape_are_refused_with_the_shape_that_was_seen():
    with pytest.raises(SegmenterError, match=r"shape \(9, 40\) for a tile of \(10, 40\)"):
        tile_process(blobs((2, 10, 40)), lambda tile: tile[1:].astype(int), slice_wise=True, **RUN)


def test_connectivity_within_the_slice_is_that_of_the_function():
    image = np.eye(8, dtype="uint8")[None].repeat(2, 0)

    def diagonal(tile):
        return ndimage.label(tile, np.ones((3, 3)))[0]

    run = {**RUN, "tile_shape": (4, 4), "overlap": 0, "connectivity": 2}
    assert tile_process(image, diagonal, slice_wise=True, **run).max().compute() == 1
