"""Leaving out empty tiles changes no label, and what a map decides is not read."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks import estimate_empty_tiles, tile_process
from patchworks.emptiness import Emptiness
from patchworks.errors import SegmenterError
from patchworks.execution.executor import ThreadExecutor
from patchworks.plan import RunOptions, describe_image, plan_run
from patchworks.plugins.ome_zarr import to_ome_zarr
from patchworks.report import RunReport
from patchworks.run_plan import run_plan
from tests.stores import blobs, counting, n_calls, ome_zarr
from tests.strategies import generators, halos, shapes, tile_shapes

IMAGE = blobs((20, 160, 160))
IMAGE[:, :90] = 0
IMAGE[:, :, :50] = 0
IMAGE += IMAGE == 0  # chunks of zeros have no files
RUN = {"tile_shape": (20, 40, 40), "overlap": 4}


def above(threshold: float):
    return lambda tile: ndimage.label(tile > threshold)[0].astype("int32")


@pytest.fixture
def small_boxes(monkeypatch):
    """Boxes of which several make a tile, as in an image that is not tiny."""
    monkeypatch.setattr("patchworks.geometry.box_grid.BOX", (10, 20, 20))
    monkeypatch.setattr("patchworks.geometry.box_grid.BOX_VOXELS", 1)
    monkeypatch.setattr("patchworks.geometry.box_grid.UNIT_BYTES", 1)


EXAMPLES = (
    st.data(),
    generators(),
    st.sampled_from(["u1", "i2", "f4", "?"]),
    st.sampled_from([0, 0.5, 3.5, 9]),
)


@settings(deadline=None, max_examples=6)
@given(*EXAMPLES)
def test_labels_stay_the_same_for_a_function_that_finds_nothing_below(data, rng, dtype, threshold):
    check_that_labels_stay(data, rng, dtype, threshold)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(*EXAMPLES)
def test_in_many_images_labels_stay_the_same(data, rng, dtype, threshold):
    check_that_labels_stay(data, rng, dtype, threshold)


def check_that_labels_stay(data, rng, dtype, threshold):
    """On the first run, which makes the map, and on the second, which has it."""
    shape = data.draw(shapes(max_axes=3))
    lowest = -3 if dtype in ("i2", "f4") else 0
    image = ((rng.random(shape) < 0.15) * rng.integers(-3, 12, shape)).clip(lowest)
    image = image.astype(dtype)
    if dtype == "f4":
        image[rng.random(shape) < 0.05] = np.nan
    tiles = data.draw(tile_shapes(shape))
    halo = [min(h, t) for h, t in zip(data.draw(halos(len(shape))), tiles, strict=True)]
    halo = [h if n > t else 0 for h, n, t in zip(halo, shape, tiles, strict=True)]
    run = {"tile_shape": tiles, "overlap": halo, "progress": False, "max_workers": 2}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchworks.geometry.box_grid.BOX_VOXELS", data.draw(st.integers(1, 60)))
        patch.setattr("patchworks.geometry.box_grid.BOX", (1, 2, 2))
        chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
        zarr.create_array(f"{folder}/i.zarr", data=image, chunks=chunks)
        expected = None
        for name, skip in (("all", False), ("first", True), ("second", True)):
            labels = tile_process(
                f"{folder}/i.zarr",
                above(threshold),
                write_to=f"{folder}/{name}.zarr",
                skip_empty=skip,
                empty_threshold=threshold,
                **run,
            ).compute()
            expected = labels if expected is None else expected
            np.testing.assert_array_equal(labels, expected)
        known = Emptiness.of(describe_image(f"{folder}/i.zarr"))
        assert known is not None
        assert known.maxima.is_complete


ABOVE_1 = above(1)


def report_of(image: str, out: Path, fn=ABOVE_1) -> RunReport:
    options = {"skip_empty": True, "empty_threshold": 1, **RUN}
    plan = plan_run(image, fn, RunOptions(write_to=out, **options))
    return run_plan(plan, ThreadExecutor(2), progress=False)


def test_the_second_run_reads_no_tile_that_the_map_decides(tmp_path, small_boxes):
    store = ome_zarr(tmp_path / "image.zarr", [IMAGE], chunks=(10, 40, 40))
    first = report_of(store, tmp_path / "a.zarr")
    second = report_of(store, tmp_path / "b.zarr")
    assert first.n_empty == second.n_empty > 3
    assert first.n_segmented == second.n_segmented > 1
    # Not the bytes decoded: two threads that come to one chunk together may both decode it.
    assert second.n_bytes_needed < first.n_bytes_needed <= IMAGE.nbytes
    assert second.n_unread > first.n_unread
    assert f"{second.n_empty} empty ({second.n_unread} of them not read)" in str(second)
    assert "not read" not in str(RunReport("x", 3, n_empty=3))


@pytest.mark.parametrize("chunks", [(10, 40, 40), (1, 160, 160), (20, 33, 47)])
def test_a_run_leaves_a_whole_map(tmp_path, small_boxes, chunks):
    check_the_map_of_a_run(tmp_path, chunks, "threads")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "processes"])
@pytest.mark.parametrize("chunks", [(3, 5, 7), (20, 80, 160)])
def test_a_run_on_any_engine_leaves_a_whole_map(tmp_path, small_boxes, chunks, engine):
    check_the_map_of_a_run(tmp_path, chunks, engine)


def check_the_map_of_a_run(folder, chunks, engine):
    store = ome_zarr(folder / "image.zarr", [IMAGE], chunks=chunks)
    tile_process(
        store, ABOVE_1, write_to=folder / "a.zarr", skip_empty=True, empty_threshold=1,
        engine=engine, progress=False, max_workers=2, **RUN,
    )  # fmt: skip
    known = Emptiness.of(describe_image(store))
    assert known.maxima.is_complete
    fresh = Emptiness(known.source, type(known.maxima).unknown(known.maxima.grid, np.dtype("u1")))
    fresh.look_at(range(fresh.units.n_tiles))
    np.testing.assert_array_equal(known.maxima.maxima, fresh.maxima.maxima)


def test_a_run_that_fails_goes_on_with_what_it_has_learned(tmp_path, small_boxes):
    store = ome_zarr(tmp_path / "image.zarr", [IMAGE], chunks=(10, 40, 40))
    flag = tmp_path / "healed"

    def sometimes(tile):
        if not flag.exists() and tile[..., -1].max() > 1:
            raise RuntimeError("no luck")
        return ABOVE_1(tile)

    with pytest.raises(SegmenterError):
        report_of(store, tmp_path / "a.zarr", sometimes)
    flag.touch()
    again = report_of(store, tmp_path / "a.zarr", sometimes)
    assert again.n_reused + again.n_segmented + again.n_empty == 16
    assert Emptiness.of(describe_image(store)).maxima.is_complete
    labels = zarr.open_array(tmp_path / "a.zarr" / "0")[...]
    assert np.array_equal(labels > 0, IMAGE > 1)


def test_a_map_that_another_run_began_is_completed(tmp_path, small_boxes):
    store = ome_zarr(tmp_path / "image.zarr", [IMAGE], chunks=(10, 40, 40))
    begun = Emptiness.of(describe_image(store))
    begun.look_at([0, 5])
    begun.keep()
    report_of(store, tmp_path / "a.zarr")
    assert Emptiness.of(describe_image(store)).maxima.is_complete


LAYOUTS = {
    "a stack": ("zyx", (20, 160, 160), {}),
    "a plane": ("yx", (160, 320), {}),
    "channels": ("czyx", (3, 10, 160, 160), {}),
    "channels last of the others": ("zcyx", (4, 2, 160, 160), {}),
    "zarr 2": ("zyx", (20, 160, 160), {"ngff_version": "0.4"}),
    "shards of tiny chunks": ("zyx", (20, 160, 160), {"chunks": (1, 16, 16), "shard": True}),
    "odd chunks": ("zyx", (20, 160, 160), {"chunks": (3, 50, 70)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_conversion_makes_the_map_that_is_of_the_image(tmp_path, layout, small_boxes):
    axes, shape, keywords = LAYOUTS[layout]
    voxels = np.random.default_rng(0).poisson(2, shape).astype("u2")
    size = dict.fromkeys(sorted(set(axes) - {"c"}), 1.0)
    target = to_ome_zarr(
        voxels, tmp_path / "i.zarr", axes=axes, progress=False, pixel_size=size, **keywords
    )
    for channel in range(shape[axes.index("c")] if "c" in axes else 1):
        made = Emptiness.of(describe_image(target, channel=channel))
        assert made.maxima.is_complete
        fresh = Emptiness(made.source, type(made.maxima).unknown(made.maxima.grid, voxels.dtype))
        fresh.look_at(range(fresh.units.n_tiles))
        np.testing.assert_array_equal(made.maxima.maxima, fresh.maxima.maxima)


def test_each_tile_is_looked_at_once_more_only_where_the_map_is_open(tmp_path):
    """The function is not called for tiles without signal, map or not."""
    store = ome_zarr(tmp_path / "image.zarr", [IMAGE], chunks=(10, 40, 40))
    found = estimate_empty_tiles(store, RUN["tile_shape"], overlap=(0, 4, 4), threshold=1)
    report_of(store, tmp_path / "a.zarr", counting(tmp_path / "calls", ABOVE_1))
    assert n_calls(tmp_path / "calls") == found["n_occupied"]
