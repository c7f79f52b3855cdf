"""Which functions hold the interpreter's lock."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from patchworks.execution.interpreter_lock import LATE_S, LockWatch, waits_for_a_core


def watched(function, seconds=0.6):
    with LockWatch() as watch:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            function()
    return watch


def test_pure_python_holds_it():
    assert watched(lambda: sum(i & 3 for i in range(200_000))).is_held


@pytest.mark.parametrize(
    "function", [lambda: time.sleep(0.05), lambda: np.sort(np.ones(10**6)[::-1])]
)
def test_what_waits_or_computes_in_c_leaves_it(function):
    assert not watched(function).is_held


def test_a_short_look_says_nothing():
    assert not watched(lambda: sum(range(1000)), seconds=0.01).is_held


def test_the_share_counts_what_was_late_only():
    watch = LockWatch()
    watch.late_s = [LATE_S * 2] * 30 + [0.0] * 10
    assert watch.is_held
    watch.late_s = [LATE_S * 2] * 10 + [0.0] * 30
    assert not watch.is_held, "most looks found it free"


@pytest.fixture
def busy_cores():
    """Three programs for each core that do nothing but take it."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(3 * (os.cpu_count() or 1))]
    time.sleep(0.5)
    yield
    for program in programs:
        program.kill()
        program.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps account")
def test_waiting_for_a_core_is_no_waiting_for_the_lock(busy_cores):
    busy = watched(lambda: np.sort(np.ones(10**6)[::-1]), seconds=1.0)
    assert not busy.is_held
    with waits_for_a_core() as waited_s:
        before, end = waited_s(), time.perf_counter() + 0.5
        while time.perf_counter() < end:
            pass
        assert waited_s() - before > 0.1, "most of the time others had the core"


def test_a_system_that_keeps_no_account_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("patchworks.execution.interpreter_lock.SCHEDSTAT", tmp_path / "none")
    with waits_for_a_core() as waited_s:
        assert waited_s() == 0.0
    assert watched(lambda: sum(i & 3 for i in range(200_000))).is_held
