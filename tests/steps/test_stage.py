from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patchworks.geometry.grid import Tile, TileGrid
from patchworks.geometry.seam import SeamPlan
from patchworks.io.record import LABELS, TileRecord, smallest_unsigned
from patchworks.io.stage import Stage
from patchworks.steps.stage import stage_empty_tile, stage_tile
from tests.strategies import boxes, grids, label_images

laws = settings(deadline=None, max_examples=60)

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", ">u4", ">i2"]
GRID = TileGrid.regular((8, 12), (4, 6), (1, 2))
SEAMS = SeamPlan(GRID, (True, True), 1)
TILE = GRID[0]  # core (0, 0) to (4, 6), reads up to (5, 8)


@pytest.fixture
def stage(tmp_path) -> Stage:
    return new_stage(tmp_path)


def new_stage(folder: Path, n_tiles: int = 4) -> Stage:
    return Stage.create(folder / "stage", {"fingerprint": "test"}, n_tiles)


@st.composite
def segmented_tiles(draw) -> tuple[SeamPlan, Tile, np.ndarray]:
    """A seam plan, a tile of its grid and labels of what it reads, with ids far apart or not."""
    grid = draw(grids(max_axes=4))
    seams = SeamPlan(grid, tuple(h > 0 for h in grid.halo), 1)
    tile = grid[draw(st.integers(0, grid.n_tiles - 1))]
    labels = draw(label_images(tile.read.shape, max_id=8, dtype="int64"))
    spread = draw(st.sampled_from([1, 7, 1000, 2**40]))
    return seams, tile, labels * spread


def staged(
    seams: SeamPlan, tile: Tile, labels: np.ndarray, part: Tile | None = None
) -> tuple[np.ndarray, TileRecord]:
    """Return what is staged of a tile: labels of the core (zeros if there is no file), record."""
    with tempfile.TemporaryDirectory() as folder:
        stage = new_stage(Path(folder), seams.grid.n_tiles)
        stage_tile(stage, seams, tile, labels, part=part)
        record = stage.read_record(tile.index)
        core = np.zeros(tile.core.shape, "uint8")
        if record.n_labels:
            core = stage.read_labels(tile.index).to_array()
    return core, record


def planes_of(seams: SeamPlan, tile: Tile, labels: np.ndarray) -> dict[str, np.ndarray]:
    return {
        plane.key: labels[box.relative_to(tile.read.start).slices]
        for plane, box in seams.planes(tile)
    }


@laws
@given(segmented_tiles())
def test_staged_labels_are_the_ranks_of_the_ids_in_the_core(drawn):
    _, tile, labels = drawn
    core = labels[tile.core_in_read.slices]
    ids = np.unique(core[core > 0])
    expected = np.where(core > 0, np.searchsorted(ids, core) + 1, 0)
    found, record = staged(*drawn)
    np.testing.assert_array_equal(found, expected)
    assert record.n_labels == len(ids)


@laws
@given(segmented_tiles())
def test_planes_show_the_same_objects_as_the_core(drawn):
    seams, tile, labels = drawn
    core, record = staged(*drawn)
    id_of = dict(zip(core.ravel().tolist(), labels[tile.core_in_read.slices].ravel(), strict=True))
    for key, ids in planes_of(seams, tile, labels).items():
        plane = record.planes.get(key, np.zeros(ids.shape, int))
        owned = (plane > 0) & (plane <= record.n_labels)
        assert [id_of[n] for n in plane[owned].tolist()] == ids[owned].tolist()


@laws
@given(segmented_tiles())
def test_ids_of_the_halo_alone_come_after_those_of_the_core(drawn):
    seams, tile, labels = drawn
    _, record = staged(*drawn)
    core_ids = set(np.unique(labels[tile.core_in_read.slices]).tolist())
    for key, ids in planes_of(seams, tile, labels).items():
        plane = record.planes.get(key, np.zeros(ids.shape, int))
        halo_only = ~np.isin(ids, list(core_ids)) & (ids > 0)
        np.testing.assert_array_equal(plane > record.n_labels, halo_only)


@laws
@given(segmented_tiles())
def test_nodes_are_all_ids_of_the_core_and_the_planes(drawn):
    seams, tile, labels = drawn
    seen = [labels[tile.core_in_read.slices], *planes_of(seams, tile, labels).values()]
    ids = set(np.concatenate([part.ravel() for part in seen]).tolist()) - {0}
    _, record = staged(*drawn)
    assert record.n_nodes == len(ids)


