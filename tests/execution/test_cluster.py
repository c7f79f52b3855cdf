"""`make_local_cluster`: workers that keep within the memory there is and outlive long calls."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask.config
import pytest
from distributed import Client, KilledWorker, LocalCluster

from patchworks import make_local_cluster
from patchworks.errors import ClientError, InputError
from patchworks.execution.cluster import _limit_of_each, _number_of_workers
from patchworks.execution.gpus import visible_gpus
from tests.machines import GIB, control_groups, pretend
from tests.nvml import FakeInstance, FakeNvml, cards

IMPATIENT = {"distributed.scheduler.worker-ttl": "1 s"}


def hold_the_interpreter(seconds: int) -> int:
    ctypes.PyDLL(None).sleep(seconds)
    return os.getpid()


def settings_of_worker(dask_worker) -> tuple:
    config = dask.config.get("distributed.worker.memory")
    return (
        config["target"],
        config["spill"],
        config["pause"],
        dask_worker.memory_manager.memory_limit,
        sorted(dask_worker.plugins),
    )


def test_workers_are_settled_outlive_a_function_that_holds_the_interpreter_and_leave_no_trace():
    before = dict(dask.config.config)
    with dask.config.set(IMPATIENT):
        client, cluster = make_local_cluster(n_workers=1, memory_limit="1 GiB")
    with cluster, client:
        (found,) = client.run(settings_of_worker).values()
        assert found[:4] == (False, False, False, GIB)
        assert "patchworks-end-with-parent" in found[4]
        assert cluster.scheduler.worker_ttl == 7200
        assert cluster.scheduler.allowed_failures == 3
        (nanny,) = cluster.workers.values()
        assert nanny.memory_manager.memory_terminate_fraction == 0.95
        # Ten heartbeats of so small a cluster are 5 s: the least after which one is given up.
        assert cluster.scheduler.address.startswith("tcp://127.0.0.1:")
        assert client.submit(hold_the_interpreter, 1).result() > 0
    assert dict(dask.config.config) == before


@pytest.mark.slow
def test_a_worker_that_holds_the_interpreter_is_kept_where_dask_would_give_it_up():
    with dask.config.set({**IMPATIENT, "distributed.scheduler.allowed-failures": 0}):
        with (
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as plain,
            Client(plain, set_as_default=False) as client,
            pytest.raises(KilledWorker),
        ):
            client.submit(hold_the_interpreter, 15, pure=False).result()
        client, cluster = make_local_cluster(n_workers=1)
        with cluster, client:
            assert client.submit(hold_the_interpreter, 15, pure=False).result() > 0


@pytest.mark.slow
def test_a_worker_that_takes_more_than_its_memory_ends_alone_and_comes_back():
    client, cluster = make_local_cluster(n_workers=1, memory_limit=400 * 2**20)
    with cluster, client:
        first = client.submit(os.getpid, pure=False).result()
        with pytest.raises(KilledWorker):
            client.submit(lambda: [bytearray(b"x" * 2**28) for _ in range(4)] and time.sleep(9),
                          retries=0).result()  # fmt: skip
        assert client.submit(os.getpid, pure=False).result() != first


def test_limits_add_up_to_what_is_free_within_every_control_group(tmp_path, monkeypatch):
    control_groups(tmp_path, monkeypatch, {
        "a": (str(6 * GIB), str(3 * GIB), GIB), "a/b": (str(5 * GIB), "0", 0),
    })  # fmt: skip
    assert _limit_of_each(None, 4) == GIB  # 6 - 3 + 1 of the group around
    assert _limit_of_each("1 GiB", 5) == GIB
    with pytest.raises(InputError, match=r"6 workers could take 6.0 GiB.*5.0 GiB in all"):
        _limit_of_each("1 GiB", 6)


def test_a_script_without_a_guard_is_told_what_it_lacks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from patchworks import make_local_cluster\nmake_local_cluster(n_workers=1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("patchworks.errors")]
    assert len(told) == 2, "by the worker, and by the script"
    assert all('below if __name__ == "__main__":' in line for line in told)
    assert done.stderr.rstrip().endswith(told[-1])


@pytest.mark.parametrize("limit", [0, -1, "much", "-1 GB", "", True, (1,), float("nan")])
def test_a_memory_limit_that_is_none_is_refused_before_anything_starts(limit):
    with pytest.raises(InputError, match=re.escape(f"memory_limit={limit!r}")):
        make_local_cluster(n_workers=1, memory_limit=limit)


@pytest.mark.parametrize("more", [{"n_workers": 0}, {"n_workers": 1.5}, {"threads_per_worker": 0}])
def test_numbers_of_workers_and_threads_are_checked(more):
    with pytest.raises(InputError, match=f"{next(iter(more))}="):
        make_local_cluster(**more)


def test_each_gpu_has_one_worker_and_no_more(tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, gib=8, n_cores=4, gpus=cards(3))
    assert _number_of_workers(None, visible_gpus(), use_gpu=True) == 3
    with pytest.raises(InputError, match="n_workers=4: 3 GPUs are visible"):
        make_local_cluster(use_gpu=True, n_workers=4)


def test_a_gpu_cluster_without_a_gpu_is_an_error(monkeypatch):
    FakeNvml([]).install(monkeypatch)
    with pytest.raises(ClientError, match="use_gpu=True"):
        make_local_cluster(use_gpu=True)


def seen() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.slow
def test_gpu_workers_see_one_device_each_those_with_the_most_free_memory(monkeypatch):
    three = cards(2, [5 * GIB, 30 * GIB])
    three[0].instances = [FakeInstance("MIG-1", free=GIB), FakeInstance("MIG-2", free=9 * GIB)]
    FakeNvml(three).install(monkeypatch)
    client, cluster = make_local_cluster(use_gpu=True, n_workers=2, memory_limit="1 GiB")
    with cluster, client:
        assert sorted(client.run(seen).values()) == [three[1].uuid, "MIG-2"]
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert {(w["nthreads"], w["resources"]["GPU"], w["memory_limit"]) for w in workers} == {
            (1, 1.0, GIB)
        }


@pytest.mark.slow
@pytest.mark.parametrize("patient", [True, False])
def test_a_worker_that_died_may_take_long_to_come_back(patient):
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "50 ms"}):
        if patient:
            client, cluster = make_local_cluster(n_workers=1)
        else:
            cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")
            client = Client(cluster, set_as_default=False)
        with cluster, client:
            (first,) = client.run(os.getpid).values()
            os.kill(first, signal.SIGKILL)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and len(cluster.workers) == 1:
                found = list(client.run(os.getpid, on_error="ignore").values())
                if found and found != [first]:
                    break
                time.sleep(0.2)
            assert len(cluster.workers) == int(patient)
