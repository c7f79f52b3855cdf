"""The whole of it, for real: server, pools, workers, deployments, files that come, outages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import IntervalSchedule

from tests.images import smooth_noise
from tests.inbox.facility import Facility, a_facility, most_at_once, schedules_work
from tests.inbox.receivers import mail_server, web_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

DATA = Path(__file__).parents[3] / "shared" / "data"
REAL = ("stardist_img2d.tif", "maize_clsm.tif", "ctc_N2DL-HeLa_02_t0-2_img.tif")
ONE_WORKER = "cluster: {n_workers: 1}\n"


@pytest.fixture
def facility(tmp_path: Path) -> Iterator[Facility]:
    with a_facility(tmp_path) as made:
        yield made


def drop_small_images(inbox: Path, n_images: int) -> None:
    for number in range(n_images):
        file = inbox / f"{number:02d}.tif"
        tifffile.imwrite(file, smooth_noise((32, 32), seed=number))
        os.utime(file, (1_700_000_000 + number, 1_700_000_000 + number))


def drop_images_of_four_tiles(inbox: Path, n_images: int) -> set[str]:
    """Return by what voxel each tile is known."""
    marks = set()
    for number in range(n_images):
        image = smooth_noise((32, 32), seed=number)
        for tile, corner in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
            image[corner] = 60000 + 10 * number + tile
            marks.add(str(image[corner]))
        file = inbox / f"{number:02d}.tif"
        tifffile.imwrite(file, image)
        os.utime(file, (1_700_000_000 + number, 1_700_000_000 + number))
    return marks


def with_mail_block(folder: Path) -> str:
    """Say to Python, as an installation does, that the server is to load the block for e-mail."""
    info = folder / "site" / "patchworks_entry-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: patchworks-entry\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[prefect.collections]\npatchworks = flows.facility.mail\n"
    )
    return str(info.parent)


@schedules_work
@pytest.mark.skipif(not DATA.is_dir(), reason="real files are not here")
def test_three_real_files_and_a_broken_one(facility, tmp_path, monkeypatch):
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([with_mail_block(tmp_path), path]))
    with web_server() as (web_port, posts), mail_server() as (mail_port, mails):
        facility.extra = {
            "PATCHWORKS_WEBHOOK_URL": f"http://127.0.0.1:{web_port}/hook",
            "PATCHWORKS_MAIL_URL": (
                f"mailto://127.0.0.1:{mail_port}?from=patchworks@example.org&to=a@example.org"
            ),
        }
        facility.start_server()
        began = time.monotonic()
        print(facility.deploy("--schedules", "on"))
        print(f"deployed in {time.monotonic() - began:.1f} s")
        for pool in ("cpu", "light"):
            facility.start_worker(pool)
        (facility.inbox / "patchworks.yaml").write_text(ONE_WORKER)
        for name in REAL:
            shutil.copy(DATA / name, facility.inbox)
        content = (DATA / "cluster.nd2").read_bytes()
        (facility.inbox / "broken.nd2").write_bytes(content[: len(content) // 2])

        def ended() -> bool | None:
            return (facility.n("done"), facility.n("quarantined")) == (3, 1) or None

        facility.await_("three done and one quarantined", ended, 600)
        facility.await_("word of the failure", lambda: (posts and mails) or None, 120)
    print((facility.inbox / "quarantine" / "broken.nd2.txt").read_text())
    print(posts[0], mails[0][:600], sep="\n")
    assert "process broken.nd2 has failed" in posts[0]
    assert "process broken.nd2 has failed" in mails[0]
    for name in REAL:
        image = facility.inbox / "results" / f"{name.removesuffix('.tif')}.ome.zarr"
        labels = zarr.open_array(image / "labels" / "labels" / "0", mode="r")
        n_objects = int(np.max(labels[...]))
        print(f"{name}: {labels.shape}, {n_objects} objects")
        assert n_objects > 20
    runs = facility.runs("process ")
    assert Counter(run.state_name for run in runs) == {"Completed": 3, "Failed": 1}
    assert all(run.parent_task_run_id for run in runs), "parts of the pass that asked for them"


def test_fifty_images_two_at_a_time(facility):
    facility.start_server()
    facility.deploy()
    drop_small_images(facility.inbox, 50)
    # What is carried out makes no difference.
    (facility.inbox / "patchworks.yaml").write_text("deployment: quick/cpu\n")
    for pool in ("cpu", "light"):
        facility.start_worker(pool)
    with facility.client() as client:
        inbox = client.read_deployment_by_name("process inbox/inbox").id
    facility.take_up(inbox)
    began = time.monotonic()
    facility.await_("fifty images", lambda: facility.n("done") == 50 or None, 1200)
    print(f"fifty images in {time.monotonic() - began:.0f} s")
    runs = facility.runs("process ")
    assert [run.name for run in runs] == [f"process {n:02d}.tif" for n in range(50)], "in order"
    assert {run.state_name for run in runs} == {"Completed"}
    spans = [(run.created, run.end_time) for run in runs]  # from the asking on
    print(f"at most {most_at_once(spans)} at a time")
    assert most_at_once(spans) == 2
    assert len(list((facility.inbox / "results").glob("*.ome.zarr"))) == 50


@schedules_work
def test_worker_and_server_are_killed_in_the_middle(facility, tmp_path):
    calls = tmp_path / "calls"
    facility.extra = {"CALLS_OF_THE_TEST": str(calls)}
    facility.start_server()
    facility.deploy("--schedules", "on", "--dead-after", "75")
    with facility.client() as client:
        inbox = client.read_deployment_by_name("process inbox/inbox")
        facility.trust(client, inbox)
    (facility.inbox / "patchworks.yaml").write_text(
        f"{ONE_WORKER}segmenter: {{import: 'tests.inbox.counting:segment'}}\n"
        "tiles: {tile_shape: [16, 16], overlap: 0}\n"
    )
    n_images, n_tiles = 6, 4
    wanted = drop_images_of_four_tiles(facility.inbox, n_images)
    for pool in ("cpu", "light"):
        facility.start_worker(pool)

    def at_work() -> bool | None:
        if not calls.exists():
            return None
        done = facility.n("done")
        return (done >= 1 and len(calls.read_text().split()) > n_tiles * done + 1) or None

    facility.await_("an image and a bit", at_work, 300)
    n_done = facility.n("done")
    for pool in ("cpu", "light"):
        facility.kill(f"worker-{pool}")
    print(f"workers killed with {n_done} done, {len(calls.read_text().split())} tiles begun")
    for pool in ("cpu", "light"):
        facility.start_worker(pool)
    facility.await_("another image", lambda: facility.n("done") > n_done or None, 500)
    n_done = facility.n("done")
    facility.kill("server")
    print(f"server killed with {n_done} done")
    time.sleep(10)
    facility.start_server()
    began = time.monotonic()
    facility.await_("all images", lambda: facility.n("done") == n_images or None, 600)
    print(f"all done {time.monotonic() - began:.0f} s after the server was back")
    assert facility.n("quarantined") == facility.n("open") == 0
    completed = Counter(r.name for r in facility.runs("process ") if r.state_name == "Completed")
    print(Counter(run.state_name for run in facility.runs("process ")))
    assert completed == {f"process {number:02d}.tif": 1 for number in range(n_images)}
    begun = Counter(calls.read_text().split())
    assert set(begun) == wanted
    twice = {tile: n for tile, n in begun.items() if n > 1}
    print(f"tiles begun more than once: {twice}")
    assert sum(twice.values()) - len(twice) <= 2, "those that the kill cut off"


def test_a_watcher_and_a_trigger_in_place_of_the_schedule(facility):
    facility.start_server()
    facility.deploy()
    (facility.inbox / "patchworks.yaml").write_text(ONE_WORKER)
    for pool in ("cpu", "light"):
        facility.start_worker(pool)
    facility.start(
        "watch", "-m", "flows.cli", "watch", str(facility.inbox), "--settle", "4", "--every", "1"
    )
    facility.await_("the watcher", lambda: "watching" in facility.log_of("watch") or None, 60)
    drop_small_images(facility.inbox, 2)
    began = time.monotonic()
    facility.await_("two images", lambda: facility.n("done") == 2 or None, 240)
    print(f"two images {time.monotonic() - began:.0f} s after they came")
    assert len(facility.runs("process ")) == 2


def test_the_same_on_a_laptop(facility):
    facility.start_server()
    (facility.inbox / "patchworks.yaml").write_text(ONE_WORKER)
    drop_small_images(facility.inbox, 2)
    facility.start("serve", "deployments/serve.py", str(facility.inbox))

    def deployed() -> object:
        with facility.client() as client:
            found = [d for d in client.read_deployments() if d.name == "inbox"]
            return found[0].id if found else None

    inbox = facility.await_("the deployments", deployed, 90)
    facility.take_up(inbox)
    facility.await_("two images", lambda: facility.n("done") == 2 or None, 240)


def test_deploy_changes_nothing_that_people_set(facility):
    facility.start_server()
    facility.deploy("--schedules", "on", "--gpus", "3")
    with facility.client() as client:
        before = client.read_deployment_by_name("process inbox/inbox")
        facility.trust(client, before)
    said = subprocess.run(
        [sys.executable, "-m", "flows.cli", "deploy"], cwd=Path(__file__).parents[2],
        env=facility.environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    print(said)
    assert "process inbox/inbox: on" in said
    assert "GPU slots             3" in said
    with facility.client() as client:
        after = client.read_deployment_by_name("process inbox/inbox")
        n_automations = len(client.read_automations())
    assert after.id == before.id
    assert after.parameters["inbox"] == str(facility.inbox)
    assert after.parameters["taking"]["trust_settings"] is True
    assert n_automations == 3


def test_deploy_takes_away_nothing_that_people_added(facility):
    webhook = {"PATCHWORKS_WEBHOOK_URL": "http://127.0.0.1:9/hook"}
    mail = {"PATCHWORKS_MAIL_URL": "mailto://127.0.0.1:9?from=a@example.org&to=b@example.org"}
    facility.extra = webhook | mail
    facility.start_server()
    facility.deploy("--dead-after", "3600")
    second = DeploymentScheduleCreate(
        schedule=IntervalSchedule(interval=timedelta(seconds=600)),
        parameters={"inbox": "/data/second"},
    )
    with facility.client() as client:
        inbox = client.read_deployment_by_name("process inbox/inbox").id
        (first,) = client.read_deployment_schedules(inbox)
        client.update_deployment_schedule(inbox, first.id, parameters={"work_dir": "/data/work"})
        (made,) = client.create_deployment_schedules(inbox, [second])
    for facility.extra, options in ((webhook, ()), ({}, ("--schedules", "off"))):
        facility.deploy(*options)
        with facility.client() as client:
            schedules = client.read_deployment_schedules(inbox)
            of_file, added = sorted(schedules, key=lambda schedule: schedule.id == made.id)
            (dead,) = client.read_automations_by_name("patchworks - dead runs")
            (word,) = client.read_automations_by_name("patchworks - word of failures")
        assert (of_file.slug, of_file.active) == ("every-five-minutes", False)
        assert of_file.parameters == {"work_dir": "/data/work"}
        assert (added.id, added.schedule) == (made.id, made.schedule)
        assert added.active == (not options)
        assert added.parameters == {"inbox": "/data/second"}
        assert dead.trigger.within == timedelta(seconds=3600)
        assert len({action.block_document_id for action in word.actions}) == 2