@laws
@given(segmented_tiles())
def test_background_stays_background(drawn):
    seams, tile, labels = drawn
    core, record = staged(*drawn)
    np.testing.assert_array_equal(core > 0, labels[tile.core_in_read.slices] > 0)
    for key, ids in planes_of(seams, tile, labels).items():
        plane = record.planes.get(key, np.zeros(ids.shape, int))
        np.testing.assert_array_equal(plane > 0, ids > 0)


@laws
@given(segmented_tiles())
def test_a_side_with_nothing_on_it_keeps_no_plane(drawn):
    seams, tile, labels = drawn
    _, record = staged(*drawn)
    expected = {key for key, plane in planes_of(seams, tile, labels).items() if plane.any()}
    assert set(record.planes) - {LABELS} == expected


@laws
@given(segmented_tiles())
def test_staged_labels_have_the_smallest_dtype_that_holds_them(drawn):
    core, record = staged(*drawn)
    assert core.dtype == smallest_unsigned(record.n_labels)
    for key, plane in record.planes.items():
        n_ids = record.n_labels if key == LABELS else record.n_nodes
        assert plane.dtype == smallest_unsigned(n_ids)


@laws
@given(segmented_tiles(), st.data())
def test_a_part_is_staged_as_the_tile_in_which_all_else_is_background(drawn, data):
    seams, tile, labels = drawn
    box = data.draw(boxes(tile.read.shape)).placed_at(tile.read.start)
    core = tile.core.intersect(box)
    assume(core is not None)
    part = replace(tile, core=core, read=box)
    seen = labels[box.relative_to(tile.read.start).slices]
    padded = np.zeros_like(labels)
    padded[box.relative_to(tile.read.start).slices] = seen
    expected, record = staged(seams, tile, padded)
    limits = {"TINY_BYTES": 0, "TINY": data.draw(st.sampled_from([0, 2**12]))}
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in limits.items() if data.draw(st.booleans()) else []:
            patch.setattr(f"patchworks.steps.stage.{name}", limit)
        found, of_part = staged(seams, tile, seen, part)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    counts = of_part.n_labels, of_part.n_nodes
    assert counts == (record.n_labels, record.n_nodes)
    assert of_part.planes.keys() - {LABELS} == record.planes.keys() - {LABELS}
    for key in record.planes.keys() & of_part.planes.keys():
        assert of_part.planes[key].dtype == record.planes[key].dtype
        np.testing.assert_array_equal(of_part.planes[key], record.planes[key])


@pytest.mark.parametrize(
    ("n_labels", "dtype"), [(1, "u1"), (255, "u1"), (256, "u2"), (65_535, "u2"), (65_536, "u4")]
)
def test_the_staged_dtype_grows_with_the_number_of_labels(stage, n_labels, dtype):
    grid = TileGrid.regular((260, 260), (260, 260), (0, 0))
    labels = np.minimum(np.arange(260 * 260).reshape(260, 260), n_labels)
    record = stage_tile(stage, SeamPlan(grid, (False, False), 1), grid[0], labels)
    found = stage.read_labels(0).to_array()
    assert record.n_labels == n_labels
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, labels)


def test_labels_of_the_halo_do_not_widen_the_staged_dtype(stage):
    grid = TileGrid.regular((32, 16), (16, 16), (1, 0))
    labels = np.zeros((17, 16), "int32")
    labels[:16].flat[:255] = np.arange(1, 256)
    labels[16, :3] = [300, 301, 302]
    record = stage_tile(stage, SeamPlan(grid, (True, False), 1), grid[0], labels)
    assert (record.n_labels, record.n_nodes) == (255, 258)
    assert stage.read_labels(0).to_array().dtype == np.uint8
    assert stage.read_record(0).planes["0u"].dtype == np.uint16


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("ids", ["small", "largest"])
def test_labels_of_every_integer_dtype_are_staged(stage, dtype, ids):
    largest = np.iinfo(dtype).max if ids == "largest" else 9
    labels = np.zeros(TILE.read.shape, dtype)
    labels[0, 0], labels[2:, 2:] = 3, largest
    stage_tile(stage, SEAMS, TILE, labels)
    expected = np.zeros(TILE.core.shape, "uint8")
    expected[0, 0], expected[2:, 2:] = 1, 2
    np.testing.assert_array_equal(stage.read_labels(0).to_array(), expected)


@pytest.mark.parametrize("background", [True, False])
def test_huge_sparse_ids_are_ranked(stage, background):
    labels = np.full(TILE.read.shape, 0 if background else 2**39)
    labels[0, :3] = 2**40, 2**40 + 1, 2**50
    record = stage_tile(stage, SEAMS, TILE, labels)
    rest = 0 if background else 1
    assert stage.read_labels(0).to_array()[0, :4].tolist() == [rest + 1, rest + 2, rest + 3, rest]
    assert record.n_labels == 3 + rest


