"""Conversions that are killed, fail or run out of disk go on, and end in the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile
import zarr

from patchworks.conversion import regions
from patchworks.errors import ImageReadError, TargetNotWritableError
from patchworks.io.conversion_stage import ConversionStage
from patchworks.io.level_store import LevelStore
from patchworks.plugins.ome_zarr import to_ome_zarr
from patchworks.readers.array import ArrayReader
from tests.stores import contents

SCRIPT = """
import sys
from patchworks.plugins.ome_zarr import to_ome_zarr
print("ready", flush=True)
to_ome_zarr(sys.argv[1], sys.argv[2], n_levels=6, progress=False)
"""


def image(shape: tuple[int, ...]) -> np.ndarray:
    """Return an image that no plane of is like another."""
    rng = np.random.default_rng(3)
    plane = rng.integers(0, 4000, shape[1:], dtype="uint16")
    return np.stack([np.roll(plane, 31 * i, (0, 1)) + np.uint16(i) for i in range(shape[0])])


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 192 MiB: enough for several regions."""
    path = tmp_path_factory.mktemp("scan") / "scan.tif"
    tifffile.imwrite(path, image((24, 2048, 2048)), metadata={"axes": "ZYX"}, imagej=False)
    return path


@pytest.fixture(scope="module")
def uninterrupted(scan: Path) -> dict[str, bytes | None]:
    target = scan.parent / "whole" / "scan.ome.zarr"
    to_ome_zarr(scan, target, n_levels=6, progress=False)
    found = contents(target)
    assert len(found) > 100
    return found


def start(source: Path, target: Path) -> subprocess.Popen[str]:
    """Start a conversion in a process of its own; returns when it begins."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(source), str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill_after(source: Path, target: Path, seconds: float) -> bool:
    """Kill a conversion after some seconds; returns whether it was still at work."""
    process = start(source, target)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    cut_off = process.wait() == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()
    return cut_off


def wait_for_regions(target: Path, n: int) -> None:
    """Wait until a conversion that is at work has written `n` regions."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if len(list(target.parent.glob(f".{target.name}.*.stage/done*/0-*"))) >= n:
            return
        time.sleep(0.002)
    raise AssertionError(f"{n} regions were never written")


@pytest.mark.parametrize("n_regions", [1, 3])
def test_killed_after_some_regions_it_goes_on_and_ends_in_the_same_bytes(
    scan, uninterrupted, tmp_path, n_regions
):
    target = tmp_path / "scan.ome.zarr"
    process = start(scan, target)
    wait_for_regions(target, n_regions)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    marks = list(tmp_path.glob(".*.stage/done*/0-*"))
    written = {mark.name: mark.stat().st_mtime_ns for mark in marks}
    assert len(written) >= n_regions
    to_ome_zarr(scan, target, n_levels=6, progress=False)
    assert contents(target) == uninterrupted
    assert {path.name for path in tmp_path.iterdir()} == {target.name, f"{target.name}.maxima"}


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_in_the_same_bytes(scan, uninterrupted, tmp_path):
    begin = time.perf_counter()
    process = start(scan, tmp_path / "timed.ome.zarr")
    begin = time.perf_counter()
    assert process.wait() == 0
    process.stdout.close()
    whole = time.perf_counter() - begin
    moments = random.Random(11)
    n_killed = 0
    for trial in range(10):
        target = tmp_path / str(trial) / "scan.ome.zarr"
        n_killed += kill_after(scan, target, moments.uniform(0, whole))
        to_ome_zarr(scan, target, n_levels=6, progress=False)
        assert contents(target) == uninterrupted, trial
        left = {path.name for path in target.parent.iterdir()}
        assert left == {target.name, f"{target.name}.maxima"}
    print(f"{n_killed} of 10 conversions were killed at work")
    assert n_killed >= 5


def test_killed_again_and_again_it_never_begins_anew(scan, uninterrupted, tmp_path):
    target = tmp_path / "scan.ome.zarr"
    for n_regions in (1, 2, 4):
        process = start(scan, target)
        wait_for_regions(target, n_regions)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    to_ome_zarr(scan, target, n_levels=6, progress=False)
    assert contents(target) == uninterrupted


