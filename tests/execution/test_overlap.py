"""Laws of the overlap: every item once, errors with their item, few items held at a time."""

import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.execution.overlap import Recall, most_at_once, overlapped


def run(items, *, read=lambda i: i, compute=lambda v: v, write=lambda v: v, n_workers=1):
    return list(overlapped(items, read=read, compute=compute, write=write, n_workers=n_workers))


@pytest.mark.parametrize("n_workers", [1, 2, 5])
@given(st.lists(st.integers(), max_size=40))
@settings(max_examples=20)
def test_every_item_goes_through_each_part_once(n_workers, items):
    found = run(
        items,
        read=lambda i: ("read", i),
        compute=lambda v: ("computed", v),
        write=lambda v: ("written", v),
        n_workers=n_workers,
    )
    expected = [("written", ("computed", ("read", i))) for i in items]
    assert Counter(f.result() for f in found) == Counter(expected)


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("part", ["read", "compute", "write"])
def test_an_error_stays_with_its_item(n_workers, part):
    def fail_at_3(value):
        if value == 3:
            raise ValueError("three")
        return value

    found = run(range(10), **{part: fail_at_3}, n_workers=n_workers)
    errors = [f.exception() for f in found if f.exception() is not None]
    assert [str(e) for e in errors] == ["three"]
    assert sorted(f.result() for f in found if f.exception() is None) == [0, 1, 2, *range(4, 10)]


def test_the_next_is_read_and_the_last_is_written_while_one_is_computed():
    reads, computes = [threading.Event() for _ in range(6)], [threading.Event() for _ in range(6)]

    def read(item):
        reads[item].set()
        return item

    def compute(item):
        computes[item].set()
        assert item == 5 or reads[item + 1].wait(10), "the next is not read meanwhile"
        return item

    def write(item):
        assert item == 5 or computes[item + 1].wait(10), "the next is not computed meanwhile"

    assert [f.exception() for f in run(range(6), read=read, compute=compute, write=write)] == [
        None
    ] * 6


@pytest.mark.parametrize("n_workers", [1, 2, 6])
def test_few_items_are_held_at_a_time(n_workers):
    held, most, lock = 0, 0, threading.Lock()

    def read(item):
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return item

    def write(value):
        nonlocal held
        time.sleep(0.002)
        with lock:
            held -= 1

    run(range(100), read=read, write=write, n_workers=n_workers)
    assert most <= most_at_once(n_workers)


def test_one_worker_waits_for_the_first_items_one_by_one():
    done, seen, lock = [], {}, threading.Lock()

    def read(item):
        with lock:
            seen[item] = list(done)
        time.sleep(0.02)
        with lock:
            done.append(item)
        return item

    run(range(8), read=read, compute=lambda _: time.sleep(0.03))
    assert (seen[0], seen[1], seen[2]) == ([], [0], [0, 1])


def test_one_worker_computes_in_the_calling_thread():
    found = run(range(5), compute=lambda _: threading.current_thread())
    assert {f.result() for f in found} == {threading.current_thread()}


@pytest.mark.parametrize("n_workers", [1, 2])
def test_closing_begins_nothing_more(n_workers):
    begun = []
    work = overlapped(
        range(1000), read=begun.append, compute=lambda v: v, write=lambda v: v, n_workers=n_workers
    )
    next(work)
    work.close()
    n_begun = len(begun)
    time.sleep(0.05)
    assert len(begun) == n_begun < 200


def test_an_interrupt_in_the_function_is_raised_and_what_was_computed_is_written():
    written = []

    def compute(value):
        if value == 4:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        run(range(100), compute=compute, write=written.append)
    assert sorted(written) == [0, 1, 2, 3]


@pytest.mark.parametrize("n_workers", [1, 2, 5])
@pytest.mark.parametrize("n_before", [0, 1, 7, 30])
def test_what_is_asked_back_is_computed_by_nobody_and_all_else_once(n_workers, n_before):
    recall: Recall[int] = Recall()
    if n_before == 0:
        recall.ask()
    todo, computed, at_once, n_begun = iter(range(30)), [], [], 0

    def compute(value):
        computed.append(value)
        time.sleep(0.001)
        return value

    work = overlapped(
        todo, read=lambda i: i, compute=compute, write=lambda v: v,
        n_workers=n_workers, recall=recall,
    )  # fmt: skip
    finished = []
    for future in work:
        finished.append(future.result())
        if len(finished) == n_before:
            recall.ask()
            at_once, n_begun = [*recall.returned, *todo], len(computed)
    assert sorted(finished) == sorted(computed)
    left = at_once or [*recall.returned, *todo]
    assert sorted([*finished, *left]) == list(range(30))
    assert len(finished) >= n_before
    # Nobody takes another one: at most, each was about to begin with one.
    assert len(computed) <= n_begun + n_workers
