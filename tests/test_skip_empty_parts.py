"""Of a tile with signal in a part of it the function gets that part, and no label changes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks import occupancy, tile_process
from patchworks.execution.executor import ThreadExecutor
from patchworks.fingerprint import digest
from patchworks.geometry.crops import N_STEPS
from patchworks.geometry.grid import TileGrid
from patchworks.pipeline import load_plan, save_plan, segment_tiles
from patchworks.plan import RunOptions, plan_run
from patchworks.report import RunReport
from patchworks.run import RunSpec
from patchworks.run_plan import open_stage, run_plan
from tests.stores import contents, ome_zarr
from tests.strategies import generators

THRESHOLD = 5


class Looking:
    """Objects lie within so many voxels of signal, and depend on all voxels so far around them.

    It looks as far as it may, and finds nothing where there is no signal. Notes what it is handed.
    """

    def __init__(self, far: tuple[int, ...], n_voxels: float = np.inf):
        self.far = far
        self.n_voxels = n_voxels
        self.shapes: list[tuple[int, ...]] = []
        self.n_failures = 0

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        if tile.size > self.n_voxels:
            self.n_failures += 1
            tile[...] = 99
            raise MemoryError(f"no memory for {tile.size} voxels")
        assert tile.flags.c_contiguous
        assert tile.flags.writeable
        self.shapes.append(tile.shape)
        seen = tile.max(axis=0) if tile.ndim > len(self.far) else tile
        size = [2 * r + 1 for r in self.far]
        sums = seen.astype(np.int64)
        for axis, n in enumerate(size):
            sums = ndimage.correlate1d(sums, np.ones(n, np.int64), axis, mode="constant")
        is_near = ndimage.maximum_filter(seen > THRESHOLD, size)
        labels = ndimage.label(is_near & (sums % 4 > 0))[0]
        tile[...] = 99  # it may work in place
        return labels

    @property
    def n_handed(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)


def run(image, function, place: Path, skip: bool, **options) -> tuple[RunReport, dict]:
    """Return the report, and all bytes of the label image but what it says of its run."""
    found = RunOptions(
        write_to=place, skip_empty=skip, empty_threshold=THRESHOLD, pyramid_levels=3, **options
    )
    report = run_plan(
        plan_run(image, function, found), ThreadExecutor(2), progress=False, engine="threads"
    )
    return report, labels_of(place)


def labels_of(place: Path) -> dict:
    return {name: held for name, held in contents(place).items() if "/c/" in name}


def both(image, far, folder: Path, n_voxels: float = np.inf, **options):
    """Run with and without `skip_empty`; the label images are the same, byte for byte."""
    whole, parts = Looking(far, n_voxels), Looking(far, n_voxels)
    _, expected = run(image, whole, folder / "all.zarr", False, **options)
    report, found = run(image, parts, folder / "parts.zarr", True, **options)
    assert found == expected
    return whole, parts, report


@st.composite
def sparse_images(draw, shape: tuple[int, ...]) -> np.ndarray:
    """Noise, and a few boxes of signal: in corners, as slivers at borders, across seams."""
    rng = draw(generators())
    image = rng.integers(0, THRESHOLD + 1, shape).astype("u1")
    for _ in range(draw(st.integers(1, 4))):
        extent = [int(rng.integers(1, max(2, n // 4))) for n in shape]
        start = [
            int(rng.choice([0, n - e, rng.integers(0, n - e + 1)]))
            for n, e in zip(shape, extent, strict=True)
        ]
        box = tuple(slice(a, a + e) for a, e in zip(start, extent, strict=True))
        image[box] += (rng.random(extent) < 0.6).astype("u1") * 9
    return image


RUNS = {
    "a plane": {"shape": (70, 90), "tile_shape": (35, 30), "overlap": 2},
    "a plane in touching tiles": {
        "shape": (70, 90), "tile_shape": (40, 45), "overlap": 2, "stitch": "touch",
        "connectivity": 2,
    },
    "a stack": {"shape": (12, 40, 50), "tile_shape": (12, 20, 25), "overlap": (0, 1, 2)},
    "a stack in all directions": {"shape": (30, 40, 44), "tile_shape": (15, 40, 22), "overlap": 2},
}  # fmt: skip

EXAMPLES = st.data(), st.sampled_from(sorted(RUNS)), st.booleans()


@settings(deadline=None, max_examples=6)
@given(*EXAMPLES)
def test_the_label_image_is_that_of_whole_tiles(data, name, is_stored):
    check_that_the_label_image_is_the_same(data, name, is_stored)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(*EXAMPLES)
def test_in_many_images_it_is_that_of_whole_tiles(data, name, is_stored):
    check_that_the_label_image_is_the_same(data, name, is_stored)


def check_that_the_label_image_is_the_same(data, name, is_stored):
    options = dict(RUNS[name])
    shape = options.pop("shape")
    image = data.draw(sparse_images(shape))
    overlap = np.broadcast_to(options["overlap"], len(shape))
    dims = [-(-n // t) for n, t in zip(shape, options["tile_shape"], strict=True)]
    far = tuple(int(h) if n > 1 else 2 for h, n in zip(overlap, dims, strict=True))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchworks.geometry.box_grid.BOX", (4, 8, 8))
        patch.setattr("patchworks.geometry.box_grid.BOX_VOXELS", 1)
        held = image
        if is_stored:
            chunks = tuple(data.draw(st.integers(n // 5 + 1, n)) for n in shape)
            zarr.create_array(f"{folder}/i.zarr", data=image, chunks=chunks)
            held = f"{folder}/i.zarr"
        whole, parts, _ = both(held, far, Path(folder), **options)
        assert parts.n_handed <= whole.n_handed
        if is_stored:  # now with its map
            again = Looking(far)
            _, found = run(held, again, Path(folder, "again.zarr"), True, **options)
            assert sorted(again.shapes) == sorted(parts.shapes), "a map changes the cost alone"
            assert found == labels_of(Path(folder, "all.zarr"))


def disc(shape: tuple[int, ...], radius: float) -> np.ndarray:
    """An image in whose middle there is tissue, and noise around it."""
    y, x = np.ogrid[: shape[-2], : shape[-1]]
    inside = (y - shape[-2] / 2) ** 2 + (x - shape[-1] / 2) ** 2 < radius**2
    rng = np.random.default_rng(0)
    objects = (rng.random(shape) < 0.02) & inside
    return (rng.integers(0, THRESHOLD + 1, shape) + 20 * objects).astype("u1")


DISC = disc((8, 256, 256), 65)
IN_TILES = {"tile_shape": (8, 64, 64), "overlap": 2}


def test_the_function_gets_about_what_the_tissue_takes(tmp_path):
    whole, parts, report = both(DISC, (2, 2, 2), tmp_path, **IN_TILES)
    assert (len(parts.shapes), report.n_segmented, report.n_empty) == (12, 12, 4)
    full = 12 * 8 * 68**2  # what was handed over when tiles were left out or taken whole
    assert parts.n_handed < 0.55 * full < 0.55 * whole.n_handed
    assert len(set(parts.shapes)) < len(parts.shapes)
    for _, *extents in parts.shapes:
        assert all(n in (66, 68) or n % -(-68 // N_STEPS) == 0 for n in extents)


def test_dense_tiles_are_handed_over_whole(tmp_path):
    image = disc((8, 128, 128), 200)
    whole, parts, report = both(image, (2, 2, 2), tmp_path, **IN_TILES)
    assert sorted(parts.shapes) == sorted(whole.shapes)
    assert report.n_segmented == report.n_tiles


def test_a_map_spares_the_chunks_around_the_signal(tmp_path, monkeypatch):
    monkeypatch.setattr("patchworks.geometry.box_grid.BOX", (8, 8, 8))
    monkeypatch.setattr("patchworks.geometry.box_grid.BOX_VOXELS", 1)
    image = np.ones((8, 128, 128), "u1")
    image[:, 60:70, 2:9] = 9
    store = ome_zarr(tmp_path / "i.zarr", [image], chunks=(8, 16, 16))
    first = run(store, Looking((2, 2, 2)), tmp_path / "a.zarr", True, **IN_TILES)
    again = run(store, Looking((2, 2, 2)), tmp_path / "b.zarr", True, **IN_TILES)
    assert first[1] == again[1]
    assert first[0].n_bytes_decoded == image.nbytes
    assert again[0].n_bytes_decoded <= 8 * 64 * 48
    assert again[0].n_bytes_needed < first[0].n_bytes_needed


def test_signal_in_the_halo_alone_labels_voxels_of_the_core(tmp_path):
    image = np.zeros((60, 60), "u1")
    image[20:25, 31] = 9  # tile 0 owns x < 30, and reads x < 33
    _, parts, report = both(image, (3, 3), tmp_path, tile_shape=(60, 30), overlap=3)
    assert report.n_segmented == 2
    assert zarr.open_array(tmp_path / "parts.zarr" / "0")[:, 28:30].any()
    assert sorted(parts.shapes) == [(60, 10), (60, 15)]  # one tile on axis 0, and no overlap


def test_halves_of_a_part_are_joined(tmp_path):
    whole, parts, report = both(DISC, (2, 2, 2), tmp_path, n_voxels=8 * 40 * 40, **IN_TILES)
    assert report.n_halvings >= parts.n_failures > 0
    assert max(np.prod(shape) for shape in parts.shapes) <= 8 * 40 * 40
    assert parts.n_handed < whole.n_handed


@pytest.mark.parametrize("axis", ["z", "t"])
def test_slices_and_time_points_are_cut_one_by_one(tmp_path, axis):
    image = np.zeros((4, 64, 80), "u1")
    image[1, 3:9, 3:9], image[2, 28:36, 36:44], image[2, 60:, 70:] = 9, 9, 9
    store = ome_zarr(tmp_path / "i.zarr", [image], axes=f"{axis}yx", chunks=(1, 32, 32))
    more = {"slice_wise": True} if axis == "z" else {}
    whole, parts, report = both(store, (2, 2), tmp_path, tile_shape=(32, 40), overlap=2, **more)
    assert report.n_objects > 2
    assert all(len(shape) == 2 for shape in parts.shapes)
    assert parts.n_handed < 0.2 * whole.n_handed


def test_all_channels_count(tmp_path):
    image = np.zeros((3, 8, 64, 64), "u1")
    image[0, 4, 5, 5], image[2, 4, 17, 3], image[1, 4, 60, 60] = 9, 9, 99
    store = ome_zarr(tmp_path / "i.zarr", [image], axes="czyx", chunks=(1, 8, 32, 32))
    options = {"channel": [0, 2], "tile_shape": (8, 32, 64), "overlap": 2}
    _, parts, report = both(store, (2, 2, 2), tmp_path, **options)
    assert report.n_objects > 1
    assert parts.shapes == [(2, 8, 25, 64)]


def test_no_overlap_means_that_nothing_is_cut_off(tmp_path):
    _, parts, report = both(
        DISC, (0, 0, 0), tmp_path, tile_shape=(8, 64, 64), overlap=0, stitch="touch"
    )
    assert set(parts.shapes) == {(8, 64, 64)}
    assert report.n_empty > 4


def test_a_stage_of_whole_tiles_is_not_gone_on_with():
    """Labels of functions that are not local may differ; those of other runs are as they were."""
    grid = TileGrid.regular((64, 64), (32, 32), (2, 2))
    planes = (grid.edges, grid.halo, (True, True))
    for skips in (True, False):
        spec = RunSpec(grid=grid, skip_empty=skips, empty_threshold=3.0)
        before = digest("tiles 1", "image", "function", planes, skips, 3.0)
        assert (spec.tiles_fingerprint("image", "function") == before) == (not skips)


def noting(folder: Path):
    """Return a function that leaves a file with the shape of what it is handed."""
    import uuid

    folder.mkdir()

    def noted(tile):
        (folder / f"{tile.size}-{uuid.uuid4().hex}").touch()
        return ndimage.label(ndimage.maximum_filter(tile > 5, 5))[0]

    return noted


def handed(folder: Path) -> list[str]:
    """Return how many voxels a function made by `noting` was handed, call by call, in order."""
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


def test_batches_whose_occupied_tiles_were_found_before_cut_alike(tmp_path):
    """As in a flow: the plan does not say what is signal, the stage does."""
    store = ome_zarr(tmp_path / "i.zarr", [DISC], chunks=(8, 64, 64))
    run(store, noting(tmp_path / "run"), tmp_path / "run.zarr", True, **IN_TILES)
    options = RunOptions(write_to=tmp_path / "flow.zarr", skip_empty=True, **IN_TILES)
    plan = plan_run(store, noting(tmp_path / "flow"), options)
    open_stage(plan)
    tiles = range(plan.spec.grid.n_tiles)
    found = occupancy.find_occupied(plan, THRESHOLD, tiles)
    occupancy.save_occupancy(plan, THRESHOLD, [found])
    save_plan(plan)
    outcomes = segment_tiles(load_plan(str(plan.stage.root)), tiles)
    assert sum(outcome.status == "empty" for outcome in outcomes) == 4
    assert handed(tmp_path / "flow") == handed(tmp_path / "run")
    whole = zarr.open_array(tmp_path / "run.zarr" / "0")
    for tile in plan.spec.grid:
        core = whole[tile.core.slices]
        n_labels = plan.stage.read_counts(tile.index)[0]
        labels = plan.stage.read_labels(tile.index).to_array() if n_labels else np.zeros(core.shape)
        np.testing.assert_array_equal(labels > 0, core > 0)


def test_worker_processes_cut_alike(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", [DISC], chunks=(8, 64, 64))
    found = {}
    for engine in ("threads", "processes"):
        tile_process(
            store, noting(tmp_path / engine), write_to=tmp_path / f"{engine}.zarr",
            skip_empty=True, empty_threshold=THRESHOLD, progress=False, max_workers=2,
            engine=engine, **IN_TILES,
        )  # fmt: skip
        found[engine] = labels_of(tmp_path / f"{engine}.zarr")
    assert found["processes"] == found["threads"] != {}
    assert handed(tmp_path / "processes") == handed(tmp_path / "threads")
