"""Laws of runs: the labels they were found in, of every shape, and plane by plane."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.io import staged_labels
from patchworks.io.frames import pack, unpack
from patchworks.io.staged_labels import (
    LONGEST,
    LabelRuns,
    LabelVoxels,
    PartLabels,
    find_runs,
    from_bytes,
)
from tests.strategies import boxes, label_images, shapes

laws = settings(deadline=None, max_examples=60)
images = shapes(min_axes=2).flatmap(lambda shape: label_images(shape, max_id=3, dtype="uint16"))


@pytest.fixture(params=[4, 20, 2**19], ids="parts of {}".format)
def _parts(request, monkeypatch):
    monkeypatch.setattr(staged_labels, "PART", request.param)


@pytest.mark.usefixtures("_parts")
class TestRuns:
    @given(labels=images)
    @laws
    def test_give_the_labels_back(self, labels):
        np.testing.assert_array_equal(find_runs(labels).to_array(), labels)

    @given(labels=images, data=st.data())
    @laws
    def test_give_any_planes(self, labels, data):
        planes = labels.reshape(-1, *labels.shape[-2:])
        start = data.draw(st.integers(0, len(planes) - 1))
        stop = data.draw(st.integers(start + 1, len(planes)))
        for staged in (find_runs(labels), LabelVoxels(labels)):
            np.testing.assert_array_equal(staged.planes(start, stop), planes[start:stop])

    @given(labels=images)
    @laws
    def test_of_a_view_are_those_of_its_copy(self, labels):
        for view in (labels[..., ::-1], labels[..., ::2, :], labels.swapaxes(-1, -2)):
            np.testing.assert_array_equal(find_runs(view).to_array(), view)


@laws
@given(images, st.integers(0, 2**32 - 1))
def test_mapped_labels_are_those_of_the_table(labels, seed):
    table = np.random.default_rng(seed).integers(0, 2**40, 4).astype("uint64")
    for staged in (find_runs(labels), LabelVoxels(labels)):
        found = staged.mapped(table).to_array()
        assert found.dtype == table.dtype
        np.testing.assert_array_equal(found, table[labels])
        np.testing.assert_array_equal(
            staged.mapped(table).planes(0, 1)[0], found[(0,) * (labels.ndim - 2)]
        )


@laws
@given(images)
def test_they_survive_their_file(labels):
    for staged in (find_runs(labels), LabelVoxels(labels)):
        found = from_bytes(staged.to_bytes())
        assert type(found) is type(staged)
        assert found.to_array().dtype == labels.dtype
        np.testing.assert_array_equal(found.to_array(), labels)


@laws
@given(images, st.data())
def test_labels_of_a_part_are_those_of_the_core_where_all_others_are_0(labels, data):
    box = data.draw(boxes(labels.shape))
    core = np.zeros_like(labels)
    core[box.slices] = labels[box.slices]
    table = np.array([0, 70_000, 3, 2], "uint32")
    for part in (find_runs(labels[box.slices]), LabelVoxels(labels[box.slices])):
        found = from_bytes(PartLabels(labels.shape, box.start, part).to_bytes())
        assert isinstance(found, PartLabels)
        assert (found.shape, found.box, type(found.labels)) == (labels.shape, box, type(part))
        assert found.to_array().dtype == labels.dtype
        np.testing.assert_array_equal(found.to_array(), core)
        np.testing.assert_array_equal(found.mapped(table).to_array(), table[core])


@pytest.mark.parametrize("kind", [find_runs, LabelVoxels])
def test_a_file_of_a_part_is_none_of_a_core(kind):
    """A version that knows no parts takes none of them for a whole core."""
    part = kind(np.ones((2, 3), "uint8"))
    facts, arrays = unpack(PartLabels((4, 5), (1, 1), part).to_bytes())
    assert "shape" not in facts
    assert not arrays.keys() & part.arrays.keys()
    with pytest.raises(ValueError, match="no staged labels"):
        from_bytes(pack({"core_shape": [4, 5]}, {"part_labels": np.ones((2, 3), "uint8")}))
    with pytest.raises(ValueError, match="no staged labels"):
        from_bytes(pack({}, {"part_labels": np.ones((2, 3), "uint8")}))


@pytest.mark.parametrize("shape", [(1, 3 * LONGEST + 5), (700, 500), (2, 300, 400), (3, 2, 10)])
def test_no_run_is_longer_than_its_number_of_bytes_tells(shape):
    labels = np.full(shape, 9, "uint8")
    labels[..., -1, -1] = 0
    runs = find_runs(labels)
    assert int(runs.lengths.astype(int).sum()) == labels.size
    np.testing.assert_array_equal(runs.to_array(), labels)


def test_runs_are_far_fewer_than_voxels_where_labels_are_of_objects():
    labels = np.repeat(np.repeat(np.arange(64).reshape(8, 8), 16, 0), 16, 1).astype("uint16")
    assert len(find_runs(labels).values) == 128 * 8
    assert isinstance(find_runs(labels), LabelRuns)
