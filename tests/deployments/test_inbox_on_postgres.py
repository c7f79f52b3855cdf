"""Fifty images through an inbox on PostgreSQL, by the real flow; takes a quarter of an hour."""

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

from flows.inbox.ledger import Ledger
from tests.deployments.by_hand import Facility, facility
from tests.images import smooth_noise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parents[2]
N_IMAGES = 50

TELL_RUNS = """
import json
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
with get_client(sync_client=True) as client:
    runs = client.read_flow_runs(limit=200, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
print(json.dumps([
    [r.name, r.state_name, r.created.timestamp(), r.start_time and r.start_time.timestamp(),
     r.end_time and r.end_time.timestamp()] for r in runs if r.name.startswith("process ")
]))
"""


def run(place: Facility, *command: str) -> str:
    done = subprocess.run(
        command, env={**place.environment, **place.settings}, cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def most_at_once(spans: list[tuple[float, float]]) -> int:
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    return int(np.cumsum([change for _, change in edges]).max())


def test_fifty_images_two_at_a_time(tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "patchworks.yaml").write_text("cluster: {n_workers: 1}\n")
    for number in range(N_IMAGES):
        file = inbox / f"{number:02d}.tif"
        tifffile.imwrite(file, smooth_noise((64, 64), seed=number))
        os.utime(file, (1_700_000_000 + number, 1_700_000_000 + number))
    with facility(workers="light:20 cpu:2") as place:
        run(place, sys.executable, "-m", "flows.cli", "deploy", "--inbox", str(inbox))
        began = time.monotonic()
        run(place, "prefect", "deployment", "run", "process inbox/inbox")
        ledger = Ledger(inbox / ".ledger")
        while time.monotonic() - began < 2700:
            time.sleep(2)
            if (inbox / ".ledger" / "done").exists() and len(ledger.keys("done")) == N_IMAGES:
                break
        print(f"{N_IMAGES} images in {time.monotonic() - began:.0f} s")
        runs = json.loads(run(place, sys.executable, "-c", TELL_RUNS).splitlines()[-1])
    assert [name for name, *_ in runs] == [f"process {n:02d}.tif" for n in range(N_IMAGES)]
    assert {state for _, state, *_ in runs} == {"Completed"}
    print(f"at work at once: {most_at_once([(start, end) for *_, start, end in runs])}")
    assert most_at_once([(start, end) for *_, start, end in runs]) == 2
    assert most_at_once([(created, end) for _, _, created, _, end in runs]) == 2
    for number in range(N_IMAGES):
        labels = inbox / "results" / f"{number:02d}.ome.zarr" / "labels" / "labels" / "0"
        assert zarr.open_array(labels)[:].max() >= 1
