"""What interrupted runs leave is removed when it is old, and never while somebody works on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from patchworks import tile_process
from patchworks.conversion import regions
from patchworks.conversion.plan import ConversionOptions, ConversionPlan, plan_conversion
from patchworks.conversion.run import lock_of
from patchworks.errors import SegmenterError, TargetInUseError
from patchworks.io import abandoned
from patchworks.io.abandoned import Fate, find_remains, remove
from patchworks.io.lock_owner import LockOwner
from patchworks.io.run_lock import DEAD_AFTER_S
from patchworks.plugins.ome_zarr import to_ome_zarr
from tests.images import ome_zarr, smooth_noise
from tests.rights import closed, open_folder

DAY = 86_400.0
IMAGE = smooth_noise((1, 64, 64))


def bright_or_fail(tile: np.ndarray) -> np.ndarray:
    if tile[0, 0, 0] == 60000:
        raise ValueError("no luck")
    return (tile > 1100).astype("i4")


def an_interrupted_run(folder: Path, **where: object) -> Path:
    """Leave a stage: one tile of four fails."""
    image = IMAGE.copy()
    image[0, 32, 32] = 60000
    store = ome_zarr(folder / "image.zarr", image)
    with pytest.raises(SegmenterError):
        tile_process(
            store, bright_or_fail, tile_shape=(1, 32, 32), overlap=0, progress=False, **where
        )
    return store


def an_interrupted_conversion(folder: Path) -> ConversionPlan:
    """Leave what a conversion that was killed early leaves."""
    tifffile.imwrite(folder / "scan.tif", IMAGE)
    plan = plan_conversion(folder / "scan.tif", folder / "scan.ome.zarr", ConversionOptions())
    regions.begin(plan)
    plan.reader.close()
    return plan


def age(folder: Path, seconds: float) -> None:
    """Make all that lies in a folder as old as that."""
    then = time.time() - seconds
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def clean_up(folder: Path, *, days: float = 7, dry_run: bool = False) -> dict[str, Fate]:
    found = find_remains(folder, older_than_s=days * DAY)
    return {r.path.name: remove(r, older_than_s=days * DAY, dry_run=dry_run) for r in found}


def test_the_stage_of_an_old_run_goes_and_a_young_one_stays(tmp_path):
    store = an_interrupted_run(tmp_path)
    assert clean_up(tmp_path) == {}
    age(tmp_path, 8 * DAY)
    assert set(clean_up(tmp_path, dry_run=True).values()) == {"would be removed"}
    assert (tmp_path / "image.zarr.stage").exists()
    assert set(clean_up(tmp_path).values()) == {"removed"}
    assert sorted(path.name for path in tmp_path.iterdir() if "maxima" not in path.name) == [
        "image.zarr"
    ]
    labels = tile_process(
        store, np.zeros_like, tile_shape=(1, 32, 32), overlap=0, progress=False, overwrite=True
    )
    assert labels.shape == IMAGE.shape


def test_what_is_kept_elsewhere_goes_by_the_lock_of_its_output(tmp_path):
    (tmp_path / "stages").mkdir()
    an_interrupted_run(tmp_path, stage_dir=tmp_path / "stages", write_to=tmp_path / "out.zarr")
    age(tmp_path, 8 * DAY)
    found = find_remains(tmp_path / "stages", older_than_s=7 * DAY)
    assert [remains.place for remains in found] == [tmp_path / "out.zarr"]
    with found[0].lock():
        assert remove(found[0], older_than_s=7 * DAY) == "in use"
    assert remove(found[0], older_than_s=7 * DAY) == "removed"


def test_what_a_conversion_left_goes_and_the_conversion_then_starts_over(tmp_path):
    plan = an_interrupted_conversion(tmp_path)
    age(tmp_path, 8 * DAY)
    with lock_of(plan):
        assert set(clean_up(tmp_path, dry_run=True).values()) == {"in use"}
        assert set(clean_up(tmp_path).values()) == {"in use"}
    assert set(clean_up(tmp_path).values()) == {"removed"}
    assert [path.name for path in tmp_path.iterdir()] == ["scan.tif"]
    to_ome_zarr(tmp_path / "scan.tif", tmp_path / "scan.ome.zarr", progress=False)
    assert clean_up(tmp_path, days=0) == {}


def test_of_a_replaced_image_the_old_one_goes_only_if_the_new_one_is_there(tmp_path):
    old = tmp_path / ".image.zarr.0123abcd.old"
    zarr.create_array(old, data=IMAGE)
    age(tmp_path, 8 * DAY)
    assert clean_up(tmp_path) == {}, "it is all there is"
    zarr.create_array(tmp_path / "image.zarr", data=IMAGE)
    assert clean_up(tmp_path) == {old.name: "removed"}


@pytest.mark.parametrize("name", ["a.stage", ".a.stage", ".a.zarr.0123abcg.stage", "a.partial"])
def test_folders_of_others_are_left_alone(tmp_path, name):
    (tmp_path / name / "0").mkdir(parents=True)
    (tmp_path / name / "0" / "run.json").write_text(json.dumps({"labels": "/x"}))
    age(tmp_path, 8 * DAY)
    assert clean_up(tmp_path) == {}


@pytest.mark.parametrize("name", ["b", "b.zarr.stage"])
def test_a_folder_that_may_not_be_looked_into_hides_no_other(name, caplog):
    with open_folder() as place:
        left, private = place / ".a.zarr.0123abcd.partial", place / name
        also = place / "c" / ".c.zarr.0123abcd.stage"
        for folder in (left, private, also):
            folder.mkdir(parents=True)
        with closed(private):
            found = find_remains(place, older_than_s=0)
    assert [remains.path for remains in found] == [left, also]
    [said] = caplog.messages
    assert said.startswith(f"{private} cannot be looked into")


def test_a_misspelt_folder_is_told(tmp_path, caplog):
    assert find_remains(tmp_path / "dat", older_than_s=0) == []
    assert caplog.messages == [f"{tmp_path / 'dat'} is no folder: nothing can be found there"]


def test_what_a_run_takes_away_while_folders_are_looked_at_is_not_found(tmp_path, monkeypatch):
    names = [f".{letter}.zarr.0123abcd.partial" for letter in "abc"]
    for name in names:
        (tmp_path / name).mkdir()
    measured = abandoned._measured

    def one_ends(path: Path, place: Path) -> abandoned.Remains:
        if path.name == names[0]:
            (tmp_path / names[1]).rmdir()
        return measured(path, place)

    monkeypatch.setattr(abandoned, "_measured", one_ends)
    found = find_remains(tmp_path, older_than_s=0)
    assert [remains.path.name for remains in found] == [names[0], names[2]]


def test_an_owner_on_another_machine_is_known_by_its_heartbeat(tmp_path):
    plan = an_interrupted_conversion(tmp_path)
    age(tmp_path, 8 * DAY)
    owner = LockOwner.of_this_process()
    elsewhere = json.loads(owner.to_bytes()) | {"host": "other", "machine": "another"}
    lock = lock_of(plan).path
    lock.write_text(json.dumps(elsewhere))
    assert set(clean_up(tmp_path).values()) == {"in use"}
    then = time.time() - DEAD_AFTER_S - 5
    os.utime(lock, (then, then))
    assert set(clean_up(tmp_path).values()) == {"removed"}


HOLDS = """
import sys, time
from pathlib import Path
from patchworks.io.location import Location
from patchworks.io.run_lock import RunLock, lock_path_of
with RunLock(lock_path_of(Location(sys.argv[1])), "image"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_of_a_run_that_is_killed_the_remains_are_free_at_once(tmp_path):
    plan = an_interrupted_conversion(tmp_path)
    age(tmp_path, 8 * DAY)
    held = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(plan.place)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert held.stdout.readline() == b"held\n"
        assert set(clean_up(tmp_path).values()) == {"in use"}
        with pytest.raises(TargetInUseError):
            to_ome_zarr(tmp_path / "scan.tif", tmp_path / "scan.ome.zarr", progress=False)
    finally:
        held.kill()
        held.wait()
        held.stdout.close()
    assert set(clean_up(tmp_path).values()) == {"removed"}
