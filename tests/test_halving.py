"""A function that fails above so many voxels gives what it gives on the whole image."""

from __future__ import annotations

import logging
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from patchworks import tile_process
from patchworks.errors import SegmenterError
from patchworks.execution.executor import ThreadExecutor
from patchworks.geometry.grid import Tile
from patchworks.geometry.halves import CutRule
from patchworks.halving import RETRY_EVERY, VoxelLimit
from patchworks.pipeline import RunPlan
from patchworks.plan import RunOptions, plan_run
from patchworks.report import RunReport
from patchworks.run_plan import run_plan
from patchworks.temporary import temporary_store
from tests import cells
from tests.images import above_1100, files_of, ome_zarr, smooth_noise
from tests.strategies import binary_images, halos, shapes, tile_shapes
from tests.test_fidelity import connected

laws = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

IMAGE = smooth_noise((24, 90, 70))
RUN = {"tile_shape": (24, 45, 70), "overlap": 8, "pyramid_levels": 1}
N_VOXELS = 30_000
"""Tiles of `RUN` read 24 x 53 x 70 voxels: three times as many."""


class Limited:
    """A function that has memory for so many voxels, and spoils what it was given if it has not."""

    def __init__(self, n_voxels: int, function=above_1100, error=MemoryError):
        self.n_voxels = n_voxels
        self.function = function
        self.error = error
        self.n_calls = self.n_failures = 0

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        self.n_calls += 1
        if tile.size > self.n_voxels:
            self.n_failures += 1
            tile[...] = tile.max()
            raise self.error(f"no memory for {tile.size} voxels")
        labels = self.function(tile)
        tile[...] = 0
        return labels


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Collecting garbage takes a tenth of a second in a process as large as that of the tests."""
    for module in ("tile_stream", "halving"):
        monkeypatch.setattr(f"patchworks.{module}.free_memory", lambda: None)


def run(image, segmenter, place=None, n_workers=1, **keywords) -> tuple[RunReport, np.ndarray]:
    plan = planned(image, segmenter, place, **keywords)
    report = run_plan(plan, ThreadExecutor(n_workers), progress=False, engine="threads")
    return report, zarr.open_array(Path(plan.target.location.path) / "0")[...]


def planned(image, segmenter, place=None, **keywords) -> RunPlan:
    place = {"write_to": place or temporary_store(), "is_temporary": place is None}
    return plan_run(image, segmenter, RunOptions(**place, **keywords))


def largest_at_the_floor(tile: Tile, rule: CutRule) -> int:
    """Voxels of the largest piece of a tile that cannot be cut any more."""
    cut = rule.cut(tile)
    if cut is None:
        return tile.read.size
    return max(largest_at_the_floor(half, rule) for half in (cut.lower, cut.upper))


@st.composite
def runs(draw) -> tuple[np.ndarray, dict]:
    """Any image in any tiles, of which some axes have but one."""
    shape = draw(shapes(min_axes=2, max_axes=3))
    tiles = tuple(
        n if draw(st.booleans()) else t
        for n, t in zip(shape, draw(tile_shapes(shape)), strict=True)
    )
    halo = draw(halos(len(shape)))
    return draw(binary_images(shape)), {
        "tile_shape": tiles,
        "overlap": tuple(min(h, t) for h, t in zip(halo, tiles, strict=True)),
        "stitch": draw(st.sampled_from(["auto", "touch"])),
        "connectivity": draw(st.integers(1, len(shape))),
    }


@settings(laws, max_examples=40)
@given(runs(), st.floats(0, 1))
@example((np.ones((13, 13), bool), {"tile_shape": (13, 13), "overlap": 1, "connectivity": 2}), 0)
def test_components_are_those_of_the_whole_image_however_often_tiles_are_cut(
    monkeypatch, asked, share
):
    image, keywords = asked
    with monkeypatch.context() as patch:
        patch.setattr("patchworks.run.THINNEST", 1)
        spec = planned(image, connected, **keywords).spec
        floor = max(largest_at_the_floor(tile, spec.cuts) for tile in spec.grid)
        sizes = [tile.read.size for tile in spec.grid]
        n_voxels = int(floor + share * max(0, max(sizes) - floor))
        connectivity = keywords["connectivity"]
        function = Limited(n_voxels, lambda tile: connected(tile, connectivity))
        report, labels = run(image, function, pyramid_levels=1, **keywords)
    assert cells.same_partition(connected(image, connectivity), labels)
    assert report.n_objects == labels.max()
    n_too_large = sum(size > n_voxels for size in sizes)
    assert report.n_halvings >= n_too_large
    assert (report.n_halvings > 0) == (n_too_large > 0)
    assert function.n_calls - function.n_failures == len(sizes) + report.n_halvings


@pytest.mark.parametrize(
    "shape, tile_shape, pitch, halo, n_voxels",
    [
        ((256, 256), (128, 256), 24, 24, 25_000),
        ((192, 192), None, 24, 24, 12_000),  # one tile, which has no halo of its own
        ((36, 72, 80), (36, 72, 40), 18, 16, 90_000),
    ],
)
def test_touching_cells_are_those_of_the_whole_image(shape, tile_shape, pitch, halo, n_voxels):
    image, segment = cells.make(shape, pitch), cells.segmenter(pitch)
    report, labels = run(
        image, Limited(n_voxels, segment), tile_shape=tile_shape or shape, overlap=halo
    )
    assert report.n_halvings > 1
    assert cells.agreement(segment(image), labels)["f1"] >= 0.999


def test_the_partition_is_that_of_small_tiles_and_the_halvings_are_reported(caplog):
    function = Limited(N_VOXELS)
    with caplog.at_level(logging.INFO, "patchworks"):
        report, labels = run(IMAGE, function, **RUN)
    said = [r for r in caplog.records if "cut in two along" in r.getMessage()]
    _, of_threads = run(IMAGE, Limited(N_VOXELS), n_workers=2, **RUN)
    assert cells.same_partition(of_threads, labels)
    small, expected = run(IMAGE, above_1100, **{**RUN, "tile_shape": (24, 23, 24)})
    assert cells.same_partition(expected, labels)
    assert small.n_halvings == 0
    assert "cut in two" not in str(small)
    assert f"{report.n_halvings} times a tile was cut in two" in str(report)
    assert [r.levelname for r in said] == ["WARNING"] + ["INFO"] * (function.n_failures - 1)
    assert re.match(
        r"tile 0 at \(0, 0, 0\): .*no memory for 89040 voxels; 89040 voxels are cut in two along "
        r"axis 2.*; tile_shape=\(24, 45, 35\) would spare", said[0].getMessage(),
    )  # fmt: skip
    assert function.n_failures < report.n_tiles + 6, "tiles after the first are cut at once"


def test_the_axis_with_one_tile_gets_the_overlap_that_was_asked_for():
    seen = []

    def watch(tile):
        seen.append(tile.shape)
        if tile.size > 3000:
            raise MemoryError
        return above_1100(tile)

    run(IMAGE[0], watch, tile_shape=(90, 70), overlap=5, pyramid_levels=1)
    assert seen == [(90, 70), (50, 70), (50, 40), (50, 40), (50, 40), (50, 40)]


def test_without_overlap_halves_read_no_halo_and_are_joined_where_they_touch():
    function = Limited(4000)
    report, labels = run(IMAGE, function, **{**RUN, "overlap": 0})
    assert report.n_halvings >= 30
    assert cells.same_partition(above_1100(IMAGE), labels)


class OnViews:
    """A function that is told its margins, and counts on them."""

    def __call__(self, tile):
        raise AssertionError

    def segment_view(self, tile, margins):
        assert all(0 <= m <= 8 for axis in margins for m in axis)
        if tile.size > N_VOXELS:
            raise MemoryError
        mask = tile > 1100
        for axis, (lower, upper) in enumerate(margins):
            rim = np.moveaxis(mask, axis, 0)
            rim[: max(0, lower - 1)] = False
            rim[len(rim) - max(0, upper - 1) :] = False
        return above_1100(np.where(mask, 1101, 0))


def test_a_function_of_views_is_told_the_margins_of_halves():
    report, labels = run(IMAGE, OnViews(), **RUN)
    assert report.n_halvings >= 3 * report.n_tiles
    assert cells.same_partition(above_1100(IMAGE), labels)


def test_below_the_floor_the_error_says_what_to_do_and_the_rest_is_done(tmp_path):
    broken = Limited(1000)
    with pytest.raises(SegmenterError) as caught:
        run(IMAGE, broken, tmp_path / "l.zarr", **RUN)
    said = str(caught.value)
    assert "tile 0 at (0, 0, 0): 'Limited' raised MemoryError: no memory for" in said
    assert re.search(r"smallest piece of tile 0, \(\d+, \d+, \d+\): \d+ voxels in \d+ bytes", said)
    assert "give a smaller overlap=" in said
    assert caught.value.heals, "as MemoryError does: somebody else may have had the memory"
    assert isinstance(caught.value.__cause__, MemoryError)


def test_other_errors_are_not_tried_again():
    function = Limited(N_VOXELS, error=ValueError)
    with pytest.raises(SegmenterError, match="ValueError"):
        run(IMAGE, function, **RUN)
    assert function.n_calls <= 2, "one each"


def test_a_halved_tile_with_negative_labels_is_refused():
    function = Limited(N_VOXELS, lambda tile: above_1100(tile) - 1)
    with pytest.raises(SegmenterError, match="negative label -1"):
        run(IMAGE, function, **RUN)


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_labels_of_halves_may_have_any_numbers_and_be_one_buffer(dtype):
    buffer = np.zeros(N_VOXELS, dtype)

    def numbered(tile):
        labels = above_1100(tile)
        factor = 2**40 if dtype == "int64" else 1
        view = buffer[: tile.size].reshape(tile.shape)
        view[...] = labels.astype("int64") * factor
        return view

    _, labels = run(IMAGE, Limited(N_VOXELS, numbered), **RUN)
    assert cells.same_partition(above_1100(IMAGE), labels)


def test_nothing_of_a_call_that_failed_is_in_memory_when_the_halves_are_tried():
    class Tensor:
        pass

    held: list[weakref.ref] = []
    at_retry: list[bool] = []

    def on_device(tile):
        at_retry.extend(ref() is not None for ref in held)
        tensor = Tensor()
        tensor.voxels = tile
        held.append(weakref.ref(tensor))
        if tile.size > N_VOXELS:
            raise MemoryError("no")
        return above_1100(tile)

    run(IMAGE, on_device, **RUN)
    assert len(at_retry) > 10
    assert not any(at_retry)


def test_what_others_handle_when_they_call_is_no_lack_of_memory():
    function = Limited(0, error=ValueError)
    try:
        raise MemoryError("of the caller's")
    except MemoryError:
        with pytest.raises(SegmenterError, match="ValueError"):
            run(IMAGE, function, **RUN)
    assert function.n_calls <= 2, "one each"


def test_an_interrupted_run_goes_on_and_counts_what_it_cuts_itself(tmp_path):
    marker = tmp_path / "go"

    def sometimes(tile):
        if tile.shape[1] < 45 and not marker.exists():
            marker.touch()
            raise KeyboardInterrupt
        return Limited(N_VOXELS)(tile)

    with pytest.raises(KeyboardInterrupt):
        run(IMAGE, sometimes, tmp_path / "l.zarr", **RUN)
    report, labels = run(IMAGE, sometimes, tmp_path / "l.zarr", **RUN)
    assert report.n_halvings >= 3 * report.n_segmented
    assert cells.same_partition(above_1100(IMAGE), labels)


def test_tiles_that_fit_are_the_same_bytes_as_ever(tmp_path):
    image = ome_zarr(tmp_path / "image.zarr", IMAGE)
    for name, cut_halo in (("a", None), ("b", (1, 2, 3))):
        plan = planned(image, above_1100, tmp_path / f"{name}.zarr", **RUN)
        object.__setattr__(plan.spec, "cut_halo", cut_halo)
        assert plan.spec.tiles_fingerprint("i", "f") == (
            planned(image, above_1100, **RUN).spec.tiles_fingerprint("i", "f")
        )
        run_plan(plan, ThreadExecutor(1), progress=False)
    assert files_of(tmp_path / "a.zarr") == files_of(tmp_path / "b.zarr")


class TestVoxelLimit:
    def test_what_is_as_large_as_what_failed_is_tried_now_and_then(self):
        limit = VoxelLimit()
        assert limit.allows(10**12)
        limit.note_failure(1000)
        tried = [limit.allows(2000) for _ in range(3 * RETRY_EVERY)]
        assert sum(tried) == 3
        assert all(limit.allows(999) for _ in range(10))

    def test_a_success_forgets_failures_that_were_smaller(self):
        limit = VoxelLimit()
        limit.note_failure(1000)
        limit.note_success(999)
        assert not limit.allows(1000)
        limit.note_success(1000)
        assert limit.allows(1000)

    def test_the_first_failure_alone_is_the_first(self):
        limit = VoxelLimit()
        assert [limit.note_failure(n) for n in (1000, 2000, 500)] == [True, False, False]
        assert not limit.allows(500)


def test_memory_that_comes_back_is_used_again():
    """What took it was somebody else's: later tiles are whole again."""
    sizes = []

    def busy_at_first(tile):
        sizes.append(tile.size)
        if len(sizes) == 1:
            raise MemoryError
        return above_1100(tile)

    image = smooth_noise((4, 160, 160))
    report, _ = run(image, busy_at_first, tile_shape=(4, 16, 16), overlap=0, pyramid_levels=1)
    assert report.n_halvings < RETRY_EVERY + 2
    assert sizes[-1] == sizes[0]


def test_the_public_function_takes_it_as_it_comes():
    labels = tile_process(
        IMAGE, Limited(N_VOXELS), tile_shape=(24, 45, 70), overlap=8, progress=False, max_workers=1
    )
    assert cells.same_partition(above_1100(IMAGE), labels.compute())
