"""`tile_process`: every kind of input, every keyword, each tile once."""

import functools
import subprocess
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr
from scipy import ndimage

from patchworks import load_ome_zarr, tile_process
from tests.cells import same_partition
from tests.images import above_1100, files_of, ome_zarr, smooth_noise

IMAGE = smooth_noise()
WHOLE = above_1100(IMAGE)
RUN = {"tile_shape": (10, 32, 32), "overlap": 4, "progress": False}


def memory_url(_: Path) -> str:
    group = zarr.open_group("memory://bucket/image.zarr", mode="w")
    group.create_array("0", data=IMAGE, chunks=(8, 32, 32))
    return "memory://bucket/image.zarr"


def plain_group(folder: Path) -> Path:
    zarr.open_group(folder / "plain.zarr", mode="w").create_array("raw", data=IMAGE)
    return folder / "plain.zarr"


INPUTS = {
    "path": lambda folder: ome_zarr(folder / "image.zarr", IMAGE),
    "text": lambda folder: str(ome_zarr(folder / "image.zarr", IMAGE)),
    "file URL": lambda folder: f"file://{ome_zarr(folder / 'image.zarr', IMAGE)}",
    "memory URL": memory_url,
    "OME-NGFF 0.4": lambda folder: ome_zarr(folder / "image.zarr", IMAGE, "0.4"),
    "time and channel": lambda folder: ome_zarr(
        folder / "image.zarr", IMAGE[None, None], axes="tczyx"
    ),
    "a plain group": plain_group,
    "a zarr array": lambda folder: zarr.create_array(
        folder / "array.zarr", data=IMAGE, chunks=(8, 32, 32)
    ),
    "a zarr array in memory": lambda _: zarr.create_array(
        zarr.storage.MemoryStore(), data=IMAGE, chunks=(8, 32, 32)
    ),
    "a Dask array": lambda _: da.from_array(IMAGE, chunks=(10, 32, 32)),
    "NumPy": lambda _: IMAGE,
}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_of_input_gives_the_objects_of_the_whole(tmp_path, kind):
    labels = tile_process(INPUTS[kind](tmp_path), above_1100, write_to=tmp_path / "o.zarr", **RUN)
    assert isinstance(labels, da.Array)
    assert (labels.shape, labels.dtype) == (IMAGE.shape, np.dtype("uint32"))
    assert same_partition(WHOLE, labels.compute())


class Above:
    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        return ndimage.label(tile > self.value)[0]

    def segment(self, tile: np.ndarray) -> np.ndarray:
        return self(tile)


def above(value: int, tile: np.ndarray) -> np.ndarray:
    return Above(value)(tile)


