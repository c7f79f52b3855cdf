"""Turns: one at a time, lowest rank first."""

from __future__ import annotations

import random
import threading
import time

from patchworks.io.turns import Turns


def test_of_those_who_wait_the_lowest_rank_is_next_and_nobody_is_beside():
    turns, order, inside = Turns(), [], []
    ranks = random.Random(3).sample(range(50), 12)

    def take(rank: int) -> None:
        with turns.of(rank):
            inside.append(rank)
            assert len(inside) == 1
            order.append(rank)
            inside.remove(rank)

    threads = [threading.Thread(target=take, args=(rank,)) for rank in [*ranks, ranks[0]]]
    with turns.of(99):
        for thread in threads:
            thread.start()
        while len(turns._waiting) < len(threads):
            time.sleep(0.001)
        assert not order
    for thread in threads:
        thread.join(10)
    assert order == sorted([*ranks, ranks[0]])


def test_an_error_gives_the_turn_on():
    turns = Turns()
    try:
        with turns.of(1):
            raise ValueError
    except ValueError:
        pass
    with turns.of(2):
        pass
