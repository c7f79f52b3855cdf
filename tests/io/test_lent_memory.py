"""Memory of blocks: nobody is handed what somebody still looks at."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patchworks.io.lent_memory import LentMemory

SHAPES = st.sampled_from([((2, 3, 4), "u2"), ((6,), "f8"), ((48,), "u1"), ((1, 2), "i4")])
STEPS = st.lists(st.one_of(SHAPES, st.integers(0, 5)), max_size=40)


@given(STEPS, st.integers(0, 4))
def test_what_is_lent_is_nobody_elses(steps, max_spare):
    memory, views = LentMemory(48, max_spare), []
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
        assert memory.n_spare <= max_spare
        assert all((view == number).all() for view, number in views)


def test_memory_comes_back_with_the_last_view_and_is_lent_again():
    memory = LentMemory(64, 1)
    lent = memory.lend((8, 8), np.dtype("u1"))
    address, view = lent.ctypes.data, lent.reshape(4, 16)[1:, ::2]
    del lent
    assert memory.n_spare == 0
    del view
    gc.collect()
    assert memory.n_spare == 1
    assert memory.lend((4, 8), np.dtype("u2")).ctypes.data == address
    memory.clear()
    assert memory.n_spare == 0


def test_threads_are_lent_different_memory():
    memory, start = LentMemory(800, 3), threading.Barrier(4)

    def use(number):
        start.wait()
        for _ in range(500):
            lent = memory.lend((100,), np.dtype("i8"))
            lent[...] = number
            assert (lent == number).all()
            del lent
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(4)))
    assert memory.n_spare <= 3 + 4  # several may come back at the same time
