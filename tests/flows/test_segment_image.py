"""The flow: what it shows, refuses, keeps and returns, on a real server and real workers."""

import errno
import json
import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
import zarr
from scipy import ndimage

from flows import segment_image
from patchworks import load_ome_zarr
from patchworks.errors import InputError, SegmenterError, SourceNotFoundError, TargetExistsError
from patchworks.report import RunReport
from tests.flows.runs import task_runs

ROOT = Path(__file__).parents[2]


def an_image(folder: Path) -> Path:
    image = np.zeros((96, 96), "uint16")
    image[10:20, 10:90] = 900
    image[40:70, 30:36] = 900
    image[15, 16] = 901  # tells a function one tile from the others
    zarr.create_array(folder / "image.zarr", data=image, chunks=(32, 32))
    return folder / "image.zarr"


def latest_task_runs() -> list[tuple[str, str]]:
    return [(task.name, task.state_name) for task in task_runs()]


@pytest.mark.usefixtures("server")
class TestOnAServer:
    def test_every_step_is_a_named_task(self, tmp_path):
        source = tmp_path / "cells.tif"
        image = np.zeros((300, 300), "uint8")
        image[140:160, 20:280] = 200
        tifffile.imwrite(source, image)
        report = segment_image(
            source,
            segmenter={"name": "threshold", "value": 100},
            tile_shape=(100, 100),
            skip_empty=True,
            pyramid_levels=4,
        )
        names = [name for name, state in latest_task_runs() if state == "Completed"]
        for step in (
            "set up conversion",
            "convert level 0, regions 0",
            "finish conversion",
            "set up stage",
            "choose threshold",
            "estimate empty tiles 0",
            "segment tiles 0",
            "stitch",
            "merge regions 0",
            "finish pyramid",
        ):
            assert any(name.startswith(step) for name in names), (step, names)
        assert (report.n_objects, report.n_tiles) == (1, 9)
        assert report.n_empty + report.n_segmented == 9
        assert Path(report.labels) == tmp_path / "cells.ome.zarr" / "labels" / "labels"
        assert load_ome_zarr(tmp_path / "cells.ome.zarr", label="labels").max().compute() == 1

    def test_a_failing_tile_names_itself_and_the_rerun_goes_on(self, tmp_path):
        source, flag = an_image(tmp_path), tmp_path / "healed"

        def sometimes(tile: np.ndarray) -> np.ndarray:
            if 901 in tile and not flag.exists():
                raise RuntimeError("no luck")
            return ndimage.label(tile > 400)[0]

        run = {"segmenter": sometimes, "tile_shape": (32, 32), "write_to": tmp_path / "out.zarr"}
        run |= {"overlap": 4, "retry_delay_s": 0.1}
        with pytest.raises(SegmenterError, match=r"tile \d at \(.*sometimes.*no luck") as caught:
            segment_image(source, **run)
        assert any("kept in" in note for note in caught.value.__notes__)
        assert not (tmp_path / "out.zarr").exists()
        flag.touch()
        report = segment_image(source, **run)
        assert report.n_reused == 8, "one bad tile does not keep the others from being done"
        assert report.n_reused + report.n_segmented == 9
        assert report.n_objects == 2

    def test_a_finished_run_is_returned_without_a_flow(self, tmp_path):
        source = an_image(tmp_path)
        run = {"segmenter": "threshold", "write_to": tmp_path / "out.zarr"}
        first = segment_image(source, **run)
        n_before = len(latest_task_runs())
        again = segment_image(source, **run)
        assert (again.n_objects, again.n_segmented) == (first.n_objects, 0)
        assert len(latest_task_runs()) == n_before


