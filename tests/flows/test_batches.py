"""Batches: every index once, as many as allowed, of nearly one weight."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flows.batches import (
    MAX_BYTES,
    TARGET_S,
    Work,
    batches_by_weight,
    batches_of,
    from_array,
    to_array,
)


@given(st.integers(0, 50), st.integers(0, 300), st.integers(1, 40))
def test_batches_partition_the_indices(first, n, n_runs):
    batches = batches_of(first, first + n, n_runs)
    assert [i for batch in batches for i in batch.indices] == list(range(first, first + n))
    assert len(batches) == min(n, n_runs)
    sizes = [len(batch.indices) for batch in batches]
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(st.lists(st.sampled_from([0.001, 1.0]), max_size=200), st.integers(1, 20))
def test_no_batch_is_heavier_than_its_share_by_more_than_a_tile(weights, n_runs):
    batches = batches_by_weight(0, np.array(weights), n_runs)
    assert [i for batch in batches for i in batch.indices] == list(range(len(weights)))
    assert len(batches) <= n_runs
    for batch in batches:
        weight = sum(weights[i] for i in batch.indices)
        assert weight <= sum(weights) / n_runs + 1.0 + 1e-6


@given(st.integers(1, 300), st.integers(1, 96), st.floats(0, 1e7), st.integers(0, 2**44))
def test_the_number_of_runs_has_the_last_word(n_slots, max_runs, seconds, n_bytes):
    n_runs = Work(n_slots=n_slots, max_runs=max_runs, seconds=seconds, n_bytes=n_bytes).n_runs
    most = max(max_runs, 2 * n_slots)
    assert 1 <= n_runs <= most
    if n_runs < most:
        assert seconds / n_runs <= TARGET_S + 1e-6
        assert n_bytes / n_runs <= MAX_BYTES


@given(st.integers(1, 400), st.floats(1e3, 1e7))
def test_every_slot_of_a_large_cluster_has_work(n_slots, seconds):
    assert Work(n_slots=n_slots, max_runs=96, seconds=seconds).n_runs >= min(n_slots, seconds / 12)


def test_batches_are_kept_in_a_stage():
    batches = batches_of(3, 40, 7)
    assert from_array(to_array(batches)) == batches
    assert from_array(None) == []
