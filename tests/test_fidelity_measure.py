"""`compare_objects`: against the definition, object by object."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from patchworks.errors import InputError
from patchworks.fidelity import compare_objects
from tests import cells

labels = arrays(np.int32, (6, 7), elements=st.integers(0, 5))


@settings(deadline=None)
@given(labels, labels, st.sampled_from([0.51, 0.75, 0.9, 1.0]))
def test_objects_are_the_same_that_share_enough_of_their_union(truth, found, min_iou):
    same = 0
    for a in set(truth.ravel()) - {0}:
        for b in set(found.ravel()) - {0}:
            common = np.sum((truth == a) & (found == b))
            same += common >= min_iou * np.sum((truth == a) | (found == b))
    judged = compare_objects(truth, found, min_iou)
    assert judged.n_same == same
    assert judged.f1 == pytest.approx(cells.agreement(truth, found, min_iou)["f1"]) or (
        judged.n_true + judged.n_found == 0
    )


@settings(deadline=None)
@given(labels, st.permutations(range(1, 6)))
def test_numbers_do_not_matter(truth, numbers):
    assert compare_objects(truth, np.array([0, *numbers])[truth]).f1 == 1.0


@pytest.mark.parametrize("min_iou", [0.5, 0, 1.5, float("nan")])
def test_an_iou_that_allows_two_partners_is_refused(min_iou):
    with pytest.raises(InputError, match="min_iou"):
        compare_objects(np.zeros(3, int), np.zeros(3, int), min_iou)


def test_two_shapes_are_refused():
    with pytest.raises(InputError, match="shape"):
        compare_objects(np.zeros(3, int), np.zeros(4, int))
