"""Workers labelled as GPU workers beside CPU workers: what runs where, and what is left behind.

The devices are named, not there: what is tested is the way of a task to its worker.
"""

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dask.config
import distributed
import psutil
import pytest
from prefect import flow, task
from prefect.context import FlowRunContext
from prefect.futures import wait

from flows.cluster import ClusterSpec
from flows.cluster_start import await_workers, connected
from flows.runners import ClusterRunner
from patchworks.errors import ClientError
from patchworks.execution.cluster import cpu_workers, gpu_workers, spec_cluster

ROOT = Path(__file__).parents[2]
QUIET = {"set_as_default": False}
TWO_AND_TWO = ClusterSpec(gpus=["0", "1"], n_workers=2, memory_limit="1 GiB")

Where = tuple[str, str | None, int]


def where() -> Where:
    return (
        str(distributed.get_worker().name),
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        os.getpid(),
    )


@task
def segment(seconds: float) -> Where:
    time.sleep(seconds)
    return where()


@task
def merge(seconds: float) -> Where:
    time.sleep(seconds)
    return where()


@flow
def segment_and_merge(cluster: ClusterSpec) -> tuple[list[Where], list[Where], tuple[int, int]]:
    runner = FlowRunContext.get().task_runner
    runner.use(cluster)
    segmented, merged = [], []
    for _ in range(12):
        with runner.placed("segment"):
            segmented.append(segment.submit(0.1))
        with runner.placed("other"):
            merged.append(merge.submit(0.1))
    wait(segmented + merged)
    return (
        [future.result() for future in segmented],
        [future.result() for future in merged],
        (runner.n_slots("segment"), runner.n_slots("other")),
    )


@flow
def fail_while_tasks_run(cluster: ClusterSpec) -> None:
    runner = FlowRunContext.get().task_runner
    runner.use(cluster)
    with runner.placed("segment"):
        for _ in range(4):
            segment.submit(60.0)
    raise KeyError("on purpose")


@flow
def use_too_late() -> None:
    runner = FlowRunContext.get().task_runner
    with runner.placed("other"):
        merge.submit(0.0)
    runner.use(ClusterSpec(n_workers=2))


def children() -> set[int]:
    # The first spawn starts the resource tracker of multiprocessing, once for this process.
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    }


@pytest.mark.usefixtures("server")
@pytest.mark.slow
def test_segmentation_runs_on_the_gpus_alone_and_the_rest_beside_them():
    before = children()
    runner = ClusterRunner()
    segmented, merged, slots = segment_and_merge.with_options(task_runner=runner)(TWO_AND_TWO)
    assert {(name, gpu) for name, gpu, _ in segmented} == {("gpu-0", "0"), ("gpu-1", "1")}
    assert {name for name, _, _ in merged} == {"cpu-0", "cpu-1"}
    assert {gpu for _, gpu, _ in merged} == {os.environ.get("CUDA_VISIBLE_DEVICES")}
    assert len({process for _, _, process in segmented + merged}) == 4
    assert slots == (2, 2)
    assert children() == before


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_flow_that_fails_leaves_no_process():
    before = children()
    with pytest.raises(KeyError, match="on purpose"):
        fail_while_tasks_run.with_options(task_runner=ClusterRunner())(
            ClusterSpec(gpus=["0"], n_workers=1, memory_limit="1 GiB")
        )
    assert children() == before


@pytest.mark.usefixtures("server")
def test_a_cluster_that_has_started_cannot_be_exchanged():
    runner = ClusterRunner(ClusterSpec(n_workers=1, memory_limit="1 GiB"))
    with pytest.raises(ClientError, match=r"has started: cluster \(kind: local, n_workers: 1"):
        use_too_late.with_options(task_runner=runner)()


