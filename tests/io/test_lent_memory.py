"""Memory of blocks: nobody is handed what somebody still looks at."""

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchworks.execution.machine import held_bytes
from patchworks.io.lent_memory import LEAST_BYTES, LentMemory

PAGES = 2 * LEAST_BYTES
SHAPES = st.sampled_from(
    [((2, 3, 4), "u2"), ((LEAST_BYTES // 8,), "f8"), ((2, LEAST_BYTES), "u1"), ((PAGES,), "i4")]
)
STEPS = st.lists(st.one_of(SHAPES, st.integers(0, 5)), max_size=40)


@given(STEPS, st.sampled_from([0, LEAST_BYTES, 3 * LEAST_BYTES, 2**30]))
def test_what_is_lent_is_nobody_elses(steps, max_spare):
    memory, views = LentMemory(max_spare), []
    for number, step in enumerate(steps):
        if isinstance(step, int):
            del views[step : step + 1]
        else:
            shape, dtype = step
            lent = memory.lend(shape, np.dtype(dtype))
            assert (lent.shape, lent.dtype) == (shape, np.dtype(dtype))
            lent[...] = number
            views.append((lent[-1:], number))
            del lent
        assert memory.spare_bytes <= max_spare
        assert all((view == number).all() for view, number in views)


def test_memory_comes_back_with_the_last_view_and_is_lent_again():
    memory = LentMemory(PAGES)
    lent = memory.lend((2, LEAST_BYTES), np.dtype("u1"))
    address, view = lent.ctypes.data, lent.reshape(4, -1)[1:, ::2]
    del lent
    assert memory.spare_bytes == 0
    del view
    gc.collect()
    assert memory.spare_bytes == PAGES
    assert memory.lend((LEAST_BYTES,), np.dtype("u2")).ctypes.data == address
    memory.clear()
    assert memory.spare_bytes == 0


def test_what_comes_back_after_all_was_let_go_of_is_let_go_of_as_well():
    memory = LentMemory(4 * PAGES)
    first, second = [memory.lend((PAGES,), np.dtype("u1")) for _ in range(2)]
    del first
    memory.clear()
    del second
    assert memory.spare_bytes == 0
    third = memory.lend((PAGES,), np.dtype("u1"))  # all goes on
    del third
    assert memory.spare_bytes == PAGES


def test_what_is_not_asked_for_any_more_makes_room():
    memory = LentMemory(4 * LEAST_BYTES)
    lent = [memory.lend((LEAST_BYTES,), np.dtype("u1")) for _ in range(4)]
    del lent
    assert memory.spare_bytes == 4 * LEAST_BYTES
    larger = memory.lend((3 * LEAST_BYTES,), np.dtype("u1"))
    address = larger.ctypes.data
    del larger
    assert memory.spare_bytes == 4 * LEAST_BYTES
    again = memory.lend((3 * LEAST_BYTES,), np.dtype("u1"))
    assert again.ctypes.data == address
    assert memory.spare_bytes == LEAST_BYTES


def test_a_copy_is_of_its_own():
    memory, array = LentMemory(PAGES), np.arange(LEAST_BYTES, dtype="u2")[::2]
    copied = memory.copy_of(array)
    assert (copied == array).all()
    assert not np.shares_memory(copied, array)
    copied[...] = 0
    assert array[-1] == LEAST_BYTES - 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_let_go_of_is_the_systems_again():
    memory = LentMemory(0)
    before = held_bytes()
    lent = [memory.lend((2**22,), np.dtype("u1")) for _ in range(16)]
    for array in lent:
        array.fill(1)
    assert held_bytes() - before > 60 * 2**20
    del array, lent[::2]  # the allocator would keep what lies between others
    assert held_bytes() - before < 36 * 2**20


def test_threads_are_lent_different_memory():
    memory, start = LentMemory(3 * PAGES), threading.Barrier(4)

    def use(number):
        start.wait()
        for _ in range(500):
            lent = memory.lend((PAGES // 8,), np.dtype("i8"))
            lent[...] = number
            assert (lent == number).all()
            del lent
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(4)))
    assert memory.spare_bytes <= (3 + 4) * PAGES  # several may come back at the same time
