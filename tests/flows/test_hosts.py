"""A scheduler and workers that others started (`dask scheduler`, `dask worker`), on several hosts.

The hosts are loopback addresses of this machine: 127.0.0.1, 127.0.0.2, 127.0.0.3.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest
from prefect import flow, task
from prefect.context import FlowRunContext
from prefect.futures import wait

from flows.cluster import ClusterSpec
from flows.cluster_start import await_workers, connected
from flows.errors import ServerError
from flows.runners import ClusterRunner
from flows.workers import WITHOUT_GPU, check_workers_reach, check_workers_see, place
from patchworks.errors import ClientError

ROOT = Path(__file__).parents[2]
QUIET = {"set_as_default": False}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux answers at all of 127.0.0.0/8"
)


class Hosts:
    """A scheduler, and workers wherever they are asked for."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        file = folder / "scheduler.json"
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                   "--dashboard-address", "127.0.0.1:0",
                   "--scheduler-file", str(file))  # fmt: skip
        deadline = time.monotonic() + 30
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.file = file
        with distributed.Client(scheduler_file=str(file), **QUIET) as client:
            self.address = client.scheduler.address

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / "dask.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.stack.callback(process.wait, 20)
        self.stack.callback(process.terminate)
        return process

    def worker(self, name: str, *options: str, host: str = "127.0.0.1", **environment: str) -> None:
        self.start("worker", self.address, "--name", name, "--host", host, "--nthreads", "1",
                   "--no-dashboard", "--memory-limit", "1GiB", *options, **environment)  # fmt: skip

    @property
    def spec(self) -> ClusterSpec:
        return ClusterSpec(kind="address", address=self.address, wait_for_workers_s=60)

    def wait_for(self, n_workers: int) -> None:
        with connected(self.spec, QUIET) as client:
            client.wait_for_workers(n_workers, timeout=60)


@pytest.fixture
def hosts(tmp_path) -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        yield Hosts(tmp_path, stack)


Where = tuple[str, str]


def where() -> Where:
    worker = distributed.get_worker()
    return str(worker.name), worker.address.split("/")[-1].split(":")[0]


@task
def segment() -> Where:
    time.sleep(0.3)
    return where()


@task
def merge() -> Where:
    time.sleep(0.3)
    return where()


@flow
def segment_and_merge() -> tuple[set[Where], set[Where], tuple[int, int]]:
    runner = FlowRunContext.get().task_runner
    with runner.placed("segment"):
        segmented = [segment.submit() for _ in range(8)]
    with runner.placed("other"):
        merged = [merge.submit() for _ in range(8)]
    wait(segmented + merged)
    return (
        {future.result() for future in segmented},
        {future.result() for future in merged},
        (runner.n_slots("segment"), runner.n_slots("other")),
    )


def run_on(hosts: Hosts) -> tuple[set[Where], set[Where], tuple[int, int]]:
    return segment_and_merge.with_options(task_runner=ClusterRunner(hosts.spec))()


@pytest.mark.usefixtures("server")
@pytest.mark.slow
def test_a_flow_runs_across_two_hosts(hosts):
    hosts.worker("a", host="127.0.0.2")
    hosts.worker("b", host="127.0.0.3")
    hosts.wait_for(2)
    segmented, merged, slots = run_on(hosts)
    both = {("a", "127.0.0.2"), ("b", "127.0.0.3")}
    assert segmented | merged == both
    assert slots == (2, 2)
    # What was there before the flow is there after it.
    with connected(hosts.spec, QUIET) as client:
        assert len(await_workers(client, hosts.spec)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--resources", "CPU=1"), id="labelled CPU workers"),
        pytest.param((), id="workers without a label"),
    ],
)
@pytest.mark.usefixtures("server")
def test_workers_that_offer_a_gpu_segment_and_only_those(hosts, options):
    hosts.worker("gpu", "--resources", "GPU=1", host="127.0.0.2")
    hosts.worker("cpu", *options, host="127.0.0.3")
    hosts.wait_for(2)
    segmented, merged, slots = run_on(hosts)
    assert segmented == {("gpu", "127.0.0.2")}
    assert merged == {("cpu", "127.0.0.3")}
    assert slots == (1, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_gpu_workers_alone_do_everything(hosts):
    hosts.worker("gpu", "--resources", "GPU=1")
    hosts.wait_for(1)
    segmented, merged, slots = run_on(hosts)
    assert segmented == merged == {("gpu", "127.0.0.1")}
    assert slots == (1, 1)


def die_once(trace: str) -> Where:
    with Path(trace).open("a") as file:
        file.write("x")
    if Path(trace).stat().st_size == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return where()


@pytest.mark.slow
def test_a_worker_without_a_label_keeps_its_mark_when_it_starts_again(hosts, tmp_path):
    # The label of one of them comes from its configuration.
    (tmp_path / "gpu.yaml").write_text("distributed: {worker: {resources: {GPU: 1}}}")
    hosts.worker("gpu", DASK_CONFIG=str(tmp_path / "gpu.yaml"))
    hosts.worker("cpu")
    hosts.wait_for(2)
    with connected(hosts.spec, QUIET) as client:
        placement = place(client, await_workers(client, hosts.spec))
        assert placement.other == {WITHOUT_GPU: 1}
        # The only worker for it dies with it: nobody else may take it, and it must not wait for
        # ever.
        tried = client.submit(die_once, str(tmp_path / "tries"), resources=placement.other)
        assert tried.result(timeout=60)[0] == "cpu"
        # One that comes later is marked as well.
        hosts.worker("late")
        client.wait_for_workers(3, timeout=60)
        taken = client.map(lambda _: (time.sleep(0.5), where()[0])[1], range(8), pure=False,
                           resources=placement.other)  # fmt: skip
        assert set(client.gather(taken)) == {"cpu", "late"}
        # A second run finds the marks of the first.
        assert place(client, await_workers(client, hosts.spec)) == placement


def test_a_worker_that_does_not_reach_the_server_or_see_the_stage_is_named(hosts, tmp_path):
    # As behind a proxy that leads nowhere.
    hosts.worker("far", host="127.0.0.2", http_proxy="http://127.0.0.1:9", no_proxy="")
    hosts.wait_for(1)
    with connected(hosts.spec, QUIET) as client:
        with pytest.raises(
            ServerError, match=r"(?s)Worker far at tcp://127\.0\.0\.2:.*loopback.*--host 0\.0\.0\.0"
        ):
            check_workers_reach(client, "http://127.0.0.1:4200/api", within_s=1)
        check_workers_see(client, tmp_path)
        with pytest.raises(ClientError, match=r"(?s)Worker far at .*No such file.*stage_dir="):
            check_workers_see(client, tmp_path / "elsewhere", within_s=1)


def test_without_workers_the_message_says_how_to_start_one(hosts):
    spec = hosts.spec.model_copy(update={"wait_for_workers_s": 0.5})
    with (
        connected(spec, QUIET) as client,
        pytest.raises(ClientError, match=rf"dask worker {hosts.address}"),
    ):
        await_workers(client, spec)


@pytest.mark.slow
def test_a_worker_without_the_package_is_named(hosts, tmp_path):
    # Isolated from what is installed here: a finder that knows nothing of it.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Nothing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('flows', 'patchworks'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Nothing())\n"
    )
    hosts.worker("bare", PYTHONPATH=str(tmp_path))
    hosts.wait_for(1)
    with (
        connected(hosts.spec, QUIET) as client,
        pytest.raises(ClientError, match=r"(?s)Worker bare at .*No module named.*same version"),
    ):
        check_workers_see(client, tmp_path)
