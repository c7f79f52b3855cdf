"""Workers started over SSH, by a real sshd on loopback. Needs Debian's package openssh-server."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cluster import ClusterSpec
from flows.cluster_start import await_workers, connected
from flows.own_server import free_port

EXAMPLE = Path(__file__).parents[2] / "deployments" / "clusters" / "ssh.yaml"
SSHD = Path("/usr/sbin/sshd")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SSHD.exists(), reason="needs openssh-server"),
]


@pytest.fixture
def ssh_port(tmp_path) -> Iterator[int]:
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key]
        subprocess.run(command, check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    port = free_port()
    options = {
        "ListenAddress": "127.0.0.1", "AuthorizedKeysFile": tmp_path / "user.pub",
        "StrictModes": "no", "UsePAM": "no", "PidFile": "none",
    }  # fmt: skip
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", "/dev/null", "-p", str(port), "-h", tmp_path / "host", *given],
            stderr=log,
        )
    time.sleep(1)
    yield port
    server.terminate()
    server.wait()


def test_the_example_starts_workers_on_every_host(ssh_port, tmp_path):
    example = ClusterSpec.from_yaml(EXAMPLE).model_dump()
    kwargs = {
        **example["cluster_kwargs"],
        "hosts": ["127.0.0.1", "127.0.0.1", "127.0.0.1"],
        "remote_python": sys.executable,
        "connect_options": {
            "port": ssh_port, "client_keys": [str(tmp_path / "user")], "known_hosts": None,
        },
    }  # fmt: skip
    kwargs["worker_options"] = {**kwargs["worker_options"], "n_workers": 2, "memory_limit": "1GiB"}
    spec = ClusterSpec.parse({**example, "cluster_kwargs": kwargs})
    with connected(spec, {"set_as_default": False}) as client:
        client.wait_for_workers(4, timeout=60)
        offers = await_workers(client, spec)
        assert [offer.nthreads for offer in offers] == [1, 1, 1, 1]
