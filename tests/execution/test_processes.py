"""Worker processes: ready before they are needed, and no more threads in them than cores."""

import os
import time

import pytest

from patchworks.execution.machine import available_cores, cores_of_this_process
from patchworks.execution.processes import NATIVE_THREADS, ProcessExecutor, share_of_cores


def of_environment(batch):
    return {name: os.environ.get(name) for name in NATIVE_THREADS}


def process_of(batch):
    time.sleep(0.2)
    return os.getpid()


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in NATIVE_THREADS:
        monkeypatch.delenv(name, raising=False)


def test_each_process_gets_its_share_of_the_cores(monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    with ProcessExecutor(2) as processes:
        [found, _] = list(processes.map(of_environment, [[0], [1]]))
    share = str(max(1, available_cores() // 2))
    assert found == dict.fromkeys(NATIVE_THREADS, share) | {"MKL_NUM_THREADS": "7"}


@pytest.mark.parametrize("n_workers, n_cores, share", [(1, 8, "8"), (3, 8, "2"), (8, 2, "1")])
def test_a_share_is_a_core_at_least(n_workers, n_cores, share):
    assert set(share_of_cores(n_workers, n_cores).values()) == {share}


@pytest.mark.parametrize("said, n_cores", [("1", 1), ("", None), ("no", None), ("9999", None)])
def test_a_library_uses_the_share_of_its_process(monkeypatch, said, n_cores):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert cores_of_this_process() == (n_cores or available_cores())


def test_they_start_once_and_before_there_is_work():
    with ProcessExecutor(2) as processes:
        processes.start()
        end = time.monotonic() + 60
        while not processes.is_ready:
            assert time.monotonic() < end
            time.sleep(0.05)
        first = set(processes.map(process_of, [[0], [1], [2], [3]]))
        assert set(processes.map(process_of, [[0], [1], [2], [3]])) == first
        assert os.getpid() not in first
    assert len(first) == 2


def test_one_that_was_never_needed_starts_nothing():
    with ProcessExecutor(2) as processes:
        assert processes._pools == []


def holds_a_model(batch):
    import builtins

    if not hasattr(builtins, "_model_of_the_test"):  # this function is sent by value
        builtins._model_of_the_test = bytearray(400 * 2**20)
    time.sleep(1.1)
    return os.getpid()


@pytest.mark.slow
def test_a_worker_that_loads_a_large_model_stays():
    with ProcessExecutor(1) as processes:
        assert list(processes.map(os.path.basename, ["started"])) == ["started"]
        assert len(set(processes.map(holds_a_model, [[0], [1], [2], [3]]))) == 1
