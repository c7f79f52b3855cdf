from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.errors import StageError, TargetNotWritableError
from patchworks.io import stage as stage_module
from patchworks.io.record import TileRecord
from patchworks.io.stage import PER_FOLDER, Stage, write_whole
from patchworks.io.staged_labels import LabelVoxels, find_runs
from tests.strategies import label_images, shapes

laws = settings(deadline=None, max_examples=60)

DTYPES = ["uint8", "uint16", "uint32", "uint64"]
LABELS = np.random.default_rng(0).integers(0, 300, (8, 9)).astype("uint16")
RECORD = TileRecord(2, 300, 302, {"0u": LABELS[:2], "1l": np.ones((8, 2), "uint8")})


def new_stage(folder: Path, n_tiles: int = 4, fingerprint: str = "mine") -> Stage:
    return Stage.create(folder / "stage", {"fingerprint": fingerprint}, n_tiles)


@pytest.fixture
def stage(tmp_path) -> Stage:
    return new_stage(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Stage:
    """A stage for laws, whose examples write over one another."""
    return new_stage(tmp_path_factory.mktemp("stage"))


def file_of(stage: Stage, kind: str) -> Path:
    """Return the only file of a kind."""
    [found] = [path for path in (stage.root / kind).rglob("*") if path.is_file()]
    return found


# --- staged labels ------------------------------------------------------------------------------


@laws
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_staged_labels_survive_their_file(shared, data, dtype):
    labels = data.draw(label_images(data.draw(shapes()), dtype=dtype))
    shared.write_labels(1, LabelVoxels(labels))
    found = shared.read_labels(1).to_array()
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("view", [np.transpose, np.flip, np.asfortranarray, lambda a: a[::2, 1::3]])
def test_labels_that_are_a_view_are_staged_as_they_look(stage, view):
    labels = view(LABELS)
    stage.write_labels(0, LabelVoxels(labels))
    np.testing.assert_array_equal(stage.read_labels(0).to_array(), labels)


def test_staged_labels_are_compressed(stage):
    labels = np.repeat(np.arange(100, dtype="uint32"), 1000).reshape(100, 1000)
    stage.write_labels(0, LabelVoxels(labels))
    assert file_of(stage, "labels").stat().st_size < 10_000


@pytest.mark.parametrize("length", [0, 1, 4, 100, -1])
def test_staged_labels_that_end_early_raise_stage_error_naming_tile_and_file(stage, length):
    stage.write_labels(3, find_runs(LABELS))
    path = file_of(stage, "labels")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StageError, match="tile 3: ") as raised:
        stage.read_labels(3)
    assert str(path) in str(raised.value)


def with_one_bit_changed(content: bytes) -> Iterator[bytes]:
    """Yield copies of a file, each with another bit turned over."""
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        yield bytes(damaged)


