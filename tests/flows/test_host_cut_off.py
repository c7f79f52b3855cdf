"""Two hosts, of which one loses its network in the middle of a run. Needs root and iproute2.

The second host is a network namespace of this machine; its network is a pair of virtual cards.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from flows.own_server import free_port
from tests.flows.test_hosts import ROOT

NEAR, FAR = "10.77.0.1", "10.77.0.2"
HOST, CARD = "patchworks-far", "pw-near"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
        reason="makes a network namespace: needs Linux, root and iproute2",
    ),
]

RUN = """
import sys, time
from pathlib import Path
from scipy import ndimage
from flows import segment_image

def segment(tile, calls=sys.argv[3]):
    import distributed, uuid
    time.sleep(0.5)
    host = distributed.get_worker().address.split("/")[-1].split(":")[0]
    Path(calls, f"{host}-{uuid.uuid4().hex}").touch()
    return ndimage.label(tile > 200)[0]

if __name__ == "__main__":
    result = segment_image(
        sys.argv[1], segmenter=segment, write_to=sys.argv[2], tile_shape=(32, 32), overlap=4,
        cluster={"kind": "address", "address": sys.argv[4]},
    )
    print(result.n_objects)
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def network() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        ip("netns", "add", HOST)
        stack.callback(ip, "netns", "del", HOST)
        ip("link", "add", CARD, "type", "veth", "peer", "name", "pw-far", "netns", HOST)
        stack.callback(ip, "link", "del", CARD)
        ip("addr", "add", f"{NEAR}/24", "dev", CARD)
        ip("link", "set", CARD, "up")
        ip("-n", HOST, "addr", "add", f"{FAR}/24", "dev", "pw-far")
        ip("-n", HOST, "link", "set", "pw-far", "up")
        ip("-n", HOST, "link", "set", "lo", "up")
        yield


class Machines:
    """Programs on the two hosts, ended with the test."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.stack = stack

    def start(
        self, *command: str, far: bool = False, **environment: str
    ) -> subprocess.Popen[bytes]:
        there = ["ip", "netns", "exec", HOST] if far else []
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*there, sys.executable, "-m", *command], cwd=self.folder, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )  # fmt: skip
        self.stack.callback(process.wait, 20)
        self.stack.callback(process.kill)
        return process


@pytest.fixture
def machines(tmp_path, network) -> Iterator[Machines]:
    with contextlib.ExitStack() as stack:
        yield Machines(tmp_path, stack)


def await_server(url: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        time.sleep(0.5)
    raise AssertionError(f"no server at {url}")


def test_a_host_is_cut_off_and_the_result_is_the_same(machines, tmp_path):
    server_port, port, calls = free_port(), free_port(), tmp_path / "calls"
    calls.mkdir()
    url = f"http://{NEAR}:{server_port}/api"
    address = f"tcp://{NEAR}:{port}"
    home = {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_API_URL": url}
    machines.start("prefect", "server", "start", "--host", NEAR, "--port", str(server_port), **home)
    machines.start("dask", "scheduler", "--host", NEAR, "--port", str(port), "--no-dashboard")
    worker = ("dask", "worker", address, "--nthreads", "1", "--no-dashboard")
    machines.start(*worker, "--host", NEAR)
    machines.start(*worker, "--host", FAR, far=True)
    await_server(url)
    image = np.random.default_rng(0).integers(0, 256, (320, 256)).astype("u1")
    zarr.create_array(tmp_path / "image.zarr", data=image, chunks=(32, 32))
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def run(labels: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, script, tmp_path / "image.zarr", tmp_path / labels, calls, address],
            env={**os.environ, "PYTHONPATH": str(ROOT), **home},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    whole = run("whole.zarr")
    output, log = whole.communicate(timeout=300)
    assert whole.returncode == 0, log
    hosts = {path.name.partition("-")[0] for path in calls.iterdir()}
    assert hosts == {NEAR, FAR}

    for path in calls.iterdir():
        path.unlink()
    cut = run("cut.zarr")
    while len(list(calls.glob(f"{FAR}-*"))) < 6 and cut.poll() is None:
        time.sleep(0.1)
    ip("link", "set", CARD, "down")
    # Programs on this host still reach each other at its address.
    output_of_cut, log = cut.communicate(timeout=400)
    assert cut.returncode == 0, log
    assert output_of_cut == output
    expected = zarr.open_array(tmp_path / "whole.zarr/0")[:]
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "cut.zarr/0")[:], expected)
    assert len(list(calls.glob(f"{NEAR}-*"))) > 40
