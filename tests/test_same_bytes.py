"""The same label image, byte by byte, whatever runs the tiles."""

import dask.array as da
import numpy as np
import pytest
import zarr

from patchworks import make_local_cluster, merge_tile_labels, tile_process
from patchworks.errors import InputError, SegmenterError
from tests.images import above_1100, files_of, ome_zarr, smooth_noise

IMAGE = smooth_noise()
RUN = {"tile_shape": (10, 32, 32), "overlap": 4, "progress": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ome_zarr(tmp_path_factory.mktemp("image") / "image.zarr", IMAGE)


@pytest.fixture(scope="module")
def expected(store, tmp_path_factory):
    target = tmp_path_factory.mktemp("expected") / "o.zarr"
    tile_process(store, above_1100, max_workers=1, write_to=target, **RUN)
    return files_of(target)


@pytest.fixture(scope="module")
def workers():
    client, cluster = make_local_cluster(n_workers=2)
    yield client
    client.close()
    cluster.close()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_any_number_of_threads(store, expected, tmp_path, n):
    tile_process(store, above_1100, max_workers=n, write_to=tmp_path / "o.zarr", **RUN)
    assert files_of(tmp_path / "o.zarr") == expected


def test_any_order_of_tiles(store, expected, tmp_path, monkeypatch):
    from patchworks.execution.executor import ThreadExecutor

    in_order = ThreadExecutor.map

    def reversed_order(self, fn, batches):
        return in_order(self, fn, list(reversed(batches)))

    monkeypatch.setattr(ThreadExecutor, "map", reversed_order)
    tile_process(store, above_1100, max_workers=1, write_to=tmp_path / "o.zarr", **RUN)
    assert files_of(tmp_path / "o.zarr") == expected


def test_worker_processes(store, expected, tmp_path, workers):
    tile_process(store, above_1100, write_to=tmp_path / "o.zarr", **RUN)
    assert files_of(tmp_path / "o.zarr") == expected


def test_worker_processes_after_a_failure(store, expected, tmp_path, workers):
    flag = tmp_path / "healed"

    def segment(tile: np.ndarray) -> np.ndarray:
        if tile.shape[0] == 14 and not flag.exists():
            raise RuntimeError("not yet")
        return above_1100(tile)

    run = {**RUN, "write_to": tmp_path / "o.zarr"}
    with pytest.raises(
        SegmenterError, match=r"tile \d+ at .*segment.* raised RuntimeError: not yet"
    ):
        tile_process(store, segment, **run)
    flag.touch()
    tile_process(store, segment, **run)
    ours = files_of(tmp_path / "o.zarr")
    assert {k: v for k, v in ours.items() if k != "zarr.json"} == {
        k: v for k, v in expected.items() if k != "zarr.json"
    }


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: IMAGE, id="NumPy"),
        pytest.param(lambda: da.from_array(IMAGE, chunks=(10, 32, 32)), id="Dask"),
        pytest.param(
            lambda: zarr.create_array(zarr.storage.MemoryStore(), data=IMAGE, chunks=(8, 32, 32)),
            id="zarr in memory",
        ),
    ],
)
def test_arrays_of_this_process_reach_worker_processes(expected, tmp_path, workers, make):
    tile_process(make(), above_1100, write_to=tmp_path / "o.zarr", **RUN)
    ours = files_of(tmp_path / "o.zarr")
    assert {k: v for k, v in ours.items() if not k.endswith("zarr.json")} == {
        k: v for k, v in expected.items() if not k.endswith("zarr.json")
    }


def test_a_target_in_memory_is_refused_with_worker_processes(store, workers):
    with pytest.raises(InputError, match="memory of this process"):
        tile_process(store, above_1100, write_to="memory://bucket/o.zarr", **RUN)


def test_merging_by_worker_processes(tmp_path, workers):
    blocks = da.from_array(IMAGE, chunks=(12, 40, 40)).map_blocks(above_1100, dtype="int64")
    merged = merge_tile_labels(blocks, tmp_path / "o.zarr")
    assert merged.max().compute() == above_1100(IMAGE).max()
