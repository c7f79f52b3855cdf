"""Seams are judged with few records in memory, whatever the number of tiles."""

from dataclasses import replace

import numpy as np
import pytest

from patchworks.io.record import TileRecord
from patchworks.io.stage import Stage
from patchworks.joining import JOINED_PARTS, Records, load_joined, save_joined
from patchworks.pipeline import join_tiles, relabel, segment_tiles
from patchworks.plan import RunOptions, plan_run
from patchworks.run_plan import open_stage
from tests.stores import blobs, components

N_TILES = 50


@pytest.fixture
def stage(tmp_path) -> Stage:
    made = Stage.create(tmp_path / "stage", {"fingerprint": "f"}, N_TILES)
    for tile in range(N_TILES):
        planes = {"0u": np.full((2, 100), tile, "uint8"), "1l": np.full((100,), tile, "uint8")}
        made.write_record(TileRecord(tile, 1, 1, planes))
    return made


def test_records_take_no_more_memory_than_they_may(stage):
    records = Records(stage, max_bytes=1000)
    for tile in [*range(N_TILES), 3, 3, 49]:
        assert records[tile].tile == tile
        assert sum(r.n_bytes for r in records.kept.values()) == records.n_bytes <= 1000
        assert list(records.kept)[-1] == tile


def test_one_that_is_larger_is_held_alone(stage):
    records = Records(stage, max_bytes=10)
    assert [records[tile].tile for tile in (1, 2, 2)] == [1, 2, 2]
    assert len(records.kept) == 1


def test_what_was_used_last_is_read_once(stage, monkeypatch):
    records = Records(stage, max_bytes=1000)
    read = []
    whole = Stage.read_record
    monkeypatch.setattr(Stage, "read_record", lambda s, t: read.append(t) or whole(s, t))
    for tile in (1, 2, 1, 3, 1, 2, 4, 1):
        assert records[tile].tile == tile
    assert read == [1, 2, 3, 4]


def test_batches_that_are_written_and_read_say_what_one_says(tmp_path):
    """Objects of slices that lie in tiles of several batches."""
    image = blobs((6, 30, 30), seed=2)
    options = RunOptions(
        write_to=tmp_path / "o.zarr", tile_shape=(10, 10), overlap=3, slice_wise=True
    )
    plan = plan_run(image, components, options)
    open_stage(plan)
    tiles = range(plan.spec.grid.n_tiles)
    segment_tiles(plan, tiles)
    whole = relabel(plan, [join_tiles(plan, tiles)])
    for first in range(0, len(tiles), 7):
        batch = tiles[first : first + 7]
        save_joined(plan.stage, f"{first}", join_tiles(plan, batch))
    loaded = [load_joined(plan.stage, f"{first}") for first in range(0, len(tiles), 7)]
    assert relabel(plan, loaded[::-1]).digest() == whole.digest()
    assert 0 < whole.n_objects < relabel(replace(plan, spec=replace(
        plan.spec, slice_axis=None)), loaded).n_objects  # fmt: skip


def test_a_run_without_slices_writes_nothing_new(tmp_path):
    options = RunOptions(write_to=tmp_path / "o.zarr", tile_shape=(3, 10, 10), overlap=0)
    plan = plan_run(blobs((6, 30, 30)), components, options)
    open_stage(plan)
    segment_tiles(plan, range(18))
    save_joined(plan.stage, "all", join_tiles(plan, range(18)))
    names = sorted(path.name for path in plan.stage.root.glob("joined-*"))
    assert names == [f"joined-all-{part}.npy" for part in sorted(JOINED_PARTS)]
