"""`plan_run`: what a run will do and cost is told before it, and nothing is written for it."""

from __future__ import annotations

import re
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

from flows.cli import main
from patchworks import plan_run, tile_process
from patchworks.errors import ClientError, InputError, SegmenterError, TargetExistsError
from patchworks.execution import peak_memory
from patchworks.execution.peak_memory import measured
from patchworks.fidelity import compare_objects
from patchworks.function_need import FunctionNeed
from patchworks.geometry.box import Box
from patchworks.plan import describe_image
from patchworks.probe import N_FULL, Piece, _need, _places
from patchworks.segmenters import threshold
from tests import cells
from tests.images import ome_zarr, smooth_noise
from tests.machines import GIB, pretend
from tests.nvml import FakeCard
from tests.stores import components


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "image.zarr"
    ome_zarr(path, smooth_noise((32, 192, 192)))
    return path


def everything_below(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("probe", [False, True])
def test_nothing_is_written(image, probe):
    before = everything_below(image.parent)
    proposal = plan_run(image, threshold(1100), probe=probe, skip_empty=True, probe_seconds=60)
    assert str(proposal)
    assert everything_below(image.parent) == before
    assert [path.name for path in image.parent.iterdir()] == [image.name]


def test_without_a_probe_the_function_is_not_called(image):
    def never(tile):
        raise AssertionError

    proposal = plan_run(image, never, tile_shape=(32, 64, 64), overlap=8)
    assert (proposal.tile_shape, proposal.overlap) == ((32, 64, 64), (0, 8, 8))
    assert (proposal.n_tiles, proposal.seconds, proposal.result_bytes) == (9, None, None)
    assert "assumed" in str(proposal)


@pytest.mark.parametrize("probe", [False, True])
def test_labels_of_another_run_are_told_and_keep_nobody_from_planning(tmp_path, probe):
    image = ome_zarr(tmp_path / "image.zarr", smooth_noise((8, 96, 96)))
    segment, first = threshold(1100), {"tile_shape": (8, 48, 48), "overlap": 8}
    assert not plan_run(image, segment, **first).existing
    tile_process(image, segment, progress=False, **first)
    before = everything_below(tmp_path)
    again = plan_run(image, segment, probe=probe, **first)
    assert "the labels of this very run" in again.existing
    assert "returns at once" in str(again)
    other = plan_run(image, segment, probe=probe, probe_seconds=5, tile_shape=(8, 96, 48))
    assert re.search(r"labels +.*labels: .*another run.*output_component=.*overwrite", str(other))
    assert not other.plan.may_replace
    replaced = plan_run(image, segment, overwrite=True, tile_shape=(8, 96, 48))
    assert "is replaced" in replaced.existing
    assert replaced.plan.may_replace
    assert everything_below(tmp_path) == before
    with pytest.raises(TargetExistsError):
        tile_process(image, segment, tile_shape=(8, 96, 48), progress=False)


def test_what_is_no_label_image_is_refused_when_planning(tmp_path):
    image = ome_zarr(tmp_path / "image.zarr", smooth_noise((8, 96, 96)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no label image"):
        plan_run(image, threshold(1100), write_to=tmp_path / "other")


def test_what_was_given_is_kept_and_its_overlap_judged(image):
    proposal = plan_run(
        image, threshold(1100), probe=True, probe_seconds=60, tile_shape=(32, 64, 64), overlap=8
    )
    assert (proposal.tile_shape, proposal.overlap) == ((32, 64, 64), (0, 8, 8))
    assert proposal.halo.f1 == 1.0
    assert proposal.seconds > 0
    assert proposal.probe.largest.box.shape == (32, 80, 80)


def test_a_part_that_is_no_number_is_not_the_richest_one():
    image = np.full((512, 512), np.nan, "float32")
    image[256:, 256:] = 1
    first, *_ = _places(describe_image(image))
    assert image[first] == 1
    everywhere = _places(describe_image(np.full((512, 512), np.nan)))
    assert len(everywhere) == N_FULL


def test_the_overlap_that_is_proposed_gives_the_objects_of_the_whole():
    image, segment = cells.make((640, 640), 24), cells.segmenter(24)
    proposal = plan_run(image, segment, probe=True, probe_seconds=20, tile_shape=(128, 128))
    assert [trial.fidelity.f1 for trial in proposal.halo.trials][-1] == 1.0
    assert max(proposal.overlap) < 64
    tiled = tile_process(
        image, segment, tile_shape=proposal.tile_shape, overlap=proposal.overlap, progress=False
    )
    assert compare_objects(segment(image), tiled.compute()).f1 >= 0.999


def test_tiles_are_no_larger_than_what_the_function_has_memory_for(image):
    def small_only(tile):
        if tile.size > 300_000:
            raise MemoryError
        return components(tile)

    proposal = plan_run(image, small_only, probe=True, probe_seconds=60)
    assert proposal.probe.failed_voxels > 300_000
    assert max(tile.read.size for tile in proposal.plan.spec.grid) <= 300_000
    assert "ran out of memory" in str(proposal)


def test_a_function_that_takes_more_gets_smaller_tiles(image):
    def hungry(tile):
        return components(np.ones((40, *tile.shape)).sum(0) + tile)

    little, much = [
        plan_run(image, fn, probe=True, probe_seconds=60).plan.need for fn in (components, hungry)
    ]
    assert little.bytes_per_voxel < 20
    assert 300 < much.bytes_per_voxel < 500


def test_tiles_with_signal_are_counted_or_estimated(tmp_path):
    voxels = np.zeros((16, 256, 256), "u2")
    voxels[:, :32, :32] = 900
    ome_zarr(tmp_path / "image.zarr", voxels)
    proposal = plan_run(
        tmp_path / "image.zarr", threshold(400), skip_empty=True, empty_threshold=400,
        tile_shape=(16, 64, 64), overlap=8,
    )  # fmt: skip
    assert (proposal.n_occupied, proposal.n_tiles, proposal.is_counted) == (1, 16, True)
    assert "1 of 16 tiles" in str(proposal)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "60"])
def test_a_time_that_is_none_is_refused(image, seconds):
    with pytest.raises(InputError, match="probe_seconds"):
        plan_run(image, components, probe=True, probe_seconds=seconds)


def test_what_the_run_would_refuse_is_refused(image, tmp_path):
    with pytest.raises(InputError, match="tile_shape"):
        plan_run(image, components, tile_shape=(0, 1, 1))
    zarr.create_array(tmp_path / "there.zarr", shape=(2, 2), dtype="u1")
    with pytest.raises(InputError, match="something is there"):
        plan_run(image, components, write_to=tmp_path / "there.zarr", probe=True)


def test_a_function_that_fails_is_named(image):
    def broken(tile):
        raise ValueError("no such thing")

    with pytest.raises(SegmenterError, match=r"broken.*no such thing"):
        plan_run(image, broken, probe=True)


def piece(n: int, peak: int, gpu: int = 0) -> Piece:
    return Piece(
        box=Box((0,), (n,)), seconds=n / 1e6, read_s=0, n_decoded=n, peak_bytes=peak, gpu_bytes=gpu,
        label_bytes=4, n_objects=1, stored_bytes=1, store_s=0,
    )  # fmt: skip


def test_what_a_voxel_takes_is_told_from_what_every_call_takes():
    need = _need([piece(1000, 5000 + 8000), piece(8000, 5000 + 64000)], fixed=100)
    assert need == FunctionNeed(
        bytes_per_voxel=8, label_bytes=4, fixed_bytes=5100, seconds_per_voxel=1e-6
    )


def test_memory_of_the_gpu_is_told_alike():
    need = _need([piece(1000, 0, 2**20 + 1000), piece(8000, 0, 2**20 + 8000)], fixed=0)
    assert (need.gpu_bytes_per_voxel, need.gpu_fixed_bytes) == (1, 2**20)


def test_a_function_on_a_gpu_is_measured_and_its_tiles_fit_the_gpu(image, tmp_path, monkeypatch):
    """A card that a function takes 64 bytes a voxel and 100 MiB of, as NVML tells it."""
    card = FakeCard("GPU-1", total=GIB, free=GIB)
    pretend(tmp_path, monkeypatch, gib=16, n_cores=2, gpus=[card])

    def on_gpu(tile):
        card.free = min(card.free, GIB - 100 * 2**20 - 64 * tile.size)
        return components(tile)

    proposal = plan_run(image, on_gpu, probe=True, probe_seconds=60, use_gpu=True)
    need = proposal.plan.need
    assert need.gpu_bytes_per_voxel == pytest.approx(64, rel=0.01)
    assert need.gpu_fixed_bytes == pytest.approx(100 * 2**20, rel=0.01)
    assert proposal.workers.executor.n_workers == 1
    largest = max(tile.read.size for tile in proposal.plan.spec.grid)
    assert need.gpu_fixed_bytes + 64 * largest <= GIB
    assert "GPU-1" in str(proposal)


def test_no_gpu_is_an_error_and_not_a_run_without(image, tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, gib=16, n_cores=2)
    with pytest.raises(ClientError, match="use_gpu"):
        plan_run(image, components, probe=True, use_gpu=True)


def test_slices_channels_and_dask_arrays_are_probed_too(tmp_path):
    voxels = np.stack([smooth_noise((4, 96, 96)), smooth_noise((4, 96, 96))])
    ome_zarr(tmp_path / "image.zarr", voxels, axes="czyx")

    def both(tile):
        assert tile.ndim == 3
        return components(tile.max(0))

    stored = plan_run(
        tmp_path / "image.zarr", both, probe=True, probe_seconds=3, channel=[0, 1], slice_wise=True
    )
    assert stored.tile_shape[0] == 1
    assert stored.probe.largest.box.shape[0] == 1
    array = da.from_array(voxels[0], chunks=(4, 48, 48))
    held = plan_run(array, components, probe=True, probe_seconds=3, tile_shape=(4, 48, 48))
    assert held.n_tiles == 4
    assert held.probe.pieces


def test_where_linux_does_not_tell_a_thread_looks(monkeypatch):
    monkeypatch.setattr(peak_memory, "CLEAR_REFS", Path("/nowhere/clear_refs"))

    def call():
        held = [np.ones(2**22) for _ in range(4)]
        return len(held)

    found = measured(call)
    assert found.result == 4
    assert found.peak_bytes > 2**25


def test_the_command_tells_it(image, capsys):
    before = everything_below(image.parent)
    given = ["plan", str(image), "--set", "value=1100", "--tile-shape", "32,64,64"]
    assert main([*given, "--probe-seconds", "5"]) == 0
    said = capsys.readouterr().out
    for part in ("9 tiles", "F1", "bytes a voxel (measured)", "all levels"):
        assert part in said
    assert main([*given, "--no-probe", "--overlap", "8"]) == 0
    assert "(0, 8, 8)" in capsys.readouterr().out
    assert everything_below(image.parent) == before
    assert main(["plan", str(image), "--segmenter", "no-such"]) == 1


def test_an_overlap_is_never_larger_than_tiles_that_were_given():
    proposal = plan_run(np.full((16, 16), 9, "u1"), threshold(4), probe=True, tile_shape=(8, 8))
    assert not proposal.halo.is_certain
    assert proposal.overlap == (8, 8)
    assert "few: no proof" in str(proposal)


def test_an_image_too_small_to_try_an_overlap_on_gets_the_one_by_default():
    image = np.full((8, 64), 9, "u1")
    proposal = plan_run(image, threshold(4), probe=True, tile_shape=(8, 4))
    assert proposal.overlap == (0, 4)
