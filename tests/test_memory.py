"""What a run needs of memory is known before it, fits what there is, and is not exceeded."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from patchworks.errors import MemoryBudgetError
from patchworks.execution import machine
from patchworks.execution.machine import Memory
from patchworks.memory import SHARE, fitted, memory_need
from patchworks.plan import RunOptions, plan_run
from tests.benchmarks import projection
from tests.stores import components

ROOT = Path(__file__).parents[1]
GIB = 2**30


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    zarr.create_array(folder / "i.zarr", shape=(256, 4096, 4096), chunks=(32, 256, 256), dtype="u2")
    options = RunOptions(tile_shape=(64, 512, 512), overlap=16, write_to=folder / "l.zarr")
    return plan_run(folder / "i.zarr", components, options)


@given(n_workers=st.integers(1, 64), gib=st.floats(0.1, 600))
def test_a_run_is_made_to_fit_or_refused(plan, n_workers, gib):
    memory = Memory(int(2 * gib * GIB), int(gib * GIB))
    least = memory_need(replace(plan, kept_bytes=0, n_ahead=1), 1, 4)
    if least.projected_bytes > memory.limit_bytes:
        with pytest.raises(MemoryBudgetError, match="tile_shape="):
            fitted(plan, n_workers, memory, 4)
        return
    made, n = fitted(plan, n_workers, memory, 4)
    assert 1 <= n <= n_workers
    need = memory_need(made, n, 4)
    fits = need.more_bytes <= SHARE * memory.available_bytes
    assert fits or (n == 1 and need.projected_bytes <= memory.limit_bytes)
    assert need.more_bytes <= memory_need(plan, n_workers, 4).more_bytes
    assert (made.fingerprint, made.tiles_fingerprint) == (plan.fingerprint, plan.tiles_fingerprint)


def test_with_memory_enough_nothing_is_cut(plan):
    made, n = fitted(plan, 8, Memory(900 * GIB, 800 * GIB), 8)
    assert (made, n) == (plan, 8)


def test_less_is_kept_before_workers_stand_idle(plan):
    full = memory_need(plan, 8, 8).more_bytes
    made, n = fitted(plan, 8, Memory(900 * GIB, int(0.97 * full / SHARE)), 8)
    assert n == 8
    assert made.kept_bytes < plan.kept_bytes


GROUPS = {
    "the group itself": {"a/b": ("600", "100", 20)},
    "the group around it": {"a": ("600", "100", 20), "a/b": ("max", "90", 10)},
    "the outermost": {"": ("600", "100", 20)},
}


@pytest.mark.parametrize("files", GROUPS.values(), ids=GROUPS)
def test_limits_of_all_control_groups_around_the_process_count(tmp_path, monkeypatch, files):
    for group, (limit, used, cached) in files.items():
        folder = tmp_path / "fs" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(used + "\n")
        (folder / "memory.stat").write_text(f"anon 70\ninactive_file {cached}\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    assert Memory.of_this_process() == Memory(600, 600 - 100 + 20)


def test_without_control_groups_the_machine_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "none")
    found = Memory.of_this_process()
    assert 0 < found.available_bytes <= found.limit_bytes


QUOTAS = {
    "the group itself": {"fs/cpu.max": "max 100000", "fs/a/b/cpu.max": "300000 100000"},
    "the group around it": {"fs/a/cpu.max": "350000 100000", "fs/a/b/cpu.max": "max 100000"},
    "the container's": {"fs/cpu.max": "300000 100000"},
    "cgroup 1": {"fs/cpu/cpu.cfs_quota_us": "300000", "fs/cpu/cpu.cfs_period_us": "100000"},
}


@pytest.mark.parametrize("files", QUOTAS.values(), ids=QUOTAS)
def test_quotas_of_all_control_groups_around_the_process_count(tmp_path, monkeypatch, files, plan):
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    assert machine.available_cores() == 32
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    assert machine.available_cores() == 3
    assert replace(plan).reader.n_threads == 3


@pytest.mark.parametrize("quota", ["max", "50000"])
def test_there_is_a_core_at_least(tmp_path, monkeypatch, quota):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
    assert machine.available_cores() == 1


POOLS = """
import re, sys, threading
from patchworks.execution.machine import limit_pools

if sys.argv[1] == "limited":
    limit_pools()
