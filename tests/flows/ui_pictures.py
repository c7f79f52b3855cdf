"""Pictures of the Prefect UI for the docs: `python -m tests.flows.ui_pictures docs/pictures`.

Runs flows on a server and a history of its own, and photographs what people see of them.
"""

import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact
from scipy import ndimage

from flows import segment_image
from flows.history import DATA_DIR
from flows.segment_image import segment_image_flow
from flows.server import prefect_server
from patchworks.errors import SegmenterError
from tests.flows.browser import Page, page
from tests.flows.example_package import install, run_python
from tests.flows.runs import latest_run

NUCLEI = Path(__file__).parents[2] / "docs" / "nuclei.tif"
TILES: dict[str, Any] = {"tile_shape": (64, 64), "overlap": 32}
BAD_TILE = np.s_[288:416, 288:416]
"""What the tile in row 5 and column 5 reads."""

WIDTH, HEIGHT = 1300, 1000


class Nuclei:
    """Smooths and thresholds; takes its time; fails on one tile until a file is there."""

    def __init__(self, flag: Path, seconds: float) -> None:
        self.flag = flag
        self.seconds = seconds
        self.bad_mean = tifffile.imread(NUCLEI)[BAD_TILE].mean()

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        if tile.mean() == self.bad_mean and not self.flag.exists():
            raise ValueError("both percentiles are 12: nothing to normalise by")
        return ndimage.label(ndimage.gaussian_filter(tile.astype("float32"), 1.5) > 47)[0]


class Camera:
    """Takes pictures of the latest flow run."""

    def __init__(self, tab: Page, ui: str, target: Path) -> None:
        self.tab = tab
        self.ui = ui
        self.target = target

    def run_page(self, name: str, state: str, *, shown: str = "Logs", height: int = HEIGHT) -> None:
        self.tab.resize(WIDTH, height)
        run = latest_run()
        self.tab.open(f"{self.ui}/runs/flow-run/{run.id}", run.name, state)
        time.sleep(4)  # the graph draws itself
        self.tab.click(shown)
        self.tab.picture(self.target / f"{name}.png")

    def find(self, key: str) -> Artifact:
        """The artifact of the latest run, once it is there."""
        mine = FlowRunFilter(id=FlowRunFilterId(any_=[latest_run().id]))
        with get_client(sync_client=True) as client:
            while True:
                for artifact in client.read_artifacts(flow_run_filter=mine, limit=50):
                    if artifact.key == key:
                        return artifact
                time.sleep(0.2)

    def artifact(
        self, key: str, name: str, *wanted: str, height: int = HEIGHT, share: float = 1.0
    ) -> None:
        self.tab.resize(WIDTH, height)
        self.tab.open(f"{self.ui}/artifacts/artifact/{self.find(key).id}", key, *wanted)
        self.tab.picture(self.target / f"{name}.png", share=share)

    def form(self, deployment: Any) -> None:
        """The form of a deployment: its top, its groups, and the other segmenters."""
        self.tab.resize(WIDTH, 1060)
        self.tab.open(f"{self.ui}/deployments/deployment/{deployment}/run", "Submit")
        self.tab.picture(self.target / "form.png")
        self.tab.scroll_to("tiles (Optional)")
        self.tab.picture(self.target / "form-groups.png")
        self.tab.scroll_to("segmenter (Optional)")
        self.tab.click("Imported")
        self.tab.resize(WIDTH, 560)
        self.tab.scroll_to("segmenter (Optional)")
        self.tab.picture(self.target / "form-imported.png")

    def example_form(self, deployment: Any) -> None:
        """The form where a package offers a segmenter of its own, filled in."""
        self.tab.resize(WIDTH, 1000)
        self.tab.open(f"{self.ui}/deployments/deployment/{deployment}/run", "Submit", "Example")
        self.tab.fill("image", "docs/nuclei.tif")
        self.tab.click("Example", tag="button")
        self.tab.wait_for("Brighter By")
        self.tab.fill("Size (Optional)", "81")
        self.tab.picture(self.target / "form-example.png")


DEPLOY = """
import json
from flows.segment_image import segment_image_flow
print(json.dumps(str(segment_image_flow.to_deployment(name="example").apply())))
"""


def take_all(camera: Camera, scans: Path, api: str) -> None:
    """Run flows in `scans` and take pictures of them."""
    image = scans / "nuclei.tif"
    segment_image(image, segmenter={"name": "threshold", "sigma": 1.5}, **TILES)
    camera.run_page("run", "Completed")
    camera.run_page("artifacts", "Completed", shown="Artifacts")
    camera.artifact("result", "result", "To open it", height=1480, share=0.7)
    camera.artifact("steps", "steps", "total", height=640)

    slow = Nuclei(scans / "healed", 1.0)
    again: dict[str, Any] = {**TILES, "output_component": "slow", "max_workers": 2}
    failing = threading.Thread(target=fails, args=(image, slow, again))
    before = latest_run().id
    failing.start()
    while latest_run().id == before:
        time.sleep(0.2)
    while "left," not in (camera.find("segment-tiles").description or ""):
        time.sleep(0.2)
    camera.run_page("running", "Running", shown="Artifacts", height=860)
    camera.artifact("segment-tiles", "progress", "left,", height=420)
    failing.join()
    camera.run_page("failed", "Failed")
    camera.artifact("how-to-go-on", "how-to-go-on", "How to go on", height=1100)

    slow.flag.touch()
    segment_image(image, segmenter=slow, **again)
    camera.run_page("cached", "Completed", shown="Task Runs", height=1300)
    camera.form(segment_image_flow.to_deployment(name="nuclei").apply())
    install(scans / "packages")
    camera.example_form(run_python(DEPLOY, scans / "packages", PREFECT_API_URL=api))


def fails(image: Path, segmenter: Nuclei, options: dict[str, Any]) -> None:
    """Run a flow that ends at the bad tile."""
    try:
        segment_image(image, segmenter=segmenter, **options)
    except SegmenterError as error:
        print(error, *error.__notes__, sep="\n  ")


def main(target: str) -> None:
    """Take all pictures."""
    Path(target).mkdir(parents=True, exist_ok=True)
    scans = Path(tempfile.mkdtemp(prefix="scans-"))
    os.environ[DATA_DIR] = str(scans / "data")
    try:
        shutil.copy(NUCLEI, scans)
        with prefect_server(announce=True) as server, page() as tab:
            take_all(Camera(tab, server.ui_url, Path(target)), scans, server.url)
    finally:
        shutil.rmtree(scans, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
