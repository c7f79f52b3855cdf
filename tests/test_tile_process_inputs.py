"""`tile_process` on what people have: stores and arrays of any layout, careless functions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dask.array as da
import numcodecs
import numpy as np
import pytest
import zarr
from scipy import ndimage
from zarr.storage import LocalStore, MemoryStore

from patchworks import tile_process
from tests.cells import same_partition
from tests.stores import blobs, chunk_files, components, contents, counting, n_calls, ome_zarr

IMAGE = blobs((40, 90, 70))
KEYWORDS = {"tile_shape": (20, 32, 32), "overlap": 4, "progress": False, "pyramid_levels": 2}


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return tile_process(IMAGE, components, **KEYWORDS).compute()


def as_zarr_array(tmp_path, image):
    return zarr.create_array(tmp_path / "array.zarr", data=image, chunks=(16, 32, 32))


def as_memory_url(tmp_path, image):
    url = f"memory://{tmp_path.name}/image.zarr"
    return ome_zarr(url, [image], chunks=(16, 32, 32))


INPUTS = {
    "str": lambda tmp, image: ome_zarr(tmp / "image.zarr", [image], chunks=(16, 32, 32)),
    "Path": lambda tmp, image: Path(ome_zarr(tmp / "image.zarr", [image])),
    "file URL": lambda tmp, image: Path(ome_zarr(tmp / "image.zarr", [image])).as_uri(),
    "file URL with a space": lambda tmp, image: Path(
        ome_zarr(tmp / "an image.zarr", [image])
    ).as_uri(),
    "memory URL": as_memory_url,
    "OME-Zarr 0.4": lambda tmp, image: ome_zarr(tmp / "image.zarr", [image], version="0.4"),
    "zarr array in a folder": as_zarr_array,
    "zarr array in memory": lambda tmp, image: zarr.create_array(
        MemoryStore(), data=image, chunks=(16, 32, 32)
    ),
    "component of a group": lambda tmp, image: zarr.open_group(
        ome_zarr(tmp / "image.zarr", [image]), mode="r"
    )["0"],
    "sharded zarr array": lambda tmp, image: zarr.create_array(
        tmp / "array.zarr", data=image, chunks=(8, 16, 16), shards=(16, 32, 32)
    ),
    "dask": lambda tmp, image: da.from_array(image, chunks=(16, 32, 32)),
    "irregular dask": lambda tmp, image: da.from_array(
        image, chunks=((3, 30, 7), (60, 30), (1, 9, 60))
    ),
    "numpy": lambda tmp, image: image,
    "numpy in Fortran order": lambda tmp, image: np.asfortranarray(image),
    "numpy view": lambda tmp, image: np.repeat(image, 2, axis=1)[:, ::2],
    "read-only numpy": lambda tmp, image: np.frombuffer(image.tobytes(), "uint8").reshape(
        image.shape
    ),
    "big-endian numpy": lambda tmp, image: image.astype(">u2"),
    "memory-mapped numpy": lambda tmp, image: _mapped(tmp / "image.npy", image),
    "numpy of float16": lambda tmp, image: image.astype("float16"),
    "numpy of bool": lambda tmp, image: image > 0,
}


def _mapped(path, image):
    np.save(path, image)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_of_input_gives_the_same_labels(kind, tmp_path, expected):
    image = INPUTS[kind](tmp_path, IMAGE)
    labels = tile_process(image, components, write_to=tmp_path / "labels.zarr", **KEYWORDS)
    assert np.array_equal(labels.compute(), expected)


@pytest.mark.parametrize(
    "compressor",
    [
        None,
        numcodecs.Blosc("lz4"),
        numcodecs.Blosc("blosclz", shuffle=2),
        numcodecs.Zlib(),
        numcodecs.GZip(),
        numcodecs.BZ2(),
        numcodecs.LZ4(),
        numcodecs.Zstd(),
    ],
    ids=str,
)
def test_a_store_of_zarr_2_is_read_whatever_its_compressor(compressor, tmp_path, expected):
    zarr.create_array(
        tmp_path / "array.zarr", data=IMAGE, chunks=(16, 32, 32), zarr_format=2,
        compressors=compressor,
    )  # fmt: skip
    labels = tile_process(
        tmp_path / "array.zarr", components, write_to=tmp_path / "labels.zarr", **KEYWORDS
    )
    assert np.array_equal(labels.compute(), expected)


@pytest.mark.parametrize(
    "keywords",
    [
        {"dtype": ">u2"},
        {"order": "F"},
        {"filters": numcodecs.Delta("u1")},
        {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    ],
    ids=lambda keywords: next(iter(keywords)),
)
def test_a_store_of_zarr_2_is_read_whatever_its_layout(keywords, tmp_path, expected):
    keywords = {"dtype": "u1", **keywords}
    array = zarr.create_array(
        tmp_path / "array.zarr", shape=IMAGE.shape, chunks=(16, 32, 32), zarr_format=2, **keywords
    )
    array[...] = IMAGE
    labels = tile_process(
        tmp_path / "array.zarr", components, write_to=tmp_path / "labels.zarr", **KEYWORDS
    )
    assert np.array_equal(labels.compute(), expected)


def test_labels_of_an_image_in_memory_can_go_into_its_own_store(tmp_path, expected, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = as_memory_url(tmp_path, IMAGE)
    labels = tile_process(url, components, **KEYWORDS)
    assert np.array_equal(labels.compute(), expected)
    assert np.array_equal(zarr.open_group(url, mode="r")["labels/labels/0"][...], expected)


def test_labels_can_go_to_a_file_url(tmp_path, expected):
    place = tmp_path / "the labels.zarr"
    tile_process(IMAGE, components, write_to=place.as_uri(), **KEYWORDS)
    assert np.array_equal(zarr.open_array(place / "0", mode="r")[...], expected)


def test_a_path_of_a_level_array_in_a_store_is_read_as_that_array(tmp_path, expected):
    store = ome_zarr(tmp_path / "image.zarr", [IMAGE])
    labels = tile_process(f"{store}/0", components, write_to=tmp_path / "labels.zarr", **KEYWORDS)
    assert np.array_equal(labels.compute(), expected)


# --- functions that are careless with what they get ---------------------------------------------


def in_place(tile: np.ndarray) -> np.ndarray:
    """Label, then wipe the tile: what a function does with its argument is its own business."""
    labels = components(tile)
    tile[...] = 0
    return labels


CHANGEABLE = {
    "numpy": lambda tmp: IMAGE.copy(),
    "dask": lambda tmp: da.from_array(IMAGE.copy(), chunks=(20, 32, 32)),
    "zarr": lambda tmp: as_zarr_array(tmp, IMAGE),
    "zarr in memory": lambda tmp: zarr.create_array(
        MemoryStore(), data=IMAGE, chunks=(40, 90, 70), compressors=None
    ),
}


@pytest.mark.parametrize("kind", CHANGEABLE)
def test_a_function_that_works_in_place_finds_the_same_objects(kind, tmp_path, expected):
    labels = tile_process(CHANGEABLE[kind](tmp_path), in_place, max_workers=1, **KEYWORDS)
    assert np.array_equal(labels.compute(), expected)


@pytest.mark.parametrize("kind", CHANGEABLE)
def test_a_function_that_works_in_place_does_not_change_the_image(kind, tmp_path):
    image = CHANGEABLE[kind](tmp_path)
    tile_process(image, in_place, max_workers=1, **KEYWORDS)
    assert np.array_equal(np.asarray(image[...]), IMAGE)


def test_a_function_that_changes_its_labels_afterwards_does_not_change_the_result(expected):
    kept = []

    def reusing(tile):
        for labels in kept:
            labels[...] = 7
        kept.append(components(tile))
        return kept[-1]

    labels = tile_process(IMAGE, reusing, max_workers=1, **KEYWORDS)
    assert np.array_equal(labels.compute(), expected)


def test_a_function_may_return_a_list_of_lists():
    image = (np.arange(16) % 3 > 0).reshape(4, 4)
    labels = tile_process(image, lambda tile: components(tile).tolist(), progress=False)
    assert same_partition(components(image), labels.compute())


def test_a_function_that_uses_every_label_id_once_is_merged():
    image = np.ones((20, 20), "uint8")
    ids = tile_process(
        image, lambda t: np.arange(1, t.size + 1).reshape(t.shape), tile_shape=(7, 9),
        overlap=0, stitch="touch", connectivity=1, progress=False,
    ).compute()  # fmt: skip
    assert np.array_equal(np.unique(ids), np.arange(1, ids.max() + 1))


# --- keywords -----------------------------------------------------------------------------------


def test_level_may_be_a_numpy_integer(tmp_path):
    store = ome_zarr(tmp_path / "image.zarr", [IMAGE, IMAGE[:, ::2, ::2]])
    labels = tile_process(store, components, level=np.int64(1), progress=False)
    assert labels.shape == (40, 45, 35)


def test_max_workers_may_be_a_numpy_integer():
    labels = tile_process(IMAGE, components, max_workers=np.int64(2), **KEYWORDS)
    assert labels.shape == IMAGE.shape


def test_the_result_is_lazy_and_of_the_shape_of_the_image(expected):
    labels = tile_process(IMAGE, components, **KEYWORDS)
    assert isinstance(labels, da.Array)
    assert (labels.shape, labels.dtype) == (IMAGE.shape, np.uint32)


def test_downscale_is_the_factor_between_levels_in_y_and_x(tmp_path):
    place = tmp_path / "labels.zarr"
    tile_process(
        IMAGE, components, write_to=place, progress=False, pyramid_levels=3, pyramid_downscale=3
    )
    shapes = [zarr.open_array(place / str(level), mode="r").shape for level in range(3)]
    assert shapes == [(40, 90, 70), (40, 30, 24), (40, 10, 8)]


def test_a_pyramid_that_starts_from_one_voxel_has_one_level(tmp_path):
    place = tmp_path / "labels.zarr"
    tile_process(np.ones((1, 1), "u1"), components, write_to=place, progress=False)
    assert [p.name for p in sorted(place.iterdir()) if p.is_dir()] == ["0"]


def test_the_stage_goes_where_it_was_asked_for(tmp_path):
    stage = tmp_path / "scratch"
    tile_process(
        IMAGE, components, write_to=tmp_path / "labels.zarr", stage_dir=stage, keep_stage=True,
        **KEYWORDS,
    )  # fmt: skip
    assert list(stage.glob("*/*/run.json"))
    assert {p.name for p in tmp_path.iterdir()} == {"labels.zarr", "scratch"}


def test_no_stage_is_left_in_a_stage_dir(tmp_path):
    stage = tmp_path / "scratch"
    tile_process(IMAGE, components, write_to=tmp_path / "labels.zarr", stage_dir=stage, **KEYWORDS)
    assert not list(stage.rglob("*"))


def test_progress_shows_what_is_done_and_where(capsys, tmp_path):
    tile_process(
        IMAGE, components, **{**KEYWORDS, "progress": True}, write_to=tmp_path / "labels.zarr"
    )
    said = "".join(capsys.readouterr())
    assert str(tmp_path / "labels.zarr") in said
    assert "objects" in said


def test_without_progress_nothing_is_printed(capsys, tmp_path):
    tile_process(IMAGE, components, **KEYWORDS, write_to=tmp_path / "labels.zarr")
    assert "".join(capsys.readouterr()) == ""


def test_skipping_empty_tiles_changes_no_label_and_calls_the_function_less(tmp_path):
    image = IMAGE.copy()
    image[:, :45] = 0
    whole = tile_process(image, components, **KEYWORDS).compute()
    skipped = tile_process(
        image, counting(tmp_path / "calls"), skip_empty=True, empty_threshold=0, **KEYWORDS
    )
    assert np.array_equal(skipped.compute(), whole)
    assert 0 < n_calls(tmp_path / "calls") < 18


def test_a_threshold_above_every_voxel_skips_every_tile(tmp_path):
    labels = tile_process(
        IMAGE, counting(tmp_path / "calls"), skip_empty=True, empty_threshold=255, **KEYWORDS
    )
    assert n_calls(tmp_path / "calls") == 0
    assert not labels.any().compute()


def test_a_function_that_finds_nothing_leaves_no_chunk_file(tmp_path):
    store = ome_zarr(tmp_path / "image.zarr", [np.zeros((40, 90, 70), "u2")])
    labels = tile_process(store, components, **KEYWORDS)
    assert chunk_files(tmp_path / "image.zarr" / "labels") == []
    assert labels.max().compute() == 0


def test_chunks_without_a_label_have_no_file(tmp_path):
    image = np.zeros((2000, 1100), "u1")
    image[1900:1910, 1000:1010] = 1
    tile_process(
        image, components, tile_shape=(512, 512), write_to=tmp_path / "labels.zarr",
        progress=False, pyramid_levels=1,
    )  # fmt: skip
    assert len(chunk_files(tmp_path / "labels.zarr")) == 1


def test_the_image_in_the_store_keeps_every_byte(tmp_path):
    store = Path(ome_zarr(tmp_path / "image.zarr", [IMAGE], attributes={"mine": {"a": 1}}))
    before = contents(store)
    tile_process(store, components, **KEYWORDS)
    after = contents(store)
    assert {name: after.get(name) for name in before} == before


def test_an_overlap_on_an_axis_with_one_tile_reads_no_more_than_the_image():
    seen = []

    def look(tile):
        seen.append(tile.shape)
        return components(tile)

    tile_process(IMAGE, look, tile_shape=(40, 45, 70), overlap=100 // 5, progress=False)
    assert set(seen) == {(40, 65, 70)}


def test_an_explicit_halo_on_slices_one_voxel_thick_is_used():
    image = np.zeros((5, 8, 8), "u1")
    image[1:4, 2:5, 2:5] = 1
    labels = tile_process(
        image, components, tile_shape=(1, 8, 8), overlap=(1, 0, 0), progress=False
    )
    assert labels.max().compute() == 1


def test_the_temporary_store_is_gone_when_the_process_ends(tmp_path):
    code = (
        "import numpy as np; from patchworks import tile_process\n"
        "labels = tile_process(np.ones((9, 9), 'u1'), lambda t: t.astype('i4'), progress=False)\n"
        "assert labels.compute().max() == 1\n"
        "from pathlib import Path; import os\n"
        "print(len(list(Path(os.environ['TMPDIR']).glob('patchworks-*'))))\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    child = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == "1"
    assert not list(tmp_path.iterdir())


def test_a_refused_call_leaves_no_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="overlap"):
        tile_process(IMAGE, components, overlap=-1)
    assert not list(tmp_path.iterdir())


def test_a_store_object_opened_twice_gives_the_same_labels(tmp_path, expected):
    as_zarr_array(tmp_path, IMAGE)
    array = zarr.open_array(LocalStore(tmp_path / "array.zarr"), mode="r")
    assert np.array_equal(tile_process(array, components, **KEYWORDS).compute(), expected)


def test_each_chunk_of_a_lazy_dask_array_is_computed_once(tmp_path, expected):
    count = counting(tmp_path / "chunks", lambda block: block)
    lazy = da.from_array(IMAGE, chunks=((3, 30, 7), (60, 30), (1, 9, 60))).map_blocks(
        count, dtype="u1", meta=np.empty((0, 0, 0), "u1")
    )
    labels = tile_process(lazy, components, **KEYWORDS)
    assert n_calls(tmp_path / "chunks") == 18
    assert np.array_equal(labels.compute(), expected)


def test_each_chunk_of_a_large_dask_array_is_computed_once(tmp_path, expected, monkeypatch):
    monkeypatch.setattr("patchworks.lazy.IN_MEMORY_BYTES", 1000)
    count = counting(tmp_path / "chunks", lambda block: block)
    lazy = da.from_array(IMAGE, chunks=((3, 30, 7), (60, 30), (1, 9, 60))).map_blocks(
        count, dtype="u1", meta=np.empty((0, 0, 0), "u1")
    )
    labels = tile_process(lazy, components, **KEYWORDS)
    assert n_calls(tmp_path / "chunks") == 18
    assert np.array_equal(labels.compute(), expected)


def test_a_large_dask_array_of_any_64_bit_integers_is_kept_in_the_stage(expected, monkeypatch):
    monkeypatch.setattr("patchworks.lazy.IN_MEMORY_BYTES", 1000)
    lazy = da.from_array(IMAGE.astype("longlong"), chunks=(20, 30, 40))
    assert np.array_equal(tile_process(lazy, components, **KEYWORDS).compute(), expected)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["czyx", "tczyx", "cyx", "zcyx"])
def test_the_channel_is_found_by_its_axis_wherever_it_is(version, axes, tmp_path):
    sizes = {"t": 1, "c": 3, "z": 5, "y": 30, "x": 20}
    stored = np.zeros(tuple(sizes[a] for a in axes), "u1")
    at = axes.index("c")
    plane = blobs((30, 20))
    np.moveaxis(stored, at, 0)[2] = plane
    store = ome_zarr(tmp_path / "image.zarr", [stored], version=version, axes=axes)
    labels = tile_process(store, components, channel=2, progress=False).compute()
    expected = ndimage.label(np.broadcast_to(plane, labels.shape) > 0)[0]
    assert labels.shape == tuple(sizes[a] for a in axes if a in "zyx")
    assert same_partition(expected, labels)
