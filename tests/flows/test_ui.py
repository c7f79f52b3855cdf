"""The pages of a run, as a browser shows them."""

import pytest

from flows import segment_image
from tests.flows.browser import CHROMIUM, page
from tests.flows.runs import latest_run, task_runs
from tests.flows.test_resume import an_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


def test_the_page_of_a_run_shows_its_steps_and_artifacts(tmp_path, server, workers):
    segmenter = {"name": "threshold", "value": 1100}
    segment_image(
        an_image(tmp_path),
        segmenter=segmenter,
        tile_shape=(64, 64),
        overlap=4,
        write_to=tmp_path / "labels.zarr",
        cluster=workers,
    )
    names = {run.name for run in task_runs(n_expected=7)}
    run = latest_run()
    assert run.name == "segment image.zarr"
    with page() as tab:
        tab.open(f"{server.ui_url}/runs/flow-run/{run.id}", run.name, "Completed", "objects in")
        assert tab.click("Task Runs")
        assert {"set up stage", "stitch", "merge regions 0"} < names
        tab.wait_for(*names)
        assert tab.click("Artifacts")
        tab.wait_for("segment-tiles", "9 of 9 tiles", "steps", "result", "Labels of image.zarr")