def test_labels_in_fortran_order_are_staged_as_they_look(stage):
    labels = np.zeros(TILE.read.shape, "int32", order="F")
    labels[1, 2:5] = 4
    stage_tile(stage, SEAMS, TILE, labels)
    np.testing.assert_array_equal(stage.read_labels(0).to_array(), (labels > 0)[:4, :6])


def test_staging_leaves_the_labels_of_the_function_alone(stage):
    labels = np.arange(40).reshape(TILE.read.shape)
    before = labels.copy()
    stage_tile(stage, SEAMS, TILE, labels)
    np.testing.assert_array_equal(labels, before)


def files_in(stage: Stage, kind: str) -> list[str]:
    return sorted(path.name for path in (stage.root / kind).rglob("*") if path.is_file())


def test_a_tile_without_labels_writes_no_label_file(stage):
    record = stage_tile(stage, SEAMS, TILE, np.zeros(TILE.read.shape, "int32"))
    assert files_in(stage, "labels") == []
    assert (record.n_labels, record.n_nodes, dict(record.planes)) == (0, 0, {})
    assert stage.is_done(0)


def test_a_tile_with_labels_in_its_halo_only_writes_no_label_file_but_its_planes(stage):
    labels = np.zeros(TILE.read.shape, "int32")
    labels[4, :] = 5  # the first plane past the seam
    record = stage_tile(stage, SEAMS, TILE, labels)
    assert files_in(stage, "labels") == []
    assert (record.n_labels, record.n_nodes) == (0, 1)
    assert stage.read_record(0).planes["0u"].tolist() == [[0] * 8, [1] * 8]


def test_a_tile_that_is_left_out_is_done_and_holds_nothing(stage):
    stage_empty_tile(stage, TILE)
    assert stage.is_done(0)
    assert stage.read_counts(0) == (0, 0)
    assert files_in(stage, "labels") == []


def test_the_record_is_written_after_the_labels(stage, monkeypatch):
    monkeypatch.setattr("patchworks.steps.stage.TINY_BYTES", 0)
    written = []
    for name in ("write_labels", "write_record"):
        write = getattr(Stage, name)

        def spy(self, *given, name=name, write=write):
            written.append((name, self.is_done(0)))
            write(self, *given)

        monkeypatch.setattr(Stage, name, spy)
    stage_tile(stage, SEAMS, TILE, np.ones(TILE.read.shape, int))
    assert written == [("write_labels", False), ("write_record", False)]


def test_a_tile_whose_labels_could_not_be_written_is_not_done(stage, monkeypatch):
    monkeypatch.setattr("patchworks.steps.stage.TINY_BYTES", 0)

    def disk_is_full(self, tile, labels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Stage, "write_labels", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        stage_tile(stage, SEAMS, TILE, np.ones(TILE.read.shape, int))
    assert not stage.is_done(0)


def test_staging_a_tile_again_writes_the_same_bytes(stage):
    labels = np.arange(40).reshape(TILE.read.shape)
    contents = []
    for _ in range(2):
        stage_tile(stage, SEAMS, TILE, labels)
        files = sorted(path for path in stage.root.rglob("*") if path.is_file())
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]


def test_staging_a_tile_leaves_no_temporary_file(stage, monkeypatch):
    stage_tile(stage, SEAMS, TILE, np.ones(TILE.read.shape, int))
    found = sorted(path.name for path in stage.root.rglob("*") if path.is_file())
    assert found == ["00000000.rec", "run.json"], "the labels of a tiny tile are in its record"
    monkeypatch.setattr("patchworks.steps.stage.TINY_BYTES", 0)
    stage_tile(stage, SEAMS, TILE, np.ones(TILE.read.shape, int))
    found = sorted(path.name for path in stage.root.rglob("*") if path.is_file())
    assert found == ["00000000.lab", "00000000.rec", "run.json"]


@pytest.mark.parametrize("tiny_bytes", [0, 2**15])
def test_staged_labels_are_read_wherever_they_are(stage, monkeypatch, tiny_bytes):
    monkeypatch.setattr("patchworks.steps.stage.TINY_BYTES", tiny_bytes)
    labels = np.arange(40).reshape(TILE.read.shape)
    stage_tile(stage, SEAMS, TILE, labels)
    staged = stage.read_labels(TILE.index).to_array()
    assert np.array_equal(np.unique(staged), np.arange(staged.max() + 1)[staged.min() :])
    assert staged.shape == TILE.core.shape


def test_the_record_that_is_returned_is_the_one_that_was_written(stage):
    returned = stage_tile(stage, SEAMS, TILE, np.arange(40).reshape(TILE.read.shape))
    assert returned.to_bytes() == stage.read_record(0).to_bytes()