class TestBeforeAnyServer:
    """Bad input is refused at once: no server, no worker, nothing written."""

    @pytest.fixture(autouse=True)
    def no_server(self, monkeypatch):
        def started(*_: object, **__: object) -> None:
            raise AssertionError("a server was started for bad input")

        monkeypatch.setattr("flows.job.prefect_server", started)

    def test_missing_path(self, tmp_path):
        with pytest.raises(SourceNotFoundError, match=r"nowhere\.zarr"):
            segment_image(tmp_path / "nowhere.zarr", segmenter="threshold")

    def test_unknown_segmenter(self, tmp_path):
        with pytest.raises(InputError, match=r"'thresold' is not known.*threshold"):
            segment_image(an_image(tmp_path), segmenter="thresold")

    def test_unknown_parameter_of_a_segmenter(self, tmp_path):
        with pytest.raises(InputError, match=r"does not take \['valu'\]"):
            segment_image(an_image(tmp_path), segmenter={"name": "threshold", "valu": 3})

    def test_bad_tile_shape(self, tmp_path):
        with pytest.raises(InputError, match="tile_shape"):
            segment_image(
                an_image(tmp_path),
                segmenter="threshold",
                tile_shape=(0, 3),
                write_to=tmp_path / "out.zarr",
            )
        assert [p.name for p in tmp_path.iterdir()] == ["image.zarr"]

    @pytest.mark.parametrize("kind", ["store", "file"])
    def test_a_function_that_cannot_be_sent(self, tmp_path, kind):
        lock = threading.Lock()

        def locks(tile: np.ndarray) -> np.ndarray:
            with lock:
                return ndimage.label(tile > 400)[0]

        source = an_image(tmp_path)
        if kind == "file":
            source = tmp_path / "image.tif"
            tifffile.imwrite(source, np.zeros((64, 64), "uint8"))
        before = sorted(tmp_path.iterdir())
        with pytest.raises(InputError, match=r"locks' cannot be sent .*lock.*tile_process"):
            segment_image(source, segmenter=locks, write_to=tmp_path / "out.zarr")
        assert sorted(tmp_path.iterdir()) == before

    def test_labels_of_another_run(self, tmp_path):
        from patchworks import tile_process
        from patchworks.segmenters import threshold

        source, target = an_image(tmp_path), tmp_path / "out.zarr"
        tile_process(source, threshold(5), write_to=target, progress=False)
        with pytest.raises(TargetExistsError, match="overwrite=True"):
            segment_image(source, segmenter={"name": "threshold", "value": 6}, write_to=target)


def test_nothing_needs_to_be_started_and_nothing_is_left(tmp_path):
    """The command, as a user types it: an own server for the run, gone with its workers."""
    source = an_image(tmp_path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    environment |= {"PATCHWORKS_DATA_DIR": str(tmp_path / "data")}
    before = {p.pid for p in psutil.process_iter()}
    done = subprocess.run(
        [
            *[sys.executable, "-m", "flows.cli", "segment", str(source)],
            *["--set", "value=400", "--tile-shape", "32,32"],
            *["--write-to", str(tmp_path / "out.zarr"), "--png", str(tmp_path / "out.png")],
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "objects               2" in done.stdout
    assert (tmp_path / "out.png").stat().st_size > 0
    attributes = json.loads((tmp_path / "out.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["patchworks"]["n_objects"] == 2
    left = [
        " ".join(p.info["cmdline"] or ())
        for p in psutil.process_iter(["cmdline"])
        if p.pid not in before
    ]
    assert not [line for line in left if str(tmp_path) in line or "prefect server" in line]


def test_an_error_of_the_command_is_one_line(tmp_path, capsys):
    from flows.cli import main

    assert main(["segment", str(tmp_path / "nowhere.zarr")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("patchworks: ")
    assert "nowhere.zarr" in error
    assert len(error.splitlines()) == 1


def test_a_picture_that_has_no_place_is_refused_before_the_run(tmp_path, capsys):
    from flows.cli import main

    source = an_image(tmp_path)
    for place, said in (("no/a.png", f"no folder {tmp_path / 'no'};"), (".", "is a folder")):
        where = ["--write-to", str(tmp_path / "out.zarr"), "--png", str(tmp_path / place)]
        assert main(["segment", str(source), *where]) == 1
        error = capsys.readouterr().err
        assert error.startswith("patchworks: --png")
        assert said in error
    assert not (tmp_path / "out.zarr").exists()


def test_a_picture_that_cannot_be_drawn_takes_no_report_away(tmp_path, capsys, monkeypatch):
    from flows.cli import main

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    report = RunReport(labels="out.zarr", n_tiles=1, n_objects=2)
    segmenting = import_module("flows.segment_image")  # `flows.segment_image` is the function
    monkeypatch.setattr(segmenting, "segment_image", lambda *_, **__: report)
    monkeypatch.setattr("flows.cli.overview_png", full)
    assert main(["segment", "image.zarr", "--png", str(tmp_path / "a.png")]) == 1
    said = capsys.readouterr()
    assert "objects               2" in said.out
    assert "No space left on device" in said.err
    assert len(said.err.splitlines()) == 1
