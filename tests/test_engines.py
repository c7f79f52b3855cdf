"""Threads or worker processes: the same bytes, and the same errors."""

from __future__ import annotations

import threading

import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

from patchworks import make_local_cluster, tile_process
from patchworks.errors import ClientError, InputError, SegmenterError
from tests.stores import blobs, components, contents, counting, n_calls, ome_zarr

IMAGE = blobs((30, 90, 70))
KEYWORDS = {"tile_shape": (15, 32, 32), "overlap": 4, "progress": False, "pyramid_levels": 3}
N_TILES = 18


@pytest.fixture(scope="module")
def cluster():
    client, cluster = make_local_cluster(n_workers=2)
    yield client
    client.close()
    cluster.close()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    place = tmp_path_factory.mktemp("expected") / "labels.zarr"
    tile_process(store_of(place.parent), components, write_to=place, max_workers=1, **KEYWORDS)
    return contents(place)


def store_of(folder):
    return ome_zarr(folder / "image.zarr", [IMAGE], chunks=(15, 32, 32))


def levels(found):
    """The voxels of every level; the metadata name the run, which knows its image."""
    return {name: held for name, held in found.items() if "/c/" in name}


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_threads_write_the_same_bytes(tmp_path, expected, n_workers):
    place = tmp_path / "labels.zarr"
    tile_process(store_of(tmp_path), components, write_to=place, max_workers=n_workers, **KEYWORDS)
    assert levels(contents(place)) == levels(expected)


INPUTS = {
    "store": store_of,
    "zarr array": lambda tmp: zarr.open_group(store_of(tmp), mode="r")["0"],
    "zarr array in memory": lambda tmp: zarr.create_array(
        zarr.storage.MemoryStore(), data=IMAGE, chunks=(15, 32, 32)
    ),
    "numpy": lambda tmp: IMAGE,
    "dask": lambda tmp: da.from_array(IMAGE, chunks=(30, 50, 70)),
    "lazy dask": lambda tmp: da.from_array(IMAGE, chunks=(30, 50, 70)) + 0,
}


@pytest.mark.parametrize("kind", INPUTS)
def test_worker_processes_write_the_same_bytes_whatever_the_input(
    tmp_path, cluster, expected, kind
):
    place, calls = tmp_path / "labels.zarr", tmp_path / "calls"
    tile_process(INPUTS[kind](tmp_path), counting(calls), write_to=place, **KEYWORDS)
    assert n_calls(calls) == N_TILES
    assert levels(contents(place)) == levels(expected)


def test_a_run_that_threads_began_is_finished_by_worker_processes(tmp_path, cluster, expected):
    place, calls, broken = tmp_path / "labels.zarr", tmp_path / "calls", tmp_path / "broken"
    store = store_of(tmp_path)
    count = counting(calls)
    broken.touch()

    def reads_a_file(tile):
        if broken.exists() and n_calls(calls) >= 5:
            raise ValueError("not yet")
        return count(tile)

    with pytest.raises(SegmenterError):
        tile_process(store, reads_a_file, write_to=place, **KEYWORDS)
    broken.unlink()
    tile_process(store, reads_a_file, write_to=place, **KEYWORDS)
    assert n_calls(calls) == N_TILES
    assert levels(contents(place)) == levels(expected)


def test_each_chunk_of_a_dask_array_is_computed_once_by_worker_processes(tmp_path, cluster):
    count = counting(tmp_path / "chunks", lambda block: block)
    lazy = da.from_array(IMAGE, chunks=((7, 23), (60, 30), (1, 9, 60))).map_blocks(
        count, dtype="u1", meta=np.empty((0, 0, 0), "u1")
    )
    tile_process(lazy, components, **KEYWORDS)
    assert n_calls(tmp_path / "chunks") == 12


def test_labels_without_write_to_are_readable_by_worker_processes(cluster):
    labels = tile_process(IMAGE, components, **KEYWORDS)
    assert labels.max().compute() == len(np.unique(labels.compute())) - 1


def test_an_error_in_a_worker_process_names_the_tile(cluster):
    def breaks(tile):
        raise ValueError("no model")

    with pytest.raises(SegmenterError, match=r"tile \d+ at \(\d+, \d+, \d+\).*breaks.*no model"):
        tile_process(IMAGE, breaks, **KEYWORDS)


def test_a_function_that_cannot_be_sent_is_refused_before_any_work(tmp_path, cluster):
    lock = threading.Lock()

    def locks(tile):
        with lock:
            return components(tile)

    with pytest.raises(InputError, match=r"locks' cannot be sent to worker processes .*lock"):
        tile_process(IMAGE, locks, write_to=tmp_path / "labels.zarr", **KEYWORDS)
    assert not list(tmp_path.iterdir())


class TwoPartError(Exception):
    """As many are: made from two values, so that unpickling it from its message fails."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_an_error_that_cannot_be_pickled_still_names_the_tile(request, where):
    if where == "processes":
        request.getfixturevalue("cluster")

    def breaks(tile):
        raise TwoPartError(7, "no model")

    with pytest.raises(SegmenterError, match=r"tile \d+ at .*no model"):
        tile_process(IMAGE, breaks, **KEYWORDS)


def test_an_error_that_holds_a_lock_still_names_the_tile(cluster):
    def breaks(tile):
        import threading

        error = ValueError("no model")
        error.lock = threading.Lock()
        raise error

    with pytest.raises(SegmenterError, match=r"tile \d+ at .*no model"):
        tile_process(IMAGE, breaks, **KEYWORDS)


def test_a_function_that_kills_its_worker_is_told(tmp_path, cluster):
    def dies(tile):
        import os

        os._exit(1)

    with pytest.raises(ClientError, match="died"):
        tile_process(IMAGE, dies, write_to=tmp_path / "labels.zarr", **KEYWORDS)


def test_an_in_process_client_is_refused_before_anything_is_written(tmp_path, cluster):
    store = store_of(tmp_path)
    before = contents(tmp_path)
    quiet = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    with (
        LocalCluster(processes=False, n_workers=1, **quiet) as local,
        Client(local),
        pytest.raises(ClientError, match=r"processes=False.*make_local_cluster"),
    ):
        tile_process(store, components, **KEYWORDS)
    assert contents(tmp_path) == before


def reads_ahead(tile):
    """Fail unless other threads read and write for this one."""
    names = [thread.name for thread in threading.enumerate()]
    assert any(name.startswith("patchworks-io") for name in names), names
    return components(tile)


def test_dask_workers_read_ahead_and_write_behind(tmp_path, cluster, expected):
    place = tmp_path / "labels.zarr"
    tile_process(store_of(tmp_path), reads_ahead, write_to=place, **KEYWORDS)
    assert levels(contents(place)) == levels(expected)
