"""Several channels to one function, and time series: each time point by itself, or linked."""

import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks import estimate_empty_tiles, load_ome_zarr, merge_tile_labels, tile_process
from patchworks.errors import InputError, SegmenterError
from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.io.source import open_source
from patchworks.io.tile_reader import TileReader
from patchworks.plugins.overview import overview_picture
from patchworks.segmenters import threshold
from tests.cells import same_partition
from tests.linked import linked
from tests.stores import blobs, components, ome_zarr

DATA = Path(__file__).parents[2] / "shared" / "data"
SHAPE = (3, 12, 40, 44)
IMAGE = np.stack([blobs(SHAPE[1:], seed) for seed in range(3)])
RUN = {"tile_shape": (6, 20, 20), "overlap": 4, "progress": False, "pyramid_levels": 1}


def named(image, axes, chunks):
    """Return a zarr array in memory that says what its axes are."""
    return zarr.create_array(
        zarr.storage.MemoryStore(), data=image, chunks=chunks, dimension_names=list(axes)
    )


def in_both(tile):
    """Objects of the first channel, without voxels in which the second is brighter."""
    assert tile.shape[0] == 2
    return ndimage.label((tile[0] > 0) & (tile[1] <= tile[0]))[0]


STORES = {
    "one channel per chunk": {"chunks": (1, 6, 16, 16)},
    "all channels in a chunk": {"chunks": (3, 6, 16, 16)},
    "two channels in a chunk": {"chunks": (2, 4, 16, 44), "version": "0.4"},
    "channels last": {"chunks": (6, 16, 16, 3), "axes": "zyxc"},
}


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    image = (
        IMAGE
        if STORES[request.param].get("axes", "czyx")[0] == "c"
        else IMAGE.transpose(1, 2, 3, 0)
    )
    return ome_zarr(tmp_path / "i.zarr", [image], **{"axes": "czyx", **STORES[request.param]})


@pytest.mark.parametrize("chosen", [[0, 2], (2, 0), np.array([1, 0])], ids=str)
def test_a_function_of_two_channels_gives_what_it_gives_of_the_whole(store, chosen):
    labels = tile_process(store, in_both, channel=chosen, **RUN)
    assert labels.shape == SHAPE[1:]
    assert same_partition(in_both(IMAGE[list(chosen)]), labels.compute())


def test_all_is_read_into_one_array_and_each_chunk_decoded_once(store):
    source = pickle.loads(pickle.dumps(open_source(store, channel=[2, 0], level=0)))
    grid = TileGrid.regular(SHAPE[1:], (6, 20, 20), (2, 4, 4))
    reader, n_decoded = TileReader(source, grid), 0
    for tile in grid:
        voxels, n_bytes = reader.read(tile)
        assert np.array_equal(voxels, IMAGE[[2, 0]][:, *tile.read.slices])
        n_decoded += n_bytes
    chunks = source.stored.array.chunks
    per_chunk = chunks[source.channel_axis]
    layers = [-(-n // c) * c for n, c in zip(SHAPE[1:], source.chunks, strict=True)]
    assert n_decoded == np.prod(layers) * (per_chunk if per_chunk == 3 else 2 * per_chunk)
    assert np.array_equal(source.read(Box((1, 2, 3), (2, 4, 9))), IMAGE[[2, 0], 1:2, 2:4, 3:9])


def test_one_channel_in_a_list_has_a_channel_axis(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", [IMAGE], axes="czyx")
    labels = tile_process(store, lambda tile: components(tile[0]), channel=[1], **RUN).compute()
    assert same_partition(components(IMAGE[1]), labels)


def test_a_zarr_array_tells_its_channels_by_its_dimension_names():
    array = named(IMAGE, "czyx", (1, 6, 20, 20))
    labels = tile_process(array, in_both, channel=[0, 1], **RUN).compute()
    assert same_partition(in_both(IMAGE[:2]), labels)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 1000), st.sampled_from([0, 50, 150]), st.sampled_from([(1, 5, 5), (2, 6, 4)]))
def test_a_tile_is_empty_only_if_no_channel_has_signal_there(seed, above, chunks):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 200, (2, 4, 15, 12)) * (rng.random((2, 4, 15, 12)) < 0.03)
    image = image.astype("uint8")
    array = named(image, "czyx", (1, *chunks))
    seen = []

    def bright(tile):
        seen.append(tile.max() > above)
        return ndimage.label((tile > above).any(0))[0]

    run = {"tile_shape": (2, 5, 4), "overlap": 1, "progress": False, "max_workers": 1}
    run |= {"skip_empty": True, "empty_threshold": above}
    labels = tile_process(array, bright, channel=[1, 0], **run)
    assert all(seen)
    assert same_partition(ndimage.label((image > above).any(0))[0], labels.compute())


class Preparing:
    """Keeps the sample that it is prepared with."""

    def __init__(self):
        self.samples = []

    def prepare(self, sample):
        self.samples.append(sample)
        return lambda tile: components(tile[0])

    def __call__(self, tile):
        raise AssertionError("it was prepared")


