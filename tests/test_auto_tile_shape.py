"""Tiles that are chosen by what this machine, its containers and its GPUs leave; and go on so."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks import auto_tile_shape, auto_tile_shape_cellpose, estimate_empty_tiles, tile_process
from patchworks.auto_tile_shape import GPU_BYTES_PER_VOXEL, GPU_SHARE
from patchworks.auto_tile_shape_cellpose import DIAMETERS
from patchworks.errors import ClientError, InputError, MemoryBudgetError
from patchworks.execution.machine import Memory
from patchworks.execution.work_place import dask_workers, processes_here, threads_here
from patchworks.memory import SHARE, fitted, memory_need
from patchworks.plan import RunOptions, plan_run
from patchworks.run_plan import open_stage
from tests.images import ome_zarr, smooth_noise
from tests.machines import GIB, pretend
from tests.nvml import FakeCard, FakeInstance, FakeNvml, cards
from tests.stores import components, counting, n_calls

MIB = 2**20


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return what puts this process on another machine."""
    n = iter(range(99))

    def put(**facts) -> None:
        pretend(tmp_path / f"machine{next(n)}", monkeypatch, **facts)

    return put


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """An image that has no voxels yet."""
    path = tmp_path_factory.mktemp("large") / "image.zarr"
    zarr.create_array(path, shape=(300, 6000, 6000), chunks=(16, 256, 256), dtype="u2")
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory


def plan_of(image: Path, **options):
    return plan_run(image, components, RunOptions(tile_shape="auto", write_to="l.zarr", **options))


@settings(max_examples=40, deadline=None)
@given(gib=st.floats(1.5, 900), n_cores=st.integers(1, 32), halo=st.integers(0, 40), data=st.data())
def test_a_run_with_chosen_tiles_fits_with_all_its_workers(
    folders, large, gib, n_cores, halo, data
):
    n_workers = data.draw(st.integers(1, n_cores))
    gib = max(gib, n_cores / 2)  # the last pass writes as many regions at a time
    with pytest.MonkeyPatch.context() as patch:
        pretend(folders.mktemp("m"), patch, gib=gib, n_cores=n_cores)
        memory = Memory.of_this_process()
        assert memory.available_bytes == int(gib * GIB)
        plan = plan_of(large, overlap=halo, place=threads_here(n_workers))
        made, n = fitted(plan, n_workers, memory, n_cores)
        assert n == n_workers
        need = memory_need(made, n, n_cores).more_bytes  # beside what the process holds
        assert need <= SHARE * memory.available_bytes


def test_the_same_machine_proposes_the_same_and_more_memory_no_smaller_tiles(machine, large):
    sizes = []
    for gib in (0.8, 1, 2, 4, 8, 16, 64, 256):
        machine(gib=gib, n_cores=4)
        first, again = (plan_of(large).spec.grid.tile_shape for _ in range(2))
        assert first == again
        assert all(t % c == 0 for t, c in zip(first, (16, 64, 64), strict=True))
        sizes.append(prod(first))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 8 * sizes[0]


def test_the_log_says_what_is_chosen_and_why_in_one_line(machine, large, caplog):
    machine(gib=2, n_cores=2)
    with caplog.at_level(logging.INFO, logger="patchworks"):
        tile = plan_of(large).spec.grid.tile_shape
    (line,) = [r.getMessage() for r in caplog.records if "auto" in r.getMessage()]
    assert f"tiles of {tile} voxels for 2 workers; limited by memory (2.0 GiB free)" in line


def test_the_free_memory_of_the_gpu_counts_and_of_several_the_least(machine, large):
    most = int(GPU_SHARE * GIB) // (GPU_BYTES_PER_VOXEL + 2)
    machine(gib=64, n_cores=8, gpus=[FakeCard("GPU-1", free=GIB)])
    one = auto_tile_shape((300, 6000, 6000), "u2", overlap=4, use_gpu=True)
    assert most / 3 < prod(one) <= most
    machine(gib=64, n_cores=8, gpus=cards(2, [30 * GIB, GIB]))
    assert auto_tile_shape((300, 6000, 6000), "u2", overlap=4, use_gpu=True) == one
    divided = FakeCard("GPU-1", free=30 * GIB, instances=[FakeInstance("MIG-1", free=GIB)])
    machine(gib=64, n_cores=8, gpus=[divided])
    assert auto_tile_shape((300, 6000, 6000), "u2", overlap=4, use_gpu=True) == one
    assert prod(auto_tile_shape((300, 6000, 6000), "u2", overlap=4, n_workers=1)) > 2 * prod(one)


