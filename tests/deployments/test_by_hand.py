"""PostgreSQL, server and worker for real. Needs Debian's package postgresql; takes minutes."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr

from tests.deployments.by_hand import Facility, facility

pytestmark = pytest.mark.slow

SEGMENTS_SLOWLY = """
import sys, time, uuid
from pathlib import Path
from scipy import ndimage
from flows import segment_image

def segment(tile, calls=sys.argv[3]):
    Path(calls, f"{tile.sum()}-{uuid.uuid4().hex}").touch()
    time.sleep(1)
    return ndimage.label(tile > 200)[0]

if __name__ == "__main__":
    result = segment_image(
        sys.argv[1], segmenter=segment, write_to=sys.argv[2],
        tile_shape=(32, 32), overlap=4, max_workers=2,
    )
    print(result.n_objects)
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Facility]:
    with facility() as started:
        yield started


def listening(port: int) -> set[str]:
    found = psutil.net_connections("inet")
    return {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port == port}


def test_nothing_listens_outside_loopback(place):
    for name in ("PREFECT_SERVER_API_PORT", "PATCHWORKS_DATABASE_PORT"):
        assert listening(int(place.settings[name])) == {"127.0.0.1"}
    ours = {p.pid for part in ("server", "postgres", "worker-cpu") for p in place.processes(part)}
    connections = psutil.net_connections("inet")
    open_to = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN and c.pid in ours}
    assert open_to == {"127.0.0.1"}


def test_who_gives_no_password_is_refused(place):
    url = f"{place.settings['PREFECT_API_URL']}/flows/count"
    request = urllib.request.Request(url, data=b"{}", headers={"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)


def test_what_is_secret_is_its_owners_alone(place):
    assert (place.folder / "facility.env").stat().st_mode & 0o777 == 0o600
    password = place.settings["PREFECT_SERVER_API_AUTH_STRING"].partition(":")[2]
    assert len(password) >= 32
    logs = "".join(path.read_text() for path in (place.folder / "log").iterdir())
    assert password not in logs
    for name in ("server", "worker-cpu", "postgres"):
        assert not any(password in " ".join(p.cmdline()) for p in place.processes(name))


def test_started_twice_it_is_still_one(place):
    before = [p.pid for p in place.processes("server")]
    assert "server runs already" in place.script("start")
    assert [p.pid for p in place.processes("server")] == before
    assert place.script("status").splitlines() == [
        "postgres runs", "server runs", "worker-cpu runs",
    ]  # fmt: skip


@pytest.mark.parametrize("killed", ["postgres", "server"])
def test_a_run_outlasts_what_is_killed_in_its_middle(place, killed, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (256, 192)).astype("u1")
    zarr.create_array(tmp_path / "image.zarr", data=image, chunks=(32, 32))
    calls = tmp_path / "calls"
    calls.mkdir()
    script = tmp_path / "run.py"
    script.write_text(SEGMENTS_SLOWLY)
    environment = {**place.environment, **place.settings, "PREFECT_HOME": str(tmp_path / "home")}
    run = subprocess.Popen(
        [sys.executable, script, tmp_path / "image.zarr", tmp_path / "labels.zarr", calls],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(list(calls.iterdir())) < 10 and run.poll() is None:
        time.sleep(0.2)
    place.kill(killed)
    output, log = run.communicate(timeout=300)
    assert run.returncode == 0, log
    assert int(output) == len(np.unique(zarr.open_array(tmp_path / "labels.zarr/0")[:])) - 1
    per_tile = Counter(path.name.partition("-")[0] for path in calls.iterdir())
    assert sum(per_tile.values()) == len(per_tile) == 48
    assert state_of_latest_run(place) == "Completed"


def test_a_backup_comes_back(place, tmp_path):
    settings = place.settings
    environment = {**place.environment, "PGPASSWORD": settings["PATCHWORKS_DATABASE_PASSWORD"]}
    there = ["-h", "127.0.0.1", "-p", settings["PATCHWORKS_DATABASE_PORT"], "-U", "patchworks"]

    def postgres(program: str, *arguments: object) -> str:
        done = subprocess.run(
            [program, *there, *map(str, arguments)], env=environment, capture_output=True,
            text=True, check=True, timeout=120,
        )  # fmt: skip
        return done.stdout

    count = "select count(*) from flow_run"
    postgres("pg_dump", "-Fc", "-f", tmp_path / "prefect.dump", "prefect")
    postgres("createdb", "restored")
    restore = ("pg_restore", "--clean", "--if-exists", "-d", "restored", tmp_path / "prefect.dump")
    postgres(*restore)
    found = postgres("psql", "-At", "-d", "restored", "-c", count)
    assert found == postgres("psql", "-At", "-d", "prefect", "-c", count)
    assert int(found) >= 1


def state_of_latest_run(place: Facility) -> str:
    code = (
        "from tests.flows.runs import latest_run; import json; "
        "print(json.dumps(latest_run().state_name))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], env={**place.environment, **place.settings},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return str(json.loads(told.stdout.splitlines()[-1]))