def test_a_function_is_prepared_with_a_sample_of_each_channel(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", [IMAGE], axes="czyx", chunks=(1, 6, 20, 20))

    preparing = Preparing()
    tile_process(store, preparing, channel=[0, 1], **RUN)
    (sample,) = preparing.samples
    assert sample.shape == (2, IMAGE[0].size)
    assert {tuple(p) for p in sample.T} == {tuple(p) for p in IMAGE[:2].reshape(2, -1).T}


def test_time_points_and_channels_of_five_axes(tmp_path):
    image = np.stack([IMAGE, IMAGE[::-1], blobs((3, 12, 40, 44), 9)])
    store = ome_zarr(tmp_path / "i.zarr", [image], axes="tczyx", chunks=(1, 1, 6, 16, 16))
    labels = tile_process(store, in_both, channel=[0, 1], **RUN).compute()
    assert labels.shape == (3, 12, 40, 44)
    check_time_points([in_both(point[:2]) for point in image], labels)


def check_time_points(expected, labels):
    held = [set(np.unique(point[point > 0])) for point in labels]
    for whole, tiled in zip(expected, labels, strict=True):
        assert same_partition(whole, tiled)
    assert sum(map(len, held)) == len(set.union(*held)) == labels.max()


SERIES = np.stack([blobs((40, 44), 3), blobs((40, 44), 3), blobs((40, 44), 4)])


@pytest.mark.parametrize("chunks", [(1, 16, 16), (2, 20, 20), (3, 40, 44)])
def test_each_time_point_has_objects_of_its_own(chunks):
    shapes = set()

    def note(tile):
        shapes.add(tile.ndim)
        return components(tile)

    run = {**RUN, "tile_shape": (20, 20)}
    labels = tile_process(named(SERIES, "tyx", chunks), note, **run).compute()
    assert shapes == {2}
    check_time_points([components(point) for point in SERIES], labels)


def test_time_points_can_be_linked():
    run = {**RUN, "tile_shape": (20, 20)}
    labels = tile_process(
        named(SERIES, "tyx", (1, 16, 16)), components, link_time=True, **run
    ).compute()
    assert same_partition(linked([components(point) for point in SERIES]), labels)
    assert np.array_equal(labels[0], labels[1])


def test_of_one_time_point_there_is_nothing_to_link():
    run = {**RUN, "tile_shape": (20, 20)}
    one = named(SERIES[:1], "tyx", (1, 16, 16))
    labels = tile_process(one, components, link_time=True, **run).compute()
    assert same_partition(components(SERIES[0]), labels)


def test_slices_are_linked_within_their_time_point_and_then_time_points(tmp_path):
    image = np.stack([IMAGE[0, :6], IMAGE[0, :6], IMAGE[1, :6]])
    store = ome_zarr(tmp_path / "i.zarr", [image], axes="tzyx", chunks=(1, 4, 20, 20))
    stacks = [linked([components(plane) for plane in stack]) for stack in image]
    run = {**RUN, "tile_shape": (20, 20), "slice_wise": True}
    check_time_points(stacks, tile_process(store, components, **run).compute())
    tracked = tile_process(store, components, link_time=True, overwrite=True, **run).compute()
    assert same_partition(linked(stacks), tracked)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_labels_of_a_series_have_its_time_axis(tmp_path, version):
    from ome_zarr_models import open_ome_zarr

    scale = (30.0, 2.0, 0.5, 0.5)
    image = np.stack([IMAGE[0], IMAGE[1]])
    store = ome_zarr(tmp_path / "i.zarr", [image], axes="tzyx", scale=scale, version=version)
    tile_process(store, components, **{**RUN, "pyramid_levels": 2})
    open_ome_zarr(zarr.open_group(f"{store}/labels/labels", mode="r"))
    group = zarr.open_group(f"{store}/labels/labels", mode="r")
    (multiscale,) = group.attrs.asdict().get("ome", group.attrs.asdict())["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["t", "z", "y", "x"]
    assert [axis["type"] for axis in multiscale["axes"]] == ["time", "space", "space", "space"]
    assert [one["coordinateTransformations"][0]["scale"] for one in multiscale["datasets"]] == [
        list(scale), [30.0, 2.0, 1.0, 1.0]
    ]  # fmt: skip
    assert group["0"].chunks[0] == 1
    assert load_ome_zarr(store, label="labels").shape == image.shape


def test_a_plain_array_of_four_axes_is_one_image():
    image = np.ones((3, 4, 20, 20), "uint8")
    labels = tile_process(
        image, components, **{**RUN, "tile_shape": (2, 4, 10, 20), "overlap": 1}
    ).compute()
    assert labels.max() == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="the real files are not beside this checkout")
def test_real_nuclei_over_time(tmp_path):
    movie = tifffile.imread(DATA / "ctc_N2DL-HeLa_02_t0-2_img.tif")[:, :300, :400]
    reference = tifffile.imread(DATA / "ctc_N2DL-HeLa_02_t0-2_seg.tif")[:, :300, :400]
    both = np.stack([movie, reference.astype(movie.dtype)], 1)
    store = ome_zarr(tmp_path / "i.zarr", [both], axes="tcyx", chunks=(1, 1, 128, 128))

    def touching_none(tile):
        return ndimage.label((tile[1] > 0) & (tile[0] > 0))[0]

    run = {**RUN, "tile_shape": (128, 128), "overlap": 8}
    labels = tile_process(store, touching_none, channel=[0, 1], **run).compute()
    wholes = [touching_none(frame) for frame in both]
    check_time_points(wholes, labels)
    tracks = tile_process(
        store, touching_none, channel=[0, 1], link_time=True, overwrite=True, **run
    ).compute()
    assert same_partition(linked(wholes), tracks)
    n_first = len(np.unique(tracks[0])) - 1
    assert len(set(tracks[0].flat) & set(tracks[2].flat)) - 1 > n_first / 2


REFUSED = {
    "no channel": ({"channel": []}, "channel=\\[\\]"),
    "a channel twice": ({"channel": [1, 1]}, "each channel once"),
    "a channel too high": ({"channel": [0, 3]}, r"channel=3: .* 3 channel\(s\)"),
    "a negative channel": ({"channel": [-1]}, r"channel=-1: .* 3 channel\(s\)"),
    "channels by name": ({"channel": ["DAPI"]}, "DAPI"),
    "channels as text": ({"channel": "02"}, "'02'"),
    "channels as floats": ({"channel": [0.0, 1]}, r"\[0.0, 1\]"),
    "channels of True": ({"channel": [True, 2]}, r"\[True, 2\]"),
    "channels of a slice": ({"channel": slice(2)}, "slice"),
    "what is signal not said": (
        {"channel": [0, 1], "skip_empty": True}, "give empty_threshold="
    ),
    "time that is not there": ({"link_time": True}, r"no time axis .*'z', 'y', 'x'"),
}  # fmt: skip


def never(tile):
    raise AssertionError("the function was called for bad input")


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_any_work(case, tmp_path):
    keywords, message = REFUSED[case]
    store = ome_zarr(tmp_path / "i.zarr", [IMAGE], axes="czyx")
    with pytest.raises(InputError, match=message):
        tile_process(store, never, **RUN, **keywords)
    assert [path.name for path in tmp_path.iterdir()] == ["i.zarr"]


@pytest.mark.parametrize(
    "image",
    [IMAGE, da.from_array(IMAGE), zarr.create_array(zarr.storage.MemoryStore(), data=IMAGE)],
    ids=["NumPy", "Dask", "zarr"],
)
def test_an_array_that_does_not_name_its_channels_is_refused_with_the_way(image):
    with pytest.raises(InputError, match="dimension names such as"):
        tile_process(image, never, channel=[0, 1], progress=False)


def test_the_built_in_function_is_for_one_channel(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", [IMAGE], axes="czyx")
    with pytest.raises(InputError, match="'threshold' segments one channel"):
        tile_process(store, threshold(3), channel=[0, 1], **RUN)


def test_labels_of_every_channel_are_refused(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", [IMAGE], axes="czyx")
    with pytest.raises(SegmenterError, match=r"shape \(2, 10, 24, .* for a tile of \(10, 24"):
        tile_process(store, lambda tile: tile.astype(int), channel=[0, 1], **RUN)


def test_empty_tiles_of_several_channels_and_time_points_are_those_of_the_run(tmp_path):
    image = np.zeros((2, 2, 4, 20, 20), "uint8")
    image[1, 1, 2, 3, 3] = 9
    store = ome_zarr(tmp_path / "i.zarr", [image], axes="tczyx")
    found = estimate_empty_tiles(store, (2, 10, 10), channel=[0, 1], threshold=5)
    assert (found["n_tiles"], found["n_occupied"]) == (16, 1)
    assert found["occupied"][1, 1, 0, 0]
    with pytest.raises(InputError, match="give threshold="):
        estimate_empty_tiles(store, (2, 10, 10), channel=[0, 1])


def test_labels_of_a_series_are_merged_one_time_point_at_a_time():
    with pytest.raises(InputError, match="labels of 3 time points"):
        merge_tile_labels(named(SERIES, "tyx", (1, 20, 20)))


def test_a_picture_shows_the_first_of_several_channels_and_all_time_points(tmp_path):
    image = np.stack([IMAGE[:2], IMAGE[:2]])
    store = ome_zarr(tmp_path / "i.zarr", [image], axes="tczyx")
    tile_process(store, in_both, channel=[1, 0], **RUN)
    pictures = [
        overview_picture(store, f"{store}/labels/labels", channel=chosen) for chosen in (1, [1, 0])
    ]
    assert pictures[0] == pictures[1]
