"""Pictures of a facility for the docs: `python -m tests.inbox.pictures docs/pictures`.

A server, workers and deployments of its own; three files and a broken one come into the inbox.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import tifffile
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.flows.browser import Page, page
from tests.images import smooth_noise
from tests.inbox.facility import Facility, a_facility

NUCLEI = Path(__file__).parents[2] / "docs" / "nuclei.tif"
WIDTH = 1300


def picture(tab: Page, target: Path, name: str, height: int) -> None:
    tab.resize(WIDTH, height)
    time.sleep(3)
    tab.picture(target / f"facility-{name}.png")


def drop_files(inbox: Path) -> None:
    (inbox / "patchworks.yaml").write_text(
        "segmenter: {name: threshold, sigma: 1.5}\n"
        "tiles: {tile_shape: [128, 128], overlap: 32}\n"
        "cluster: {n_workers: 1}\n"
    )
    shutil.copy(NUCLEI, inbox / "monday.tif")
    shutil.copy(NUCLEI, inbox / "tuesday.tif")
    tifffile.imwrite(inbox / "wednesday.tif", smooth_noise((512, 512), seed=3))
    (inbox / "broken.tif").write_bytes(NUCLEI.read_bytes()[:100_000])


def take_all(facility: Facility, tab: Page, target: Path) -> None:
    ui = facility.url.removesuffix("/api")
    facility.start_server()
    facility.deploy("--schedules", "on", interval_s=60)
    for pool in ("cpu", "light"):
        facility.start_worker(pool)
    with facility.client() as client:  # one that is for other tests
        client.delete_deployment(client.read_deployment_by_name("quick/cpu").id)
    time.sleep(75)  # until the server has heard of the workers
    tab.open(f"{ui}/deployments", "process inbox", "clean up", within_s=60)
    picture(tab, target, "deployments", 800)
    tab.open(f"{ui}/work-pools", "light", within_s=60)
    picture(tab, target, "pools", 700)
    drop_files(facility.inbox)
    facility.await_("the first image", lambda: facility.n("open") or None, 300)
    time.sleep(20)
    tab.open(f"{ui}/runs", "process", within_s=60)
    picture(tab, target, "running", 1000)

    def ended() -> bool | None:
        return (facility.n("done"), facility.n("quarantined")) == (3, 1) or None

    facility.await_("three done and one quarantined", ended, 600)
    time.sleep(5)
    [run] = facility.runs("process broken")
    tab.open(f"{ui}/runs/flow-run/{run.id}", "Failed", within_s=60)
    picture(tab, target, "quarantined", 742)
    tab.open(f"{ui}/runs", "process", within_s=60)
    picture(tab, target, "done", 1000)
    tab.open(f"{ui}/automations", "patchworks", within_s=60)
    picture(tab, target, "automations", 800)


def main(target: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="patchworks-facility-"))
    with (
        a_facility(folder) as facility,
        page(width=WIDTH) as tab,
        temporary_settings({PREFECT_API_URL: facility.url}),
    ):
        take_all(facility, tab, target)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
