"""Called again after any end: finished batches show as Cached, half-finished ones go on."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy import ndimage

from flows import segment_image
from patchworks import tile_process
from patchworks.errors import SegmenterError, TargetExistsError
from tests.flows.runs import states, task_runs
from tests.images import files_of


@pytest.fixture(autouse=True)
def on_shared_workers(workers, monkeypatch):
    monkeypatch.setitem(TILES, "cluster", workers)


TILES = {"tile_shape": (32, 32), "overlap": 4, "retry_delay_s": 0.0}
N_TILES = 6 * 6
LATE_TILE = 30
"""A tile of the last batch."""


def an_image(folder: Path, name: str = "image.zarr") -> Path:
    noise = np.random.default_rng(3).normal(0, 1, (192, 192))
    image = (1000 + 8000 * ndimage.gaussian_filter(noise, 2.5)).clip(0).astype("uint16")
    image[::32, ::32] = np.arange(36).reshape(6, 6) + 60000  # tells a function its tile
    zarr.create_array(folder / name, data=image, chunks=(32, 32))
    return folder / name


class Sometimes:
    """Fails on a late tile until a file is there, and notes its calls in a folder."""

    def __init__(self, folder: Path, error: type[Exception] = ValueError, value: int = 1100):
        self.folder = folder
        self.error = error
        self.value = value

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        (self.folder / "calls").mkdir(exist_ok=True)
        n_calls = len(list((self.folder / "calls").iterdir()))
        (self.folder / "calls" / f"{n_calls}-{np.random.default_rng().integers(2**60)}").touch()
        if LATE_TILE + 60000 in tile and not (self.folder / "healed").exists():
            raise self.error("no luck")
        return ndimage.label(tile > self.value)[0]

    @property
    def n_calls(self) -> int:
        return len(list((self.folder / "calls").iterdir()))

    def heal(self) -> None:
        (self.folder / "healed").touch()


def fails(source: Path, segmenter: Sometimes, **run) -> None:
    with pytest.raises(SegmenterError, match="no luck"):
        segment_image(source, segmenter=segmenter, **{**TILES, **run})


def test_a_rerun_shows_finished_batches_as_cached_and_does_only_what_is_left(tmp_path):
    source, segmenter = an_image(tmp_path), Sometimes(tmp_path)
    run = {"write_to": tmp_path / "out.zarr"}
    fails(source, segmenter, **run)
    assert states("segment tiles")["Failed"] >= 1
    n_done = states("segment tiles")["Completed"]
    n_calls = segmenter.n_calls
    segmenter.heal()
    report = segment_image(source, segmenter=segmenter, **TILES, **run)
    found = states("segment tiles")
    assert n_done <= found["Cached"] < len(list(found.elements()))
    assert found["Completed"] + found["Cached"] == len(list(found.elements()))
    # Neighbours of the late tile read it too, and failed as well.
    assert segmenter.n_calls - n_calls == report.n_segmented
    assert report.n_segmented + report.n_reused == N_TILES
    tile_process(source, segmenter, write_to=tmp_path / "whole.zarr", progress=False,
                 tile_shape=(32, 32), overlap=4)  # fmt: skip
    ours, theirs = files_of(tmp_path / "out.zarr"), files_of(tmp_path / "whole.zarr")
    assert ours == theirs


class WithAnIntruder(Sometimes):
    """Another program writes to the run's output as soon as it segments."""

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        with suppress(FileExistsError):
            (self.folder / "intruder").mkdir()
            zarr.create_group(self.folder / "out.zarr", attributes={"ome": {"image-label": {}}})
        return super().__call__(tile)


def test_what_comes_to_the_output_meanwhile_stays(tmp_path):
    source, segmenter = an_image(tmp_path), WithAnIntruder(tmp_path)
    segmenter.heal()
    place = tmp_path / "out.zarr"
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        segment_image(source, segmenter=segmenter, write_to=place, **TILES)
    assert dict(zarr.open_group(place, mode="r").attrs) == {"ome": {"image-label": {}}}
    segment_image(source, segmenter=segmenter, write_to=place, overwrite=True, **TILES)
    assert segmenter.n_calls == N_TILES
    assert zarr.open_group(place, mode="r")["0"].shape == (192, 192)


def test_an_error_that_heals_is_tried_again_and_others_are_not(tmp_path):
    source = an_image(tmp_path)
    for error, runs_of_a_batch in ((ConnectionError, 3), (ValueError, 1)):
        folder = tmp_path / error.__name__
        folder.mkdir()
        fails(source, Sometimes(folder, error), write_to=folder / "out.zarr", retries=2)
        failed = [r for r in task_runs() if r.state_name == "Failed"]
        assert {run.run_count for run in failed} == {runs_of_a_batch}


def test_a_wrong_shape_is_not_tried_again(tmp_path):
    with pytest.raises(SegmenterError, match="returned shape"):
        segment_image(an_image(tmp_path), segmenter=lambda tile: tile[1:].astype(int), **TILES,
                      write_to=tmp_path / "out.zarr")  # fmt: skip
    assert {run.run_count for run in task_runs() if run.state_name == "Failed"} == {1}


@pytest.mark.parametrize(
    "change",
    [
        "function",
        *[
            pytest.param(change, marks=pytest.mark.slow)
            for change in ("stage", "image", "parameter", "tiles")
        ],
    ],
)
def test_what_changed_never_meets_an_old_result(tmp_path, change):
    source, segmenter = an_image(tmp_path), Sometimes(tmp_path)
    run = {"write_to": tmp_path / "out.zarr"}
    fails(source, segmenter, **run)
    segmenter.heal()
    before = segmenter.n_calls
    if change == "image":
        zarr.open_array(source, mode="r+")[5, 5] = 7
    elif change == "function":
        segmenter = lambda tile: ndimage.label(tile > 1200)[0]  # noqa: E731
    elif change == "parameter":
        segmenter = Sometimes(tmp_path, value=1300)
    elif change == "tiles":
        run["tile_shape"] = (32, 33)
    else:
        stages = tmp_path / "out.zarr.stage"
        for stage in stages.iterdir():
            for part in ("records", "labels", "run.json"):
                found = stage / part
                found.unlink() if found.is_file() else __import__("shutil").rmtree(found)
    report = segment_image(source, segmenter=segmenter, **{**TILES, **run})
    assert states("segment tiles")["Cached"] == 0
    assert report.n_reused == 0
    if change != "function":
        assert Sometimes(tmp_path).n_calls - before == report.n_tiles


def test_a_tile_whose_record_was_deleted_is_done_again(tmp_path):
    source, segmenter = an_image(tmp_path), Sometimes(tmp_path)
    run = {"write_to": tmp_path / "out.zarr"}
    fails(source, segmenter, **run)
    segmenter.heal()
    record = next((tmp_path / "out.zarr.stage").rglob("00000000.rec"))
    record.unlink()
    before = len(list((tmp_path / "out.zarr.stage").rglob("*.rec")))
    report = segment_image(source, segmenter=segmenter, **TILES, **run)
    assert report.n_segmented == N_TILES - before
