"""Threads or worker processes: the same bytes, whatever the source, and the same errors."""

from __future__ import annotations

from unittest import mock

import dask.array as da
import fsspec
import pytest
import tifffile
import zarr
from distributed import Client, LocalCluster

from patchworks import make_local_cluster
from patchworks.conversion import regions
from patchworks.conversion.plan import ConversionOptions, plan_conversion
from patchworks.errors import ClientError, ImageReadError, InputError, TargetNotWritableError
from patchworks.geometry import image_pyramid, pyramid
from patchworks.plugins.ome_zarr import to_ome_zarr
from tests.conversion.small_files import SIZES, STACK, WRITERS, damage, write_lif, write_tiff
from tests.conversion.written import check_pyramid, leftovers
from tests.stores import contents, ome_zarr

OPTIONS = {"n_levels": 4, "chunks": (8, 64, 64), "progress": False}


@pytest.fixture(autouse=True, scope="module")
def small_regions():
    """Regions so small that a small image has a dozen, and levels with passes of their own."""
    with (
        mock.patch.object(image_pyramid, "REGION_BYTES", 2**18),
        mock.patch.object(pyramid, "MIN_FUSED_CHUNK", 32),
    ):
        yield


@pytest.fixture(scope="module")
def client():
    """A client of worker processes; active where a test asks for it."""
    client, cluster = make_local_cluster(n_workers=2)
    with client.as_current():
        yield client
    client.close()
    cluster.close()


def store_of(path):
    ome_zarr(path, [STACK], chunks=(5, 50, 70), scale=tuple(SIZES.values()))
    return path


SOURCES = {**WRITERS, ".zarr": store_of}


@pytest.fixture(scope="module", params=SOURCES)
def source(request, tmp_path_factory):
    """A file, and what one thread makes of it."""
    folder = tmp_path_factory.mktemp("source")
    path = SOURCES[request.param](folder / f"scan{request.param}")
    with threads_only():
        to_ome_zarr(path, folder / "out" / "image.ome.zarr", max_workers=1, **OPTIONS)
    return path, contents(folder / "out" / "image.ome.zarr")


def threads_only():
    """Hide the active client."""
    return mock.patch("patchworks.conversion.run.active_client", return_value=None)


def test_one_thread_makes_what_is_right(source):
    path, _ = source
    target = path.parent / "out" / "image.ome.zarr"
    shape = zarr.open_group(target)["0"].shape
    check_pyramid(target, STACK[tuple(map(slice, shape))], 2)


@pytest.mark.parametrize("n_threads", [2, 4])
def test_threads_write_the_same_bytes(tmp_path, source, n_threads):
    path, expected = source
    with threads_only():
        to_ome_zarr(path, tmp_path / "image.ome.zarr", max_workers=n_threads, **OPTIONS)
    assert contents(tmp_path / "image.ome.zarr") == expected


def test_worker_processes_write_the_same_bytes(tmp_path, source, client):
    path, expected = source
    no_threads = mock.patch("patchworks.conversion.run.ThreadExecutor", side_effect=AssertionError)
    with no_threads:
        to_ome_zarr(path, tmp_path / "image.ome.zarr", **OPTIONS)
    assert contents(tmp_path / "image.ome.zarr") == expected
    assert leftovers(tmp_path) == []


def test_worker_processes_write_all_images_of_a_file(tmp_path, client):
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for voxels in (STACK[:3], STACK[3:8, :100]):
            file.write(voxels, tile=(64, 64), metadata={"axes": "ZYX"})
    to_ome_zarr(path, tmp_path / "all.zarr", scene="all", **OPTIONS)
    with threads_only():
        to_ome_zarr(path, tmp_path / "again" / "all.zarr", scene="all", **OPTIONS)
    assert contents(tmp_path / "all.zarr") == contents(tmp_path / "again" / "all.zarr")
    assert leftovers(tmp_path) == []


def test_what_worker_processes_began_is_finished_by_threads(tmp_path, client):
    """And nothing is read twice: what was read is damaged meanwhile."""
    path = write_tiff(tmp_path / "scan.tif")
    whole = path.read_bytes()
    with threads_only():
        to_ome_zarr(path, tmp_path / "expected" / "image.ome.zarr", **OPTIONS)
    target, stamp = tmp_path / "image.ome.zarr", path.stat().st_mtime_ns
    damage(path, tile=-1, stamp=stamp)
    with pytest.raises(ImageReadError, match=r"scan\.tif") as caught:
        to_ome_zarr(path, target, **OPTIONS)
    assert "goes on from there" in caught.value.__notes__[0]
    assert not target.exists()
    path.write_bytes(whole)
    damage(path, tile=0, stamp=stamp)
    with threads_only():
        to_ome_zarr(path, target, **OPTIONS)
    assert contents(target) == contents(tmp_path / "expected" / "image.ome.zarr")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr in memory"])
def test_arrays_of_this_process_are_converted_beside_a_client(tmp_path, client, kind):
    array = {
        "numpy": lambda: STACK,
        "dask": lambda: da.from_array(STACK, chunks=(7, 90, 260)) + 0,
        "zarr in memory": lambda: zarr.create_array(
            zarr.storage.MemoryStore(), data=STACK, chunks=(8, 64, 64)
        ),
    }[kind]()
    to_ome_zarr(array, tmp_path / "image.ome.zarr", **OPTIONS)
    check_pyramid(tmp_path / "image.ome.zarr", STACK, 2)


def test_a_target_in_memory_is_refused_where_workers_would_write_it(tmp_path, client):
    path = write_tiff(tmp_path / "scan.tif")
    with pytest.raises(InputError, match=r"scan\.tif to memory://image\.zarr.*other processes"):
        to_ome_zarr(path, "memory://image.zarr", **OPTIONS)
    assert not fsspec.filesystem("memory").exists("/image.zarr")
    assert not fsspec.filesystem("memory").glob("/.image.zarr*")


def test_an_in_process_client_is_refused_before_anything_is_written(tmp_path):
    path = write_lif(tmp_path / "scan.lif")
    quiet = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    with (
        LocalCluster(processes=False, n_workers=1, **quiet) as local,
        Client(local) as client,
        client.as_current(),
    ):
        before = contents(tmp_path)
        with pytest.raises(ClientError, match=r"processes=False.*make_local_cluster"):
            to_ome_zarr(path, tmp_path / "image.ome.zarr", **OPTIONS)
        assert contents(tmp_path) == before
        # An array is this process's own: its workers are not asked.
        to_ome_zarr(STACK, tmp_path / "array.ome.zarr", **OPTIONS)
    check_pyramid(tmp_path / "array.ome.zarr", STACK, 2)


def test_a_worker_that_outlives_its_try_can_mark_nothing_of_the_next(tmp_path):
    """What it writes after an interruption may be removed again by the try that goes on."""
    target, options = tmp_path / "image.ome.zarr", ConversionOptions(chunks=(8, 64, 64))
    first, second = [plan_conversion(STACK, target, options) for _ in range(2)]
    regions.begin(first)
    regions.write_regions(first, 0, [0])
    regions.begin(second)
    with pytest.raises(TargetNotWritableError):
        regions.write_regions(first, 0, [1])
    assert regions.todo(second, 0) == list(range(1, second.pyramid.regions().n_tiles))
    to_ome_zarr(STACK, target, chunks=(8, 64, 64), progress=False)
    check_pyramid(target, STACK, 2)
    assert leftovers(tmp_path) == []