FUNCTIONS = {
    "function": above_1100,
    "lambda": lambda tile: ndimage.label(tile > 1100)[0],
    "partial": functools.partial(above, 1100),
    "object": Above(1100),
    "bound method": Above(1100).segment,
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_every_kind_of_callable_is_used(kind):
    assert same_partition(WHOLE, tile_process(IMAGE, FUNCTIONS[kind], **RUN).compute())


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_every_integer_dtype_is_taken_with_ids_of_any_size(dtype):
    largest = np.iinfo(dtype).max

    def sparse(tile: np.ndarray) -> np.ndarray:
        labels = ndimage.label(tile > 1400)[0].astype(dtype)
        return np.where(labels > 0, largest - labels, 0).astype(dtype)

    whole = ndimage.label(IMAGE > 1400)[0]
    assert same_partition(whole, tile_process(IMAGE, sparse, **RUN).compute())


def test_each_tile_is_segmented_exactly_once():
    seen = []

    def count(tile: np.ndarray) -> np.ndarray:
        seen.append(tile.shape)
        return above_1100(tile)

    tile_process(IMAGE, count, max_workers=2, **RUN)
    assert len(seen) == 3 * 3 * 3


def test_a_tile_is_its_core_and_the_overlap_clipped_to_the_image():
    seen = []

    def note(tile: np.ndarray) -> np.ndarray:
        seen.append(tile.shape)
        return np.zeros(tile.shape, int)

    tile_process(np.ones((96, 96)), note, tile_shape=(32, 96), overlap=5, progress=False)
    assert sorted(seen) == [(37, 96), (37, 96), (42, 96)]


def test_each_chunk_of_a_dask_array_is_computed_once():
    computed = []

    def chunk(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        if block_info:
            computed.append(block_info[None]["chunk-location"])
        return block + 1

    lazy = da.from_array(IMAGE, chunks=(12, 40, 40)).map_blocks(
        chunk, dtype="uint16", meta=np.empty((0, 0, 0), "uint16")
    )
    tile_process(lazy, above_1100, overlap=4, progress=False)
    assert len(computed) == len(set(computed)) == 2 * 3 * 2


def test_a_large_dask_array_goes_through_the_stage_not_through_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("patchworks.lazy.IN_MEMORY_BYTES", 0)
    lazy = da.from_array(IMAGE, chunks=(12, 40, 40))
    run = {"overlap": 4, "progress": False, "keep_stage": True, "stage_dir": tmp_path / "stage"}
    labels = tile_process(lazy, above_1100, **run)
    assert same_partition(WHOLE, labels.compute())
    assert len(list((tmp_path / "stage").rglob("image.zarr"))) == 1


def test_the_channel_that_was_asked_for_is_segmented(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", np.stack([IMAGE, 2500 - IMAGE]), axes="czyx")
    labels = tile_process(store, above_1100, channel=1, **RUN).compute()
    assert same_partition(above_1100(2500 - IMAGE), labels)


def test_the_level_that_was_asked_for_is_segmented(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", IMAGE, n_levels=2)
    labels = tile_process(store, above_1100, level=1, **RUN).compute()
    assert same_partition(above_1100(IMAGE[:, ::2, ::2]), labels)


@pytest.mark.parametrize(
    "tile_shape",
    [None, "auto", (7, 90, 23), lambda shape, dtype: (shape[0], 20, dtype.itemsize * 9)],
)
def test_every_way_to_give_a_tile_shape_gives_the_same_objects(tile_shape):
    labels = tile_process(IMAGE, above_1100, tile_shape=tile_shape, overlap=3, progress=False)
    assert same_partition(WHOLE, labels.compute())


def test_labels_are_sequential_whether_asked_for_or_not():
    for asked in (False, True):
        labels = tile_process(IMAGE, above_1100, sequential_labels=asked, **RUN).compute()
        assert np.unique(labels).tolist() == list(range(WHOLE.max() + 1))


def test_an_empty_image_leaves_no_chunk_and_no_stage(tmp_path):
    labels = tile_process(np.zeros((64, 64)), lambda t: t.astype(int), write_to=tmp_path / "o.zarr")
    assert labels.max().compute() == 0
    assert {p.name for p in (tmp_path / "o.zarr").rglob("*") if p.is_file()} == {"zarr.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["o.zarr"]


def test_tiles_without_signal_are_left_out(tmp_path):
    image = np.zeros((64, 64), "uint16")
    image[36:46, 36:46] = 500
    seen = []

    def note(tile: np.ndarray) -> np.ndarray:
        seen.append(tile.max())
        return ndimage.label(tile > 100)[0]

    run = {"tile_shape": (16, 16), "overlap": 2, "progress": False}
    labels = tile_process(image, note, skip_empty=True, empty_threshold=400, **run)
    assert seen == [500]
    assert labels.max().compute() == 1


def test_the_stage_is_kept_when_asked_for(tmp_path):
    run = {"write_to": tmp_path / "o.zarr", "stage_dir": tmp_path / "stages", **RUN}
    tile_process(IMAGE, above_1100, keep_stage=True, **run)
    assert len(list((tmp_path / "stages").rglob("*.rec"))) == 27


def test_pyramids_hold_no_label_that_level_0_does_not(tmp_path):
    run = {**RUN, "pyramid_levels": 4, "pyramid_downscale": 3}
    tile_process(IMAGE, above_1100, write_to=tmp_path / "o.zarr", **run)
    group = zarr.open_group(tmp_path / "o.zarr", mode="r")
    assert [group[str(i)].shape for i in range(4)] == [
        (24, 90, 70),
        (24, 30, 24),
        (24, 10, 8),
        (24, 4, 3),
    ]
    finest = set(np.unique(group["0"][...]))
    assert all(set(np.unique(group[str(i)][...])) <= finest for i in range(1, 4))


def test_a_pyramid_does_not_depend_on_the_tiles(tmp_path):
    for name, tile_shape in (("a", (24, 90, 70)), ("b", (10, 17, 23))):
        tile_process(
            IMAGE, above_1100, tile_shape=tile_shape, overlap=4, progress=False,
            write_to=tmp_path / name, pyramid_levels=3,
        )  # fmt: skip
    a, b = (zarr.open_group(tmp_path / name, mode="r") for name in "ab")
    for level in ("1", "2"):
        assert ((a[level][...] > 0) == (b[level][...] > 0)).all()


def test_an_array_without_write_to_leaves_nothing_behind(tmp_path):
    program = (
        "import numpy, tempfile, patchworks\n"
        "labels = patchworks.tile_process(numpy.eye(64), lambda t: (t > 0).astype(int))\n"
        "print(int(labels.max().compute()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"
    assert "1 objects in" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_image_in_the_store_is_not_touched(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", IMAGE)
    before = files_of(store / "0")
    tile_process(store, above_1100, **RUN)
    assert files_of(store / "0") == before
    assert [p.name for p in tmp_path.iterdir()] == ["i.zarr"]


def test_a_temporary_label_image_is_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tile_process(IMAGE, above_1100, **RUN)
    [folder] = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_time_point_of_a_series_can_be_segmented_again_and_nothing_is_done_twice(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", np.stack([IMAGE, IMAGE]), axes="tzyx")
    calls = []

    def count(tile: np.ndarray) -> np.ndarray:
        calls.append(1)
        return above_1100(tile)

    for _ in range(2):
        frame = load_ome_zarr(store)[1]
        tile_process(frame, count, write_to=tmp_path / "o.zarr", **RUN)
    assert len(calls) == 27
