from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.seam import Contact, Plane, SeamPlan
from tests.strategies import grids

laws = settings(deadline=None, max_examples=60)


@st.composite
def seam_plans(draw, *, slab: bool | None = None, max_axes: int = 5) -> SeamPlan:
    """Seam plans: a halo makes a slab, unless only touch (False) or only slabs (True) are asked."""
    grid = draw(grids(max_axes=max_axes))
    if slab is True:
        grid = TileGrid(grid.edges, tuple(h + 1 for h in grid.halo))
    judged = tuple(h > 0 and slab is not False for h in grid.halo)
    return SeamPlan(grid, judged, draw(st.integers(1, grid.ndim)))


def owner_image(grid: TileGrid) -> np.ndarray:
    owner = np.empty(grid.shape, int)
    for tile in grid:
        owner[tile.core.slices] = tile.index
    return owner


def neighbouring_voxels(shape: tuple[int, ...], connectivity: int):
    """Yield index pairs: all voxels and their neighbours, once per direction of step."""
    for step in product((-1, 0, 1), repeat=len(shape)):
        if not 0 < sum(map(abs, step)) <= connectivity or step < (0,) * len(shape):
            continue
        lower = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, shape, strict=True))
        upper = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, shape, strict=True))
        yield lower, upper


def pairs_of_tiles_with_neighbouring_voxels(seams: SeamPlan) -> set[tuple[int, int]]:
    """Return the pairs of tiles (lower index first) that own neighbouring voxels: brute force."""
    owner = owner_image(seams.grid)
    pairs = set()
    for lower, upper in neighbouring_voxels(seams.grid.shape, seams.connectivity):
        both = np.stack([owner[lower].ravel(), owner[upper].ravel()], 1)
        pairs |= {(min(p), max(p)) for p in map(tuple, both.tolist()) if p[0] != p[1]}
    return pairs


def all_contacts(seams: SeamPlan) -> list[Contact]:
    return [c for index in range(seams.grid.n_tiles) for c in seams.contacts(index)]


def compared(seams: SeamPlan, contact: Contact) -> tuple[Box, Box]:
    """Return the voxels that a contact without slab compares: the facing ends of two planes."""
    axis, *others = contact.axes
    ends = []
    for index, sign in ((contact.tile, 1), (contact.other, -1)):
        side = "upper" if sign * contact.steps[axis] > 0 else "lower"
        box = dict(seams.planes(seams.grid[index]))[Plane(axis, side)]
        for a in others:
            upper = sign * contact.steps[a] > 0
            edge = box.stop[a] - 1 if upper else box.start[a]
            box = box.on_axis(a, edge, edge + 1)
        ends.append(box)
    return ends[0], ends[1]


@laws
@given(seam_plans(slab=False))
def test_contacts_are_exactly_the_pairs_of_tiles_with_neighbouring_voxels(seams):
    found = Counter((c.tile, c.other) for c in all_contacts(seams))
    assert set(found) == pairs_of_tiles_with_neighbouring_voxels(seams)


@laws
@given(seam_plans())
def test_no_contact_is_yielded_twice(seams):
    pairs = Counter((c.tile, c.other) for c in all_contacts(seams))
    assert not [pair for pair, n in pairs.items() if n > 1]


@laws
@given(seam_plans())
def test_tiles_that_differ_on_axes_without_halo_are_all_compared(seams):
    position = seams.grid.position
    expected = {
        (a, b)
        for a, b in pairs_of_tiles_with_neighbouring_voxels(seams)
        if not any(
            p != q and slab for p, q, slab in zip(position(a), position(b), seams.slab, strict=True)
        )
    }
    assert expected <= {(c.tile, c.other) for c in all_contacts(seams)}


@laws
@given(seam_plans())
def test_every_shared_face_is_a_contact(seams):
    dims = np.array(seams.grid.dims)
    n_faces = sum(int(np.prod(dims - np.eye(len(dims), dtype=int)[a])) for a in range(len(dims)))
    assert sum(c.is_face for c in all_contacts(seams)) == n_faces


@laws
@given(seam_plans())
def test_a_seam_with_a_halo_is_met_in_faces_only(seams):
    for contact in all_contacts(seams):
        assert contact.is_face or not any(seams.slab[a] for a in contact.axes)


