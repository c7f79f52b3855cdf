"""Which functions hold the interpreter's lock."""

import time

import numpy as np
import pytest

from patchworks.execution.interpreter_lock import LATE_S, LockWatch


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
