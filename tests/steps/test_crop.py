"""The box of a tile's signal is found from the outside, and is that of its voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.box import Box
from patchworks.steps import crop
from patchworks.steps.crop import signal_box
from tests.strategies import generators, shapes


@settings(deadline=None, max_examples=150)
@given(
    shapes(min_axes=1, max_axes=4),
    generators(),
    st.sampled_from(["u1", "i2", "f4", "?"]),
    st.sampled_from([-2, 0, 0.5, 3.5, 300]),
    st.sampled_from([(), (3,)]),
)
def test_the_box_is_the_least_around_all_voxels_above(shape, rng, dtype, above, lead):
    density = rng.choice([0.01, 0.1, 0.6])
    voxels = ((rng.random(lead + shape) < density) * rng.integers(0, 9, lead + shape)).astype(dtype)
    if dtype == "f4":
        voxels[rng.random(voxels.shape) < 0.2] = np.nan
    is_above = voxels.astype("f8") > above
    places = np.argwhere(is_above.any(axis=0) if lead else is_above)
    expected = None
    if len(places):
        expected = Box(tuple(places.min(axis=0).tolist()), tuple((places.max(axis=0) + 1).tolist()))
    assert signal_box(voxels, above, len(shape)) == expected


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 29, 199), (0, 15, 128), (1, 0, 63), (0, 29, 64)])
def test_rows_are_longer_than_what_is_looked_at_together(place):
    voxels = np.zeros((2, 30, 200), "u2")
    voxels[place] = 9
    assert signal_box(voxels, 8, 3) == Box(place, tuple([i + 1 for i in place]))


def test_of_a_tile_that_is_full_only_the_sides_are_looked_at(monkeypatch):
    seen = []

    def counted(voxels, axis):
        seen.append(voxels.size)
        return np.max(voxels, axis)

    monkeypatch.setattr(crop, "largest_of", counted)
    voxels = np.random.default_rng(0).integers(0, 100, (30, 256, 256)).astype("u1")
    assert signal_box(voxels, 90, 3) == Box.whole(voxels.shape)
    assert sum(seen) < voxels.size
