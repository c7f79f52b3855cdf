"""Library = flow: the same bytes, whatever the image is; and the same for the other flows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import distributed
import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from flows import build_pyramid, convert_image, merge_labels, process_image, segment_image
from patchworks import merge_tile_labels, tile_process
from patchworks.plugins.ome_zarr import add_pyramid, to_ome_zarr
from patchworks.segmenters import threshold
from tests.images import above_1100, files_of, ome_zarr, smooth_noise

IMAGE = smooth_noise((20, 90, 70))
IMAGE[:, 50:, 40:] = 0
TILES = {"tile_shape": (10, 32, 32), "overlap": (4, 8, 8)}
LONG_AGO = 1e9


@pytest.fixture(scope="module")
def cluster(server) -> Iterator[str]:
    """The address of two worker processes that all flows of this module share."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as running:
        yield running.scheduler_address


def aged(path: Path) -> Path:
    """Give all files of an image one time: it is part of what fingerprints say."""
    for file in [path, *path.rglob("*")]:
        os.utime(file, (LONG_AGO, LONG_AGO))
    return path


def check(ours: Path, theirs: Path) -> None:
    """Compare every file of two stores."""
    mine, others = files_of(ours), files_of(theirs)
    assert mine
    assert mine.keys() == others.keys()
    different = [name for name in mine if mine[name] != others[name]]
    assert different == []


def array_in_a_store(folder: Path) -> zarr.Array[Any]:
    return zarr.create_array(folder / "array.zarr", data=IMAGE, chunks=(7, 40, 30))


ARRAYS: dict[str, Callable[[Path], Any]] = {
    "NumPy array": lambda _: IMAGE,
    "Dask array": lambda _: da.from_array(IMAGE, chunks=((3, 9, 8), (50, 20, 20), (50, 20))),
    "zarr.Array": array_in_a_store,
}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_store_with_the_labels_inside_it(tmp_path, cluster, version):
    stores = []
    for by in ("library", "flow"):
        (tmp_path / by).mkdir()
        stores.append(aged(ome_zarr(tmp_path / by / "image.zarr", IMAGE, version, n_levels=3)))
    # The name of the store is part of the fingerprint, its folder as well: both runs work in one.
    home = tmp_path / "image.zarr"
    stores[0].rename(home)
    tile_process(home, threshold(1100), progress=False, **TILES)
    home.rename(stores[0])
    stores[1].rename(home)
    report = segment_image(
        home, segmenter={"name": "threshold", "value": 1100}, cluster=cluster, **TILES
    )
    assert (report.n_tiles, report.n_objects) == (18, above_1100(IMAGE).max())
    check(home, stores[0])
    assert any(name.startswith("labels/labels/") for name in files_of(home))


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array(tmp_path, cluster, kind):
    image = ARRAYS[kind](tmp_path)
    tiles = {"overlap": 6} if kind == "Dask array" else TILES  # the tiles are its chunks
    more = {"skip_empty": True, "pyramid_levels": 3}
    tile_process(image, above_1100, write_to=tmp_path / "a.zarr", progress=False, **tiles, **more)
    report = segment_image(
        image, segmenter=above_1100, write_to=tmp_path / "b.zarr", cluster=cluster, **tiles, **more
    )
    assert min(report.n_empty, report.n_segmented, report.n_objects) > 0
    check(tmp_path / "b.zarr", tmp_path / "a.zarr")


def brighter(tile: np.ndarray) -> np.ndarray:
    return ndimage.label((tile[0] > 1100) & (tile[0] >= tile[1]))[0]


def test_channels_of_slices_of_a_series(tmp_path, cluster):
    """In the memory of this process: workers read a copy of it, all axes, in the stage."""
    part = IMAGE[:4]
    image = zarr.create_array(
        zarr.storage.MemoryStore(),
        data=np.stack([part, part[::-1], part, part + 9]).reshape(2, 2, *part.shape),
        chunks=(1, 1, 7, 40, 30),
        dimension_names=["t", "c", "z", "y", "x"],
    )
    run = {"tile_shape": (60, 48), "overlap": 8, "channel": [1, 0], "slice_wise": True}
    run |= {"link_time": True, "link_iou": 0.3, "skip_empty": True, "empty_threshold": 1100}
    tile_process(image, brighter, write_to=tmp_path / "a.zarr", progress=False, **run)
    report = segment_image(image, segmenter=brighter, write_to=tmp_path / "b.zarr",
                           cluster=cluster, **run)  # fmt: skip
    assert report.n_tiles == 2 * 4 * 4
    assert min(report.n_empty, report.n_objects) > 0
    check(tmp_path / "b.zarr", tmp_path / "a.zarr")


