"""Seams judged by several task runs: the same numbers, and never those of other tiles."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from flows import segment_image
from patchworks import pipeline, tile_process
from patchworks.errors import ClientError
from patchworks.io.stage import Stage
from tests.flows.runs import states, task_runs
from tests.images import above_1100, files_of, smooth_noise

TILES = {"tile_shape": (32, 32), "overlap": 4}
N_TILES = 6 * 6


@pytest.fixture(autouse=True)
def _many_batches(workers, monkeypatch):
    monkeypatch.setitem(TILES, "cluster", workers)
    monkeypatch.setattr("flows.segmentation.MIN_JOINED", 10)


def an_image(folder: Path) -> Path:
    zarr.create_array(folder / "image.zarr", data=smooth_noise((192, 192)), chunks=(32, 32))
    return folder / "image.zarr"


def test_seams_judged_in_batches_give_the_same_bytes(tmp_path):
    source = an_image(tmp_path)
    tiles = {k: v for k, v in TILES.items() if k != "cluster"}
    tile_process(source, above_1100, write_to=tmp_path / "library.zarr", progress=False, **tiles)
    segment_image(source, segmenter=above_1100, write_to=tmp_path / "flow.zarr", **TILES)
    names = sorted(run.name for run in task_runs() if run.name.startswith("judge seams"))
    assert names == [f"judge seams of tiles {span}" for span in ("0-11", "12-23", "24-35")]
    assert files_of(tmp_path / "flow.zarr") == files_of(tmp_path / "library.zarr")


@pytest.mark.slow
def test_what_was_judged_is_cached_until_a_tile_is_done_anew(tmp_path, monkeypatch):
    source, place = an_image(tmp_path), tmp_path / "labels.zarr"
    begin, moments = pipeline.begin_label_image, ["first", "second"]

    def interrupted(*args):
        if moments:
            raise ClientError(moments.pop(0))
        return begin(*args)

    monkeypatch.setattr(pipeline, "begin_label_image", interrupted)
    run = {"segmenter": above_1100, "write_to": place, **TILES}
    with pytest.raises(ClientError, match="first"):
        segment_image(source, **run)
    assert states("judge seams") == {"Completed": 3}
    with pytest.raises(ClientError, match="second"):
        segment_image(source, **run)
    assert states("judge seams") == {"Cached": 3}
    [stage] = [Stage(path.parent) for path in tmp_path.rglob("run.json")]
    next(stage.root.rglob("00000017.rec")).unlink()
    report = segment_image(source, **run)
    assert states("judge seams") == {"Completed": 3}
    assert report.n_segmented == 1
    assert np.asarray(zarr.open_group(place, mode="r")["0"]).max() == report.n_objects