def test_without_a_gpu_there_is_no_tile_for_one(monkeypatch):
    FakeNvml([]).install(monkeypatch)
    for ask in (auto_tile_shape, auto_tile_shape_cellpose):
        with pytest.raises(ClientError, match="use_gpu"):
            ask((300, 6000, 6000), "u2", use_gpu=True)


def test_memory_for_no_tile_is_an_error_before_anything_is_written(machine, tmp_path):
    image = ome_zarr(tmp_path / "i.zarr", smooth_noise())
    machine(gib=0.25, n_cores=2)
    with pytest.raises(MemoryBudgetError, match=r"memory \(0.2 GiB free\).*smaller overlap"):
        tile_process(image, components, tile_shape="auto", write_to=tmp_path / "l.zarr")
    assert not (tmp_path / "l.zarr").exists()


def test_a_budget_that_holds_no_voxel_column_is_refused_and_named():
    with pytest.raises(MemoryBudgetError, match="100 bytes for 8 workers"):
        auto_tile_shape((64, 64), "uint16", budget_bytes=100, n_workers=8)


BAD = {
    "five axes": ({"shape": (2, 2, 64, 64, 64)}, "5 axes"),
    "one axis": ({"shape": (64,)}, "shape="),
    "no voxel": ({"shape": (0, 64)}, "shape=0"),
    "no shape": ({"shape": "64"}, "shape='64'"),
    "no dtype": ({"dtype": "nothing"}, "dtype='nothing'"),
    "a budget of nothing": ({"budget_bytes": 0}, "budget_bytes=0"),
    "no worker": ({"n_workers": 0}, "n_workers=0"),
    "a negative overlap": ({"overlap": -1}, "overlap=-1"),
    "an overlap that is no number": ({"overlap": float("nan")}, "overlap=nan"),
    "chunks of another rank": ({"chunks": (64, 64, 64)}, "chunks=.*expected 2"),
    "spacing of nothing": ({"spacing": (0.0, 1.0)}, "spacing=.*above 0"),
    "spacing of another rank": ({"spacing": (1.0,)}, "spacing=.*expected 2"),
    "a negative need": ({"bytes_per_voxel": -1}, "bytes_per_voxel=-1"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_and_named(bad):
    given_bad, message = BAD[bad]
    keywords = {"shape": (64, 64), "dtype": "u2", **given_bad}
    with pytest.raises(InputError, match=message):
        auto_tile_shape(keywords.pop("shape"), keywords.pop("dtype"), **keywords)


def test_an_image_of_five_axes_is_refused_with_a_way_out(tmp_path):
    image = np.zeros((1, 2, 8, 32, 32), "u2")
    with pytest.raises(InputError, match=r"5 axes.*tile_shape= with 5 numbers"):
        tile_process(image, components, tile_shape="auto", write_to=tmp_path / "l.zarr")
    assert not (tmp_path / "l.zarr").exists()


def test_tiles_extend_along_axes_of_space_alone(machine):
    machine(gib=16, n_cores=2)
    series = np.broadcast_to(smooth_noise((8, 40, 40)), (3, 8, 40, 40))
    assert plan_of(np.ascontiguousarray(series)).spec.grid.tile_shape == (1, 8, 40, 40)
    assert auto_tile_shape(series.shape, "u2") == (1, 8, 40, 40)


def test_voxel_sizes_of_the_image_count(machine, tmp_path):
    machine(gib=0.7, n_cores=1)
    group = ome_zarr(tmp_path / "i.zarr", np.zeros((4, 4, 4), "u2"))  # 2.0, 0.5, 0.5 micrometers
    zarr.create_array(
        group / "0", shape=(999, 999, 999), chunks=(8, 8, 8), dtype="u2", overwrite=True
    )
    z, y, x = plan_of(group, overlap=1).spec.grid.tile_shape
    assert 2.5 < y / z < 6
    assert 0.6 < y / x < 1.6


def test_shards_are_seen_and_kept_whole_where_they_fit(machine, tmp_path):
    machine(gib=8, n_cores=1)
    path = tmp_path / "i.zarr"
    zarr.create_array(
        path, shape=(640, 2000, 2000), chunks=(16, 32, 32), shards=(64, 96, 96), dtype="u1"
    )
    tile = plan_of(path).spec.grid.tile_shape
    assert all(t % s == 0 for t, s in zip(tile, (64, 96, 96), strict=True))


def test_empty_tiles_are_estimated_for_chosen_tiles_too(machine):
    machine(gib=8, n_cores=2)
    assert estimate_empty_tiles(smooth_noise(), "auto", threshold=0)["n_tiles"] == 1


def test_workers_in_processes_share_the_memory_and_those_of_dask_have_their_own(machine):
    machine(gib=8, n_cores=4)
    assert threads_here().n_workers == 4
    assert processes_here(4).memory_bytes == 2 * GIB
    workers = [{"memory_limit": GIB, "nthreads": 2}, {"memory_limit": 3 * GIB, "nthreads": 1}]
    place = dask_workers(workers)
    assert (place.n_processes, place.n_batches, place.memory_bytes) == (2, 2, GIB)
    assert dask_workers(workers, is_one_at_a_time=True).n_batches == 1
    unlimited = dask_workers([{"memory_limit": 0, "nthreads": 1}] * 2)
    assert unlimited.memory_bytes == 4 * GIB


class Stop(Exception):
    """Ends a run on purpose."""


class FailsOnce:
    """Components, but for the tile after `n` of them."""

    def __init__(self, calls: Path, mark: Path, n: int) -> None:
        self.calls, self.mark, self.n = calls, mark, n

    def __call__(self, tile):
        if self.mark.exists() and n_calls(self.calls) >= self.n:
            raise Stop
        return counting(self.calls)(tile)

    def __reduce__(self):
        return FailsOnce, (self.calls, self.mark, self.n)


def test_an_interrupted_run_goes_on_with_its_tiles_whatever_is_free_by_then(machine, tmp_path):
    image = tmp_path / "i.zarr"
    noise = smooth_noise((64, 224, 224))
    zarr.create_array(image, data=noise, chunks=(16, 32, 32))
    calls, mark = tmp_path / "calls", tmp_path / "fails"
    mark.touch()
    fn = FailsOnce(calls, mark, 3)
    run = {"tile_shape": "auto", "write_to": tmp_path / "l.zarr", "max_workers": 1, "overlap": 4,
           "progress": False}  # fmt: skip
    machine(gib=0.35, n_cores=1)
    few = plan_run(image, fn, RunOptions(tile_shape="auto", write_to=run["write_to"], overlap=4))
    n_tiles = few.spec.grid.n_tiles
    assert n_tiles >= 8
    with pytest.raises(Exception, match="Stop"):
        tile_process(image, fn, **run)
    n_before = n_calls(calls)
    assert 0 < n_before < n_tiles
    mark.unlink()
    machine(gib=64, n_cores=1)
    labels = tile_process(image, fn, **run)
    assert n_calls(calls) == n_tiles  # nothing twice, nothing left out, and no other tiles
    assert int(labels.max().compute()) > 0
    finished = (tmp_path / "l.zarr").stat().st_mtime_ns
    machine(gib=16, n_cores=1)
    again = plan_run(image, fn, RunOptions(tile_shape="auto", write_to=run["write_to"], overlap=4))
    assert again.fingerprint == few.fingerprint
    tile_process(image, fn, **run)
    assert n_calls(calls) == n_tiles
    assert (tmp_path / "l.zarr").stat().st_mtime_ns == finished
    # Another run is another: it takes what fits now.
    other = plan_run(image, fn, RunOptions(tile_shape="auto", write_to=tmp_path / "m.zarr"))
    assert other.spec.grid.n_tiles < n_tiles


def test_tiles_of_another_run_are_not_taken(machine, tmp_path):
    image = tmp_path / "i.zarr"
    zarr.create_array(image, data=smooth_noise((64, 200, 200)), chunks=(16, 32, 32))
    machine(gib=64, n_cores=1)
    options = RunOptions(tile_shape=(16, 64, 64), write_to=tmp_path / "l.zarr", overlap=4)
    open_stage(plan_run(image, components, options))
    auto = replace(options, tile_shape="auto", overwrite=True)
    assert plan_run(image, components, auto).spec.grid.tile_shape == (16, 64, 64)
    changed = replace(auto, overlap=5)
    assert plan_run(image, components, changed).spec.grid.tile_shape != (16, 64, 64)
    assert plan_run(image, np.zeros_like, auto).spec.grid.tile_shape != (16, 64, 64)


def test_a_damaged_record_of_a_stage_is_no_tile_shape(machine, tmp_path):
    machine(gib=64, n_cores=1)
    image = ome_zarr(tmp_path / "i.zarr", smooth_noise())
    for n, content in enumerate(["", "[]", '{"tile_shape": 3}', '{"tile_shape": [0, "a"]}']):
        stage = tmp_path / "l.zarr.stage" / f"{n}"
        stage.mkdir(parents=True)
        (stage / "run.json").write_text(content)
    (tmp_path / "l.zarr.stage" / "file").write_text("not a folder")
    options = RunOptions(tile_shape="auto", write_to=tmp_path / "l.zarr")
    assert plan_run(image, components, options).spec.grid.n_tiles == 1


def test_cellpose_tiles_are_many_objects_wide_and_one_plane_thick(machine):
    machine(gib=32, n_cores=8, gpus=[FakeCard("GPU-1", free=8 * GIB)])
    shape = (100, 8000, 8000)
    for diameter in (15, 30, 60, 200):
        z, y, x = auto_tile_shape_cellpose(shape, "u2", diameter, False, True)
        assert z == 1
        assert min(y, x) >= DIAMETERS * diameter
    z, y, x = auto_tile_shape_cellpose(shape, "u2", 30, True, False)
    assert z == 100
    assert min(y, x) >= DIAMETERS * 30


def test_cellpose_tiles_count_a_gpu_unless_told_if_there_is_one(machine, monkeypatch):
    def tiles(*use_gpu):
        return auto_tile_shape_cellpose((900,) * 3, "u2", 30, True, *use_gpu)

    machine(gib=512, n_cores=8, gpus=[FakeCard("GPU-1", free=GIB)])
    assert tiles() == tiles(True)
    assert prod(tiles(True)) < prod(tiles(False))
    machine(gib=512, n_cores=8)
    assert tiles() == tiles(False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert tiles() == tiles(False)


def test_smaller_objects_and_smaller_gpus_make_smaller_cellpose_tiles(machine):
    machine(gib=8, n_cores=8)
    ram = [prod(auto_tile_shape_cellpose((900,) * 3, "u2", d, True, False)) for d in (8, 15, 30)]
    assert ram == sorted(ram)
    assert ram[0] < ram[-1]
    vram = []
    for free in (GIB, 4 * GIB, 8 * GIB):
        machine(gib=512, n_cores=8, gpus=[FakeCard("GPU-1", free=free)])
        vram.append(prod(auto_tile_shape_cellpose((900,) * 3, "u2", 30, True, True)))
    assert vram == sorted(vram)
    assert vram[0] < vram[-1]


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((64, 64), {"do_3D": True}),
        ((1, 2, 3, 64, 64), {}),
        ((64, 64, 64), {"diameter": 0}),
        ((64, 64, 64), {"diameter": -3.0}),
        ((64, 64, 64), {"diameter": float("nan")}),
        ((64, 64, 64), {"diameter": "30"}),
        ((64, 64, 64), {"diameter": True}),
    ],
)
def test_bad_input_for_cellpose_tiles_is_refused(shape, more):
    with pytest.raises(InputError, match=r"diameter|expected"):
        auto_tile_shape_cellpose(shape, "u2", use_gpu=False, **more)


CHILD = """
import re, sys
from pathlib import Path
import pytest
from tests.machines import pretend
from tests.stores import components
from patchworks import tile_process

patch = pytest.MonkeyPatch()
pretend(Path(sys.argv[3]), patch, gib=float(sys.argv[4]), n_cores=2)
tile_process(sys.argv[1], components, tile_shape="auto", overlap=8, write_to=sys.argv[2],
             engine="threads", progress=False)
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("gib", [0.75, 1.0, 1.5])
def test_the_measured_peak_with_chosen_tiles_stays_within_the_container(tmp_path, gib):
    array = zarr.create_array(
        tmp_path / "i.zarr", shape=(256, 1024, 1024), chunks=(32, 128, 128), dtype="u2"
    )
    part = smooth_noise((64, 256, 256))
    for z in range(0, 256, 64):
        array[z : z + 64] = np.tile(part, (1, 4, 4))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, (tmp_path / "i.zarr", tmp_path / "l.zarr",
                                                 tmp_path / "machine", gib))],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    peak = int(child.stdout)
    print(f"{gib} GiB: peak {peak / GIB:.2f} GiB")
    assert peak <= SHARE * gib * GIB