def test_staged_labels_with_a_changed_bit_are_never_read_as_other_labels(stage):
    stage.write_labels(3, find_runs(LABELS))
    path = file_of(stage, "labels")
    for damaged in with_one_bit_changed(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            found = stage.read_labels(3).to_array()
        except Exception:  # noqa: BLE001 - what it raises is the business of the next test
            continue
        np.testing.assert_array_equal(found, LABELS)


def test_staged_labels_with_a_changed_bit_raise_nothing_but_stage_error(stage):
    stage.write_labels(3, find_runs(LABELS))
    path = file_of(stage, "labels")
    for damaged in with_one_bit_changed(path.read_bytes()):
        path.write_bytes(damaged)
        with suppress(StageError):
            stage.read_labels(3)


def test_staged_labels_that_are_missing_raise_stage_error_naming_tile_and_file(stage):
    with pytest.raises(StageError, match=r"tile 3: .*labels.*00000003\.lab"):
        stage.read_labels(3)


# --- records ------------------------------------------------------------------------------------


def test_a_tile_is_done_once_its_record_is_written(stage):
    stage.write_labels(2, find_runs(LABELS))
    assert not stage.is_done(2)
    stage.write_record(RECORD)
    assert stage.is_done(2)
    assert stage.done() == [2]


@pytest.mark.parametrize("folder", ["00000", "00001", "00002"])
def test_done_lists_all_tiles_in_order_however_many_folders_they_fill(tmp_path, folder):
    stage = new_stage(tmp_path, 3 * PER_FOLDER)
    tiles = [0, 1, PER_FOLDER - 1, PER_FOLDER, 2 * PER_FOLDER + 5]
    for tile in reversed(tiles):
        stage.write_record(TileRecord(tile, 0, 0))
    assert stage.done() == tiles
    assert any((stage.root / "records" / folder).iterdir())


def test_a_record_survives_its_file(stage):
    stage.write_record(RECORD)
    found = stage.read_record(2)
    assert (found.tile, found.n_labels, found.n_nodes) == (2, 300, 302)
    assert set(found.planes) == {"0u", "1l"}
    for key, plane in RECORD.planes.items():
        np.testing.assert_array_equal(found.planes[key], plane)


def test_counts_are_those_of_the_record(stage):
    stage.write_record(RECORD)
    assert stage.read_counts(2) == (300, 302)


@pytest.mark.parametrize("read", ["read_record", "read_counts"])
@pytest.mark.parametrize("content", [b"", b"PWR1", b"PWR1\x02\0\0\0{}", b"PWR1\x04\0\0\0null"])
def test_a_damaged_record_raises_stage_error_naming_tile_and_file(stage, read, content):
    stage.write_record(RECORD)
    path = file_of(stage, "records")
    path.write_bytes(content)
    with pytest.raises(StageError, match="tile 2: ") as raised:
        getattr(stage, read)(2)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_record_that_ends_early_raises_stage_error_naming_tile_and_file(stage, part):
    stage.write_record(RECORD)
    path = file_of(stage, "records")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(StageError, match="tile 2: ") as raised:
        stage.read_record(2)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("read", ["read_record", "read_counts"])
def test_a_record_with_a_changed_bit_raises_nothing_but_stage_error(stage, read):
    stage.write_record(RECORD)
    path = file_of(stage, "records")
    for damaged in with_one_bit_changed(path.read_bytes()):
        path.write_bytes(damaged)
        with suppress(StageError):
            getattr(stage, read)(2)


def test_a_record_with_a_changed_bit_is_never_read_as_another_record(stage):
    stage.write_record(RECORD)
    path = file_of(stage, "records")
    for damaged in with_one_bit_changed(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            found = stage.read_record(2)
        except Exception:  # noqa: BLE001 - what it raises is the business of the test above
            continue
        assert found.to_bytes() == RECORD.to_bytes()


def test_a_record_that_is_missing_raises_stage_error_naming_tile_and_file(stage):
    with pytest.raises(StageError, match=r"tile 2: .*records.*00000002\.rec"):
        stage.read_record(2)


def test_the_message_says_how_to_do_the_tile_again(stage):
    stage.write_record(RECORD)
    stage.write_labels(2, find_runs(LABELS))
    path = file_of(stage, "labels")
    path.write_bytes(b"")
    with pytest.raises(StageError, match=r"delete .*00000002\.rec and call again"):
        stage.read_labels(2)


def test_a_record_of_another_tile_is_damage(stage):
    stage.write_record(RECORD)
    path = file_of(stage, "records")
    path.rename(path.with_name("00000001.rec"))
    with pytest.raises(StageError, match="tile 1: "):
        stage.read_record(1)


# --- whole files --------------------------------------------------------------------------------


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_writing_leaves_no_temporary_file(stage):
    stage.write_labels(2, find_runs(LABELS))
    stage.write_record(RECORD)
    stage.write_array("occupancy", np.ones((2, 2), bool))
    expected = ["00000002.lab", "00000002.rec", "occupancy.npy", "run.json"]
    assert files_in(stage.root) == expected


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_whole(tmp_path / "a", b"long before")
    write_whole(tmp_path / "a", b"now")
    assert (tmp_path / "a").read_bytes() == b"now"


def test_a_write_that_fails_leaves_what_was_there_and_no_temporary_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"before")

    class DiskIsFull(io.BytesIO):
        def write(self, content: bytes) -> int:
            raise OSError(28, "No space left on device")

    def begun(path: str, *_: object) -> DiskIsFull:
        Path(path).touch()
        return DiskIsFull()

    monkeypatch.setattr(stage_module, "open", begun, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", b"after")
    assert (tmp_path / "a").read_bytes() == b"before"
    assert files_in(tmp_path) == ["a"]


def test_a_record_that_is_being_written_is_not_done(stage, monkeypatch):
    seen = []
    replace = os.replace

    def look(path: str, target: str) -> None:
        seen.append((stage.is_done(2), stage.done()))
        replace(path, target)

    monkeypatch.setattr(os, "replace", look)
    stage.write_record(RECORD)
    assert seen == [(False, [])]


# --- the stage ----------------------------------------------------------------------------------


def test_a_stage_is_opened_again_by_the_run_that_made_it(tmp_path):
    new_stage(tmp_path).write_record(RECORD)
    assert new_stage(tmp_path).done() == [2]


def test_a_stage_of_another_run_is_refused_and_named(tmp_path):
    stage = new_stage(tmp_path, fingerprint="theirs")
    with pytest.raises(StageError, match="belongs to another run") as raised:
        new_stage(tmp_path, fingerprint="mine")
    assert str(stage.root) in str(raised.value)


def test_a_stage_of_another_format_is_refused(tmp_path, monkeypatch):
    new_stage(tmp_path)
    monkeypatch.setattr(stage_module, "FORMAT", stage_module.FORMAT + 1)
    with pytest.raises(StageError):
        new_stage(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_stage_whose_manifest_is_damaged_is_refused(tmp_path, content):
    (new_stage(tmp_path).root / "run.json").write_text(content)
    with pytest.raises(StageError):
        new_stage(tmp_path)


def test_a_place_that_cannot_be_written_is_refused_and_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TargetNotWritableError, match="stage_dir=") as raised:
        new_stage(tmp_path / "file")
    assert str(tmp_path / "file" / "stage") in str(raised.value)


def test_a_removed_stage_takes_its_empty_folder_with_it(tmp_path):
    stage = new_stage(tmp_path / "labels.zarr.stage")
    stage.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_removed_stage_leaves_the_stages_of_other_runs(tmp_path):
    folder = tmp_path / "labels.zarr.stage"
    mine = Stage.create(folder / "mine", {"fingerprint": "mine"}, 1)
    theirs = Stage.create(folder / "theirs", {"fingerprint": "theirs"}, 1)
    mine.remove()
    assert list(folder.iterdir()) == [theirs.root]


def test_removing_a_stage_that_is_gone_is_no_error(stage):
    stage.remove()
    stage.remove()
    assert not stage.root.exists()


@pytest.mark.parametrize(
    "array",
    [np.ones((2, 3), bool), np.arange(7), np.empty(0, np.int64), np.empty((0, 4)), np.array(3.5)],
)
def test_an_array_of_the_run_survives_its_file(stage, array):
    stage.write_array("some", array)
    found = stage.read_array("some")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_an_array_that_was_not_written_is_none(stage):
    assert stage.read_array("occupancy") is None


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_an_array_of_the_run_that_ends_early_raises_stage_error_naming_its_file(stage, length):
    stage.write_array("occupancy", np.arange(100))
    path = stage.root / "occupancy.npy"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StageError) as raised:
        stage.read_array("occupancy")
    assert str(path) in str(raised.value)


def test_finished_regions_are_those_that_were_marked(stage):
    for region in (0, 17, 123_456_789):
        stage.mark_region(region)
    assert stage.finished_regions() == {0, 17, 123_456_789}


def test_a_label_image_begun_anew_has_no_finished_regions(stage):
    stage.mark_region(3)
    stage.begin_regions("a numbering")
    assert stage.finished_regions() == set()


def test_marks_of_regions_belong_to_the_numbering_they_were_begun_with(stage):
    assert not stage.regions_belong_to("a numbering")
    stage.begin_regions("a numbering")
    stage.mark_region(3)
    assert stage.regions_belong_to("a numbering")
    assert not stage.regions_belong_to("another")


# --- arrays, from several threads -----------------------------------------------------------------


def test_arrays_are_opened_by_one_thread_at_a_time(stage, monkeypatch):
    stage.write_array("a", np.arange(3))
    load, at_work, most = np.load, [], []

    def watched(*args, **kwargs):
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.002)
        at_work.pop()
        return load(*args, **kwargs)

    monkeypatch.setattr(np, "load", watched)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: int(stage.read_array("a")[2]), range(40)))
    assert found == [2] * 40
    assert max(most) == 1


def test_python_that_trips_over_another_threads_source_is_asked_once_more(stage, monkeypatch):
    stage.write_array("a", np.arange(3))
    load, errors = np.load, [SystemError("AST constructor recursion depth mismatch")]

    def trips(*args, **kwargs):
        if errors:
            raise errors.pop()
        return load(*args, **kwargs)

    monkeypatch.setattr(np, "load", trips)
    np.testing.assert_array_equal(stage.read_array("a"), np.arange(3))