def test_a_part_that_cannot_be_read_ends_it_and_nothing_is_read_twice(tmp_path, monkeypatch):
    voxels = image((48, 1024, 1024))
    reads: list[tuple[int, ...]] = []
    read = ArrayReader._read

    def failing(self, box, level):
        if box.start[0] == 32 and "repaired" not in os.environ:
            raise OSError("bad sector")
        reads.append(box.start)
        return read(self, box, level)

    monkeypatch.setattr(ArrayReader, "_read", failing)
    target = tmp_path / "scan.ome.zarr"
    with pytest.raises(ImageReadError, match="bad sector") as raised:
        to_ome_zarr(voxels, target, progress=False, max_workers=1)
    assert "goes on from there" in raised.value.__notes__[0]
    assert not target.exists()
    monkeypatch.setenv("repaired", "1")
    to_ome_zarr(voxels, target, progress=False, max_workers=1)
    assert len(reads) == len(set(reads)) == 3
    assert (zarr.open_group(target)["0"][...] == voxels).all()


def test_marks_that_cannot_be_deleted_are_never_taken_for_new_ones(tmp_path, monkeypatch):
    """A network file system keeps what is open: then the stage is not empty."""
    voxels, target = image((48, 1024, 1024)), tmp_path / "scan.ome.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(regions, "publish", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            to_ome_zarr(voxels, target, progress=False)
    shutil.rmtree(next(tmp_path.glob(".*.partial")))
    with monkeypatch.context() as patch:
        patch.setattr(ConversionStage, "remove", lambda self: None)
        with pytest.raises(TargetNotWritableError, match="cannot be deleted"):
            to_ome_zarr(voxels, target, progress=False)
    assert not target.exists()
    to_ome_zarr(voxels, target, progress=False)
    assert (zarr.open_group(target)["0"][...] == voxels).all()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("scene", [0, "all"])
def test_what_ends_it_before_the_last_renaming_costs_no_region(tmp_path, monkeypatch, kind, scene):
    """The metadata are written already then, and no longer say that it is being written."""
    voxels, target = image((8, 256, 256)), tmp_path / "scan.ome.zarr"
    failing = mock.Mock(side_effect=kind)
    with monkeypatch.context() as patch:
        patch.setattr(LevelStore, "_move_into_place", failing)
        with pytest.raises((KeyboardInterrupt, TargetNotWritableError)) as raised:
            to_ome_zarr(voxels, target, scene=scene, progress=False)
    assert "goes on from there" in raised.value.__notes__[0]
    monkeypatch.setattr(ArrayReader, "_read", mock.Mock(side_effect=AssertionError("again")))
    to_ome_zarr(voxels, target, scene=scene, progress=False)
    level = "0/0" if scene == "all" else "0"
    assert (zarr.open_group(target)[level][...] == voxels).all()
    assert {path.name for path in tmp_path.iterdir()} <= {target.name, f"{target.name}.maxima"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_it_with_an_error_that_names_the_target(small_disk):
    voxels = np.random.default_rng(0).integers(0, 2**16, (12, 1024, 1024), dtype="uint16")
    target = small_disk / "scan.ome.zarr"
    with pytest.raises(TargetNotWritableError, match=r"scan\.ome\.zarr: cannot be written") as seen:
        to_ome_zarr(voxels, target, progress=False)
    assert "space" in str(seen.value)
    assert not target.exists()
    # With room, the same call goes on.
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    to_ome_zarr(voxels, target, progress=False)
    assert (zarr.open_group(target)["0"][...] == voxels).all()


def test_a_disk_that_is_full_from_the_start(small_disk):
    (small_disk / "filler").write_bytes(b"1" * (8 * 2**20 - 4096))
    with pytest.raises(TargetNotWritableError, match=r"scan\.ome\.zarr"):
        to_ome_zarr(np.ones((64, 64), "uint16"), small_disk / "scan.ome.zarr", progress=False)
    assert not (small_disk / "scan.ome.zarr").exists()
