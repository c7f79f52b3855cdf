"""Seams are judged with few records in memory, whatever the number of tiles."""

import numpy as np
import pytest

from patchworks.io.record import TileRecord
from patchworks.io.stage import Stage
from patchworks.joining import Records

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