@laws
@given(seam_plans())
def test_a_contact_goes_to_a_later_tile_by_its_steps(seams):
    for contact in all_contacts(seams):
        way = np.subtract(seams.grid.position(contact.other), seams.grid.position(contact.tile))
        assert contact.other > contact.tile
        assert contact.steps == tuple(way)
        assert contact.steps[contact.axes[0]] == 1


@settings(deadline=None, max_examples=40)
@given(seam_plans(slab=False, max_axes=4))
def test_every_pair_of_neighbouring_voxels_across_a_seam_is_compared_once(seams):
    index = np.arange(np.prod(seams.grid.shape)).reshape(seams.grid.shape)
    owner = owner_image(seams.grid)
    expected = set()
    for lower, upper in neighbouring_voxels(seams.grid.shape, seams.connectivity):
        crossing = owner[lower] != owner[upper]
        pairs = zip(index[lower][crossing].tolist(), index[upper][crossing].tolist(), strict=True)
        expected |= {(min(p), max(p)) for p in pairs}
    found = []
    for contact in all_contacts(seams):
        ours, theirs = compared(seams, contact)
        coordinates = [
            np.argwhere(np.ones(box.shape, bool)) + np.array(box.start) for box in (ours, theirs)
        ]
        steps = np.abs(coordinates[0][:, None] - coordinates[1][None])
        near = (steps.max(-1) == 1) & (steps.sum(-1) <= seams.connectivity)
        for a, b in np.argwhere(near):
            pair = (index[tuple(coordinates[0][a])], index[tuple(coordinates[1][b])])
            found.append((int(min(pair)), int(max(pair))))
    assert sorted(found) == sorted(expected)


@laws
@given(seam_plans(slab=True))
def test_a_slab_is_the_same_box_from_both_sides(seams):
    for contact in all_contacts(seams):
        axis = contact.axes[0]
        ours = dict(seams.planes(seams.grid[contact.tile]))[Plane(axis, "upper")]
        theirs = dict(seams.planes(seams.grid[contact.other]))[Plane(axis, "lower")]
        assert ours == theirs


@laws
@given(seam_plans(slab=True))
def test_a_slab_holds_the_two_planes_at_the_seam(seams):
    for tile in seams.grid:
        for plane, box in seams.planes(tile):
            seam = tile.core.start if plane.side == "lower" else tile.core.stop
            assert box.start[plane.axis] == seam[plane.axis] - 1
            assert box.stop[plane.axis] == seam[plane.axis] + 1


@laws
@given(seam_plans(slab=True))
def test_a_slab_spans_all_that_both_tiles_read_across_it(seams):
    for contact in all_contacts(seams):
        axis = contact.axes[0]
        slab = dict(seams.planes(seams.grid[contact.tile]))[Plane(axis, "upper")]
        both = seams.grid[contact.tile].read.intersect(seams.grid[contact.other].read)
        assert slab == both.on_axis(axis, slab.start[axis], slab.stop[axis])


@laws
@given(seam_plans(slab=False))
def test_facing_planes_are_the_outermost_voxels_of_the_core(seams):
    for tile in seams.grid:
        for plane, box in seams.planes(tile):
            axis = plane.axis
            last = tile.core.stop[axis] - 1
            at = tile.core.start[axis] if plane.side == "lower" else last
            assert box == tile.core.on_axis(axis, at, at + 1)


@laws
@given(seam_plans())
def test_planes_lie_within_what_the_tile_reads(seams):
    for tile in seams.grid:
        for _, box in seams.planes(tile):
            assert box.intersect(tile.read) == box


@laws
@given(seam_plans())
def test_a_tile_keeps_a_plane_for_each_of_its_neighbours_and_no_other(seams):
    for tile in seams.grid:
        expected = {(a, "lower") for a, p in enumerate(tile.position) if p > 0}
        expected |= {
            (a, "upper") for a, p in enumerate(tile.position) if p < seams.grid.dims[a] - 1
        }
        found = [(plane.axis, plane.side) for plane, _ in seams.planes(tile)]
        assert sorted(found) == sorted(expected)


def test_planes_of_a_tile_have_keys_of_their_own():
    grid = TileGrid.regular((3,) * 5, (1,) * 5, (0,) * 5)
    seams = SeamPlan(grid, (False,) * 5, 1)
    middle = grid[grid.index((1,) * 5)]
    keys = [plane.key for plane, _ in seams.planes(middle)]
    assert len(set(keys)) == 10