ready = threading.Barrier(33)

def hold():
    held = bytearray(100_000)
    ready.wait()
    ready.wait()

threads = [threading.Thread(target=hold) for _ in range(32)]
for thread in threads:
    thread.start()
ready.wait()
# Each pool of glibc's is mapped as 64 MiB, aligned to as much, of which the beginning is in use.
maps = re.findall(r"^([0-9a-f]+)-[0-9a-f]+ rw-p 0+ 00:00 0", open("/proc/self/maps").read(), re.M)
print(sum(int(start, 16) % 2**26 == 0 for start in maps))
ready.wait()
"""


def pools_of_32_threads(how: str, **more: str) -> int:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", **more}
    child = [sys.executable, "-c", POOLS, how]
    return int(subprocess.check_output(child, env=env, text=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_share_few_pools_of_the_allocator():
    as_it_is = pools_of_32_threads("free")
    if as_it_is < 8:
        pytest.skip("this allocator is not glibc's")
    assert pools_of_32_threads("limited") <= 2
    assert pools_of_32_threads("limited", MALLOC_ARENA_MAX="6") in (5, 6)


def test_the_limit_of_a_dask_worker_counts():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, memory_limit=2**30, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        found = client.submit(Memory.of_this_process).result()
    assert found.limit_bytes == 2**30
    assert 0 < found.available_bytes < 2**30


CHILD = """
import json, re, sys
import logging
from scipy import ndimage
from patchworks.execution.executor import ThreadExecutor
from patchworks.plan import RunOptions, plan_run
from patchworks.run_plan import run_plan

def label(tile):
    return ndimage.label(tile > 400)[0]

options = RunOptions(tile_shape=(32, 256, 256), overlap=8, write_to=sys.argv[2])
report = run_plan(plan_run(sys.argv[1], label, options), ThreadExecutor(2), progress=False)
# Not ru_maxrss: that begins with what the process was forked from.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps([peak, report.projected_bytes]))
"""


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def noisy_image(path: Path, depth: int) -> Path:
    array = zarr.create_array(path, shape=(depth, 1024, 1024), chunks=(32, 128, 128), dtype="u2")
    noise = np.random.default_rng(0).normal(0, 1, (32, 256, 256))
    part = (200 + 4000 * ndimage.gaussian_filter(noise, 3, mode="wrap")).clip(0, 9999)
    for z in range(0, depth, 32):
        array[z : z + 32] = np.tile(part, (1, 4, 4)).astype("u2")
    return path


def peak_and_projection(folder: Path, depth: int) -> tuple[int, int]:
    image, labels = folder / f"{depth}.zarr", folder / "labels.zarr"
    if not image.exists():
        noisy_image(image, depth)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(image), str(labels)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(labels)
    peak, projected = json.loads(child.stdout)
    return peak, projected


@linux_only
def test_the_measured_peak_stays_below_the_projection(tmp_path):
    peak, projected = peak_and_projection(tmp_path, 64)
    print(f"peak {peak / 2**20:.0f} MiB, projected {projected / 2**20:.0f} MiB")
    assert projected / 4 < peak <= projected


@linux_only
@pytest.mark.slow
def test_a_larger_image_takes_no_more_memory(tmp_path):
    found: dict[int, list[int]] = {192: [], 1536: []}
    for _ in range(3):  # how many tiles are under way at a time, at most, is chance
        for depth, peaks in found.items():
            peak, projected = peak_and_projection(tmp_path, depth)
            assert peak <= projected
            peaks.append(peak)
    print(found)
    small, large = map(statistics.median, found.values())
    assert large < 1.1 * small


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("name", projection.FUNCTIONS)
def test_what_a_probe_projects_is_what_a_run_takes(tmp_path, name):
    image = noisy_image(tmp_path / "image.zarr", 128)
    found = projection.measured_apart(str(image), name)
    print({k: v / 2**20 if k in ("projected", "peak") else v for k, v in found.items()})
    assert 0.8 <= found["projected"] / found["peak"] <= 1.3


def test_without_psutil_it_is_said_what_to_install():
    code = "import sys; sys.modules['psutil'] = None; import patchworks"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 1
    assert "MissingExtraError: psutil is not installed" in child.stderr
    assert "pip install psutil" in child.stderr