def test_prefect_copies_the_spec_and_not_the_cluster():
    runner = ClusterRunner(TWO_AND_TWO, client_kwargs={"name": "mine"})
    copy = runner.duplicate()
    assert copy == runner
    assert copy is not runner
    assert copy.client_kwargs["name"] == "mine"
    copy.use(ClusterSpec())
    assert copy != runner
    assert runner.spec == TWO_AND_TWO


@pytest.mark.slow
def test_two_clusters_of_gpu_workers_stand_beside_each_other_on_loopback():
    def listening():
        found = psutil.Process().net_connections("tcp")
        return {one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN}

    workers = gpu_workers(["3"], memory_limit="1 GiB")
    with spec_cluster(workers) as one, spec_cluster(cpu_workers(1, nthreads=2)) as other:
        with distributed.Client(one, **QUIET) as client:
            assert client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).popitem()[1] == "3"
            assert client.run(listening).popitem()[1] == {"127.0.0.1"}
        with distributed.Client(other, **QUIET) as client:
            assert set(client.nthreads().values()) == {2}


def hold_the_interpreter(seconds: int) -> int:
    ctypes.PyDLL(None).sleep(seconds)
    return os.getpid()


@pytest.mark.slow
def test_a_worker_whose_function_holds_the_interpreter_is_left_alone():
    spec = ClusterSpec(n_workers=1, memory_limit="1 GiB")
    with connected(spec, QUIET) as client:
        first = client.submit(os.getpid, pure=False)
        while first.status != "finished":
            time.sleep(0.1)
        held = client.submit(hold_the_interpreter, 45)
        time.sleep(1)
        started = time.monotonic()
        # A result that lies on that worker is waited for, not declared lost.
        assert first.result() == held.result()
        assert time.monotonic() - started > 40
        assert client.run(os.getpid).popitem()[1] == held.result()


def die_once(trace: str) -> int:
    with Path(trace).open("a") as file:
        file.write("x")
    if Path(trace).stat().st_size == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@pytest.mark.slow
def test_a_worker_that_is_killed_comes_back_with_its_gpu_however_long_it_takes(tmp_path):
    spec = ClusterSpec(gpus=["1"], n_workers=1, memory_limit="1 GiB")
    trace = tmp_path / "tries"
    # What a segmenter imports may take long on a machine that has much to do.
    slow_import = tmp_path / "slow_import.py"
    slow_import.write_text(
        f"import time, pathlib\ntime.sleep(18 if pathlib.Path({str(trace)!r}).exists() else 0)\n"
    )
    with (
        dask.config.set({"distributed.worker.preload": [str(slow_import)]}),
        connected(spec, QUIET) as client,
    ):
        await_workers(client, spec)
        tried = client.submit(die_once, str(trace), resources={"GPU": 1})
        assert tried.result(timeout=60) > 0
        assert trace.stat().st_size == 2
        gone = client.submit(where, resources={"GPU": 1}, pure=False).result(timeout=60)
        assert gone[:2] == ("gpu-0", "1")


KILLED = textwrap.dedent(
    """\
    import ctypes, sys, time
    import psutil
    from flows.cluster import ClusterSpec
    from flows.cluster_start import connected

    def hold(seconds, n):
        ctypes.PyDLL(None).sleep(seconds)

    if __name__ == "__main__":
        spec = ClusterSpec(gpus=["0", "1"], n_workers=1, memory_limit="1 GiB")
        with connected(spec, {"set_as_default": False}) as client:
            work = [client.submit(hold, 120, n, resources={"GPU": 1}) for n in range(2)]
            work.append(client.submit(time.sleep, 120, resources={"CPU": 1}))
            time.sleep(2)
            print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
            time.sleep(120)
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a function may end first")
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_no_worker_outlives_the_process_of_the_flow(tmp_path, how):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    ) as process:
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) >= 3
        process.send_signal(how)
        process.wait(20)
    _, left = psutil.wait_procs(workers, timeout=20)
    for each in left:
        each.kill()
    assert left == []
