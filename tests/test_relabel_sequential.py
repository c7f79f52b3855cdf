"""`relabel_sequential_*`: ids become 1..N in their order; the input stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patchworks import merge_tile_labels, relabel_sequential_array, relabel_sequential_zarr
from patchworks.errors import InputError, PatchworksError, SourceNotFoundError, TargetExistsError
from patchworks.plugins.ome_zarr import add_pyramid
from tests.stores import blobs, chunk_files, components, contents

SPARSE = components(blobs((20, 50, 45))).astype("u8") * 7919


def labels_of(dtype):
    return hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=6), elements=st.integers(0, 100))


@settings(deadline=None)
@given(labels_of("i8") | labels_of("u1") | labels_of("u8"))
def test_ids_become_their_ranks(labels):
    ids = np.unique(labels[labels > 0])
    expected = np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0)
    assert np.array_equal(relabel_sequential_array(labels), expected)


def test_the_array_given_is_not_changed():
    labels = np.array([0, 9, 9, 4])
    relabel_sequential_array(labels)
    assert labels.tolist() == [0, 9, 9, 4]


def test_the_largest_ids_there_are_keep_their_order():
    labels = np.array([0, 2**64 - 1, 2**63, 1], "u8")
    assert relabel_sequential_array(labels).tolist() == [0, 3, 2, 1]


@pytest.mark.parametrize("labels", [np.zeros((3, 3), int), np.zeros((0, 3), int)], ids=str)
def test_no_labels_stay_no_labels(labels):
    found = relabel_sequential_array(labels)
    assert found.shape == labels.shape
    assert not found.any()


@pytest.mark.parametrize("n, dtype", [(255, "u1"), (256, "u2"), (65536, "u4")])
def test_the_dtype_is_the_smallest_that_holds_them_all(n, dtype):
    assert relabel_sequential_array(np.arange(n + 1) * 3).dtype == dtype


@pytest.mark.parametrize("labels", [np.ones(3), np.ones(3, bool), np.array([1, -1])], ids=str)
def test_what_are_no_labels_is_refused(labels):
    with pytest.raises(InputError, match="labels"):
        relabel_sequential_array(labels)


def store_of(path, labels=SPARSE, name="labels"):
    group = zarr.open_group(path, mode="a")
    group.create_array(name, data=labels, chunks=tuple(min(16, n) for n in labels.shape))
    return path


def test_a_store_is_renumbered_like_an_array(tmp_path):
    found = relabel_sequential_zarr(store_of(tmp_path / "s.zarr"))
    assert np.array_equal(found.compute(), relabel_sequential_array(SPARSE))
    assert found.dtype == np.uint32


def test_the_input_store_keeps_every_byte(tmp_path):
    store = store_of(tmp_path / "s.zarr")
    before = contents(store)
    relabel_sequential_zarr(store, write_to=tmp_path / "out.zarr")
    assert contents(store) == before


def test_another_component_can_be_named(tmp_path):
    store = store_of(tmp_path / "s.zarr", np.full((4, 4), 8), "cells")
    assert np.array_equal(relabel_sequential_zarr(store, "cells").compute(), np.ones((4, 4)))


def test_the_new_labels_are_a_pyramid_of_as_many_levels_as_asked_for(tmp_path):
    relabel_sequential_zarr(
        store_of(tmp_path / "s.zarr"), write_to=tmp_path / "out.zarr", pyramid_levels=3
    )
    shapes = [zarr.open_array(tmp_path / "out.zarr" / str(i), mode="r").shape for i in range(3)]
    assert shapes == [(20, 50, 45), (20, 25, 23), (20, 13, 12)]


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_any_number_of_threads_writes_the_same_bytes(tmp_path, n_workers):
    store = store_of(tmp_path / "s.zarr")
    relabel_sequential_zarr(store, write_to=tmp_path / "one.zarr", max_workers=1)
    relabel_sequential_zarr(store, write_to=tmp_path / "n.zarr", max_workers=n_workers)
    assert contents(tmp_path / "one.zarr") == contents(tmp_path / "n.zarr")


def test_no_labels_make_no_chunk_files(tmp_path):
    store = store_of(tmp_path / "s.zarr", np.zeros((40, 40), "u2"))
    relabel_sequential_zarr(store, write_to=tmp_path / "out.zarr")
    assert chunk_files(tmp_path / "out.zarr") == []


def test_another_label_image_is_replaced_only_when_asked(tmp_path):
    one, other = store_of(tmp_path / "1.zarr"), store_of(tmp_path / "2.zarr", SPARSE[::-1].copy())
    relabel_sequential_zarr(one, write_to=tmp_path / "out.zarr")
    before = contents(tmp_path / "out.zarr")
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        relabel_sequential_zarr(other, write_to=tmp_path / "out.zarr")
    assert contents(tmp_path / "out.zarr") == before
    relabel_sequential_zarr(other, write_to=tmp_path / "out.zarr", overwrite=True)
    assert contents(tmp_path / "out.zarr") != before


def test_a_missing_store_is_refused(tmp_path):
    with pytest.raises(SourceNotFoundError, match="nothing at this path"):
        relabel_sequential_zarr(tmp_path / "nowhere.zarr")


def test_a_missing_component_is_refused_with_those_that_are_there(tmp_path):
    with pytest.raises(InputError, match=r"'cells'.*\['labels'\]"):
        relabel_sequential_zarr(store_of(tmp_path / "s.zarr"), "cells")


@pytest.mark.parametrize("labels", [np.ones((4, 4)), -np.ones((4, 4), int)], ids=["float", "< 0"])
def test_a_store_of_what_are_no_labels_is_refused_and_nothing_is_written(tmp_path, labels):
    store = store_of(tmp_path / "s.zarr", labels)
    with pytest.raises(InputError, match="labels"):
        relabel_sequential_zarr(store, write_to=tmp_path / "out.zarr")
    assert {p.name for p in tmp_path.iterdir()} == {"s.zarr"}


@pytest.mark.parametrize("keywords", [{"max_workers": -1}, {"pyramid_levels": 0}], ids=str)
def test_a_number_out_of_range_is_refused(tmp_path, keywords):
    with pytest.raises(PatchworksError, match=next(iter(keywords))):
        relabel_sequential_zarr(store_of(tmp_path / "s.zarr"), **keywords)


def test_an_array_of_another_name_is_asked_for_by_its_argument(tmp_path):
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("cells", shape=(8, 8), chunks=(8, 8), dtype="u2")
    there = r"no array '{}' in it; it holds \['cells'\]; say which with {}='cells'"
    with pytest.raises(SourceNotFoundError, match=there.format("labels", "component")):
        relabel_sequential_zarr(tmp_path / "g.zarr")
    with pytest.raises(SourceNotFoundError, match=there.format("labels", "input_component")):
        merge_tile_labels(tmp_path / "g.zarr", write_to=tmp_path / "out.zarr", progress=False)
    with pytest.raises(SourceNotFoundError, match=there.format("0", "base")):
        add_pyramid(tmp_path / "g.zarr")