@pytest.mark.parametrize("way", ["segment_image", "process_image"])
def test_a_file(tmp_path, cluster, way):
    source = tmp_path / "scan.tif"
    tifffile.imwrite(
        source,
        IMAGE,
        ome=True,
        metadata={"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )
    target = tmp_path / "scan.ome.zarr"
    to_ome_zarr(source, target, progress=False)
    aged(target)
    tile_process(target, threshold(), progress=False, **TILES)
    target.rename(tmp_path / "by the library")
    run = {"segmenter": "threshold", "cluster": cluster, **TILES}
    if way == "process_image":
        convert_image(source, target, cluster=cluster)
        check_without_labels(target, tmp_path / "by the library")
        aged(target)
        process_image(source, target, **run)
        check(target, tmp_path / "by the library")
        return
    # In one go: the fingerprint in the labels tells when the image was written.
    segment_image(source, **run)
    check_without_labels(target, tmp_path / "by the library")
    ours, theirs = (files_of(s / "labels") for s in (target, tmp_path / "by the library"))
    assert {k: v for k, v in ours.items() if k != "labels/zarr.json"} == {
        k: v for k, v in theirs.items() if k != "labels/zarr.json"
    }


def check_without_labels(ours: Path, theirs: Path) -> None:
    mine, others = (
        {name: held for name, held in files_of(store).items() if not name.startswith("labels/")}
        for store in (ours, theirs)
    )
    assert mine
    assert mine == others


def blocks(overlap: int) -> da.Array:
    """Label every block of the image for itself; with its halo if there is an overlap."""
    array = da.from_array(IMAGE, chunks=(10, 45, 35))
    if overlap:
        array = da.overlap.overlap(array, depth=overlap, boundary="none")
    return array.map_blocks(lambda block: ndimage.label(block > 1100)[0], dtype="i4")


@pytest.mark.parametrize("overlap", [0, 3])
def test_merge_of_a_dask_array(tmp_path, cluster, overlap):
    labels = blocks(overlap)
    merge_tile_labels(labels, tmp_path / "a.zarr", overlap=overlap, n_workers=1)
    report = merge_labels(labels, tmp_path / "b.zarr", overlap=overlap, cluster=cluster)
    check(tmp_path / "b.zarr", tmp_path / "a.zarr")
    assert report.n_objects == above_1100(IMAGE).max()


def test_merge_of_a_store(tmp_path, cluster):
    group = zarr.open_group(tmp_path / "tiles.zarr", mode="w")
    array = group.create_array("cells", shape=IMAGE.shape, chunks=(10, 45, 35), dtype="i4")
    array[...] = blocks(0).compute()
    options = {"input_component": "cells", "connectivity": 2, "pyramid_levels": 2}
    merge_tile_labels(tmp_path / "tiles.zarr", tmp_path / "a.zarr", n_workers=1, **options)
    merge_labels(tmp_path / "tiles.zarr", tmp_path / "b.zarr", cluster=cluster, **options)
    check(tmp_path / "b.zarr", tmp_path / "a.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_pyramid(tmp_path, cluster, zarr_format):
    stores = [tmp_path / by / "image.zarr" for by in ("library", "flow")]
    for store in stores:
        group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
        array = group.create_array("0", shape=IMAGE.shape, chunks=(10, 32, 32), dtype=IMAGE.dtype)
        array[...] = np.asarray(IMAGE)
    options = {"axes": "zyx", "n_levels": 3, "pixel_size": {"z": 2.0, "y": 0.5, "x": 0.5}}
    add_pyramid(stores[0], **options)
    report = build_pyramid(stores[1], cluster=cluster, **options)
    assert report.n_levels == 3
    check(stores[1], stores[0])
