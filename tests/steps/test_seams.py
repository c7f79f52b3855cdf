from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.seam import SeamPlan
from patchworks.io.stage import Stage
from patchworks.steps.merge import build_relabeling, gather_region
from patchworks.steps.seams import (
    join_by_agreement,
    join_by_touch,
    join_contact,
    split_into_pieces,
)
from patchworks.steps.stage import stage_tile
from tests.strategies import binary_images, grids, label_images, shapes

laws = settings(deadline=None, max_examples=80)


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    """Return the objects of a label image as sets of voxels: what it says but for the numbers."""
    flat = labels.ravel()
    order = np.argsort(flat, kind="stable")
    cuts = np.flatnonzero(np.diff(flat[order])) + 1
    return {frozenset(p.tolist()) for p in np.split(order, cuts) if flat[p[0]] > 0}


def connected(foreground: np.ndarray, connectivity: int) -> np.ndarray:
    structure = ndimage.generate_binary_structure(foreground.ndim, connectivity)
    return ndimage.label(foreground, structure)[0]


def as_pairs(joins: np.ndarray) -> list[tuple[int, int]]:
    return sorted(map(tuple, joins.tolist()))


# --- pieces -------------------------------------------------------------------------------------


@st.composite
def slabs(draw, *, max_axes: int = 4, max_id: int = 4) -> np.ndarray:
    return draw(label_images(draw(shapes(min_axes=1, max_axes=max_axes)), max_id=max_id))


@laws
@given(slabs())
def test_pieces_are_the_face_connected_components_of_each_label(labels):
    pieces, _ = split_into_pieces(labels)
    expected = set()
    for label in np.unique(labels[labels > 0]):
        expected |= partition(connected(labels == label, 1))
    assert partition(pieces) == expected


@laws
@given(slabs())
def test_pieces_are_numbered_from_1_without_a_gap(labels):
    pieces, label_of = split_into_pieces(labels)
    assert np.unique(pieces[pieces > 0]).tolist() == list(range(1, len(label_of)))


@laws
@given(slabs())
def test_a_piece_knows_its_label(labels):
    pieces, label_of = split_into_pieces(labels)
    np.testing.assert_array_equal(label_of[pieces], labels)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 3)])
def test_a_slab_without_voxels_has_no_pieces(shape):
    pieces, label_of = split_into_pieces(np.zeros(shape, "uint8"))
    assert pieces.shape == shape
    assert label_of.tolist() == [0]


# --- agreement ----------------------------------------------------------------------------------


def test_the_same_piece_is_joined():
    ours = np.array([[0, 5, 5, 0], [0, 5, 5, 0]])
    assert as_pairs(join_by_agreement(ours, np.where(ours, 9, 0))) == [(5, 9)]


def test_pieces_that_share_exactly_half_of_their_union_are_not_joined():
    ours = np.array([[5, 5, 5, 5], [5, 5, 5, 5]])
    theirs = np.array([[9, 9, 0, 0], [9, 9, 0, 0]])
    assert as_pairs(join_by_agreement(ours, theirs)) == []


def test_pieces_that_share_one_voxel_more_than_half_of_their_union_are_joined():
    ours = np.array([[5, 5, 5, 5], [5, 5, 5, 5]])
    theirs = np.array([[9, 9, 9, 0], [9, 9, 0, 0]])
    assert as_pairs(join_by_agreement(ours, theirs)) == [(5, 9)]


def test_the_two_halves_that_a_neighbour_sees_do_not_fuse():
    one = np.array([[3, 3, 3, 3], [3, 3, 3, 3]])
    halves = np.array([[1, 1, 2, 2], [1, 1, 2, 2]])
    assert as_pairs(join_by_agreement(one, halves)) == []


def test_the_union_counts_voxels_that_only_one_side_sees():
    ours = np.array([[5, 5, 5, 0, 0, 0]] * 2)
    theirs = np.array([[0, 9, 9, 9, 9, 0]] * 2)  # share 2 of 5 columns
    assert as_pairs(join_by_agreement(ours, theirs)) == []


def test_a_label_that_only_one_side_sees_is_joined_to_none():
    ours = np.array([[5, 5, 0, 7, 7], [5, 5, 0, 7, 7]])
    theirs = np.array([[2, 2, 0, 0, 0], [2, 2, 0, 0, 0]])
    assert as_pairs(join_by_agreement(ours, theirs)) == [(5, 2)]


@pytest.mark.parametrize("which", ["ours", "theirs", "both"])
def test_an_empty_side_joins_nothing(which):
    full, empty = np.ones((2, 4), int), np.zeros((2, 4), int)
    ours, theirs = (empty if which in (side, "both") else full for side in ("ours", "theirs"))
    assert as_pairs(join_by_agreement(ours, theirs)) == []


def test_the_legs_of_a_u_seen_as_two_labels_are_both_joined_to_the_u():
    # The U closes within our core, out of sight of the neighbour: to it the legs are two objects.
    ours = np.array([[4, 4, 0, 0, 0, 4, 4]] * 2)
    theirs = np.array([[1, 1, 0, 0, 0, 2, 2]] * 2)
    assert as_pairs(join_by_agreement(ours, theirs)) == [(4, 1), (4, 2)]


def test_a_u_that_each_side_closes_on_its_own_is_joined_once():
    ours = np.array([[4, 4, 0, 0, 0, 4, 4]] * 2)
    assert as_pairs(join_by_agreement(ours, np.where(ours, 8, 0))) == [(4, 8)]


def test_a_ring_cut_by_the_seam_is_joined_through_both_of_its_crossings():
    ours = np.array([[4, 4, 0, 4], [4, 4, 0, 4]])
    theirs = np.array([[1, 0, 0, 2], [1, 1, 0, 2]])  # one crossing seen with a ragged border
    assert as_pairs(join_by_agreement(ours, theirs)) == [(4, 1), (4, 2)]


def test_a_small_leg_is_joined_though_it_is_a_small_part_of_its_label():
    ours = np.array([[4, 0, 4, 4, 4, 4, 4, 4]] * 2)
    theirs = np.array([[1, 0, 2, 2, 2, 2, 2, 2]] * 2)
    assert as_pairs(join_by_agreement(ours, theirs)) == [(4, 1), (4, 2)]


def test_touching_cells_with_a_ragged_border_stay_two_objects():
    ours = np.array([[1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 2, 2, 2]])
    theirs = np.array([[7, 7, 7, 7, 7, 8, 8, 8], [7, 7, 7, 7, 8, 8, 8, 8]])
    assert as_pairs(join_by_agreement(ours, theirs)) == [(1, 7), (2, 8)]


def test_agreement_holds_in_3d_slabs():
    # (z, y, x) with the seam in z: a disc seen with a ragged rim, and a second one half seen.
    ours = np.zeros((2, 6, 12), int)
    ours[:, 1:5, 1:5] = 3
    ours[:, 1:5, 7:11] = 6
    theirs = np.zeros_like(ours)
    theirs[:, 1:5, 1:5] = 10
    theirs[1, 1, 1] = 0
    theirs[:, 1:5, 7:9] = 20
    assert as_pairs(join_by_agreement(ours, theirs)) == [(3, 10)]


def agreement_by_definition(ours: np.ndarray, theirs: np.ndarray) -> list[tuple[int, int]]:
    """Return the joins as STITCHING defines them: every piece against every piece."""
    pieces = []
    for view in (ours, theirs):
        found = []
        for label in np.unique(view[view > 0]):
            components = connected(view == label, 1)
            found += [(int(label), components == i) for i in range(1, components.max() + 1)]
        pieces.append(found)
    return sorted(
        {
            (a, b)
            for (a, p), (b, q) in product(*pieces)
            if 2 * int((p & q).sum()) > int((p | q).sum())
        }
    )


@st.composite
def two_views(draw, *, max_id: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two label images of one slab that agree in part: the second is the first, disturbed."""
    first = draw(slabs(max_axes=3, max_id=max_id))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    second = rng.permutation(max_id + 1)[first] if draw(st.booleans()) else first.copy()
    disturbed = rng.random(first.shape) < draw(st.sampled_from([0.0, 0.1, 0.3, 1.0]))
    second[disturbed] = rng.integers(0, max_id + 1, int(disturbed.sum()))
    return first, second


@settings(deadline=None, max_examples=150)
@given(two_views())
def test_agreement_is_what_its_definition_says_of_every_two_pieces(views):
    assert as_pairs(join_by_agreement(*views)) == agreement_by_definition(*views)


@laws
@given(two_views())
def test_agreement_is_the_same_from_both_sides(views):
    ours, theirs = views
    swapped = join_by_agreement(theirs, ours)[:, ::-1]
    assert as_pairs(join_by_agreement(ours, theirs)) == as_pairs(swapped)


@laws
@given(slabs())
def test_a_view_agrees_with_itself_label_by_label(labels):
    expected = [(n, n) for n in np.unique(labels[labels > 0]).tolist()]
    assert as_pairs(join_by_agreement(labels, labels)) == expected


@laws
@given(two_views())
def test_agreement_does_not_depend_on_the_dtypes_of_the_views(views):
    ours, theirs = views
    narrow = join_by_agreement(ours.astype("uint8"), theirs.astype("uint16"))
    assert as_pairs(narrow) == as_pairs(join_by_agreement(ours, theirs))


# --- touch --------------------------------------------------------------------------------------


def touch_by_definition(ours, theirs, n_diagonal: int) -> list[tuple[int, int]]:
    pairs = set()
    for at, label in np.ndenumerate(ours):
        for shift in product((-1, 0, 1), repeat=ours.ndim):
            other = tuple(a + s for a, s in zip(at, shift, strict=True))
            inside = all(0 <= o < n for o, n in zip(other, ours.shape, strict=True))
            if inside and np.count_nonzero(shift) <= n_diagonal and label and theirs[other]:
                pairs.add((int(label), int(theirs[other])))
    return sorted(pairs)


@st.composite
def facing_planes(draw, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(shapes(min_axes=n_axes, max_axes=n_axes))
    return draw(label_images(shape)), draw(label_images(shape))


@pytest.mark.parametrize(
    ("n_axes", "n_diagonal"), [(n, d) for n in (1, 2, 3, 4) for d in range(n + 1)]
)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_touch_joins_labels_of_neighbouring_voxels_and_no_others(n_axes, n_diagonal, data):
    ours, theirs = data.draw(facing_planes(n_axes))
    found = as_pairs(join_by_touch(ours, theirs, n_diagonal))
    assert found == touch_by_definition(ours, theirs, n_diagonal)


@laws
@given(st.data())
def test_touch_is_the_same_from_both_sides(data):
    n_axes = data.draw(st.integers(1, 3))
    ours, theirs = data.draw(facing_planes(n_axes))
    n_diagonal = data.draw(st.integers(0, n_axes))
    swapped = join_by_touch(theirs, ours, n_diagonal)[:, ::-1]
    assert as_pairs(join_by_touch(ours, theirs, n_diagonal)) == as_pairs(swapped)


def test_touch_yields_each_pair_once():
    assert join_by_touch(np.full((4, 4), 2), np.full((4, 4), 3), 2).tolist() == [[2, 3]]


# --- a whole image ------------------------------------------------------------------------------


def stitched(foreground: np.ndarray, seams: SeamPlan, connectivity: int) -> np.ndarray:
    """Return the labels of an image that was segmented tile by tile and stitched."""
    grid = seams.grid
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage.create(Path(folder) / "stage", {"fingerprint": "test"}, grid.n_tiles)
        records = [
            stage_tile(stage, seams, tile, connected(foreground[tile.read.slices], connectivity))
            for tile in grid
        ]
        joins = [np.empty((0, 4), np.int64)]
        for tile in grid:
            for contact in seams.contacts(tile.index):
                for a, b in join_contact(seams, contact, records.__getitem__):
                    joins.append(np.array([[contact.tile, a, contact.other, b]]))
        counts = np.array([(r.n_labels, r.n_nodes) for r in records])
        relabeling = build_relabeling(counts[:, 0], counts[:, 1], np.concatenate(joins))
        image = Box.whole(grid.shape)
        whole = gather_region(stage, grid, relabeling, image)
    return np.zeros(grid.shape, "uint32") if whole is None else whole.read(image)


@st.composite
def jobs(draw, *, judge) -> tuple[np.ndarray, SeamPlan, int]:
    grid = draw(grids(max_halo=2))
    foreground = draw(binary_images(grid.shape))
    connectivity = draw(st.integers(1, grid.ndim))
    return foreground, SeamPlan(grid, judge(grid), connectivity), connectivity


def by_halo(grid: TileGrid) -> tuple[bool, ...]:
    return tuple(h > 0 for h in grid.halo)


def never(grid: TileGrid) -> tuple[bool, ...]:
    return (False,) * grid.ndim


@settings(deadline=None, max_examples=80)
@given(jobs(judge=by_halo))
def test_connected_components_of_tiles_are_those_of_the_whole_for_any_mixture_of_halos(job):
    foreground, seams, connectivity = job
    whole = connected(foreground, connectivity)
    assert partition(stitched(foreground, seams, connectivity)) == partition(whole)


@settings(deadline=None, max_examples=50)
@given(jobs(judge=never))
def test_connected_components_of_tiles_are_those_of_the_whole_by_touch_alone(job):
    foreground, seams, connectivity = job
    whole = connected(foreground, connectivity)
    assert partition(stitched(foreground, seams, connectivity)) == partition(whole)


@settings(deadline=None, max_examples=25)
@given(jobs(judge=by_halo))
def test_objects_of_a_stitched_image_are_numbered_without_a_gap(job):
    labels = stitched(*job)
    assert np.unique(labels[labels > 0]).tolist() == list(range(1, int(labels.max()) + 1))


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_a_halo_one_wider_than_the_reach_of_the_function_is_enough(reach):
    # Two marks that the function widens by `reach`, so that they meet exactly at the seam. To know
    # both planes of the slab a tile has to see `reach` voxels past the one beyond its core.
    seam = 3 * reach + 3
    marks = np.zeros((2 * reach + 2, 2 * seam), bool)
    marks[reach, [seam - 1 - reach, seam + reach]] = True
    grid = TileGrid.regular(marks.shape, (marks.shape[0], seam), (0, reach + 1))
    seams = SeamPlan(grid, (False, True), 1)

    def widened(tile: np.ndarray) -> np.ndarray:
        return ndimage.maximum_filter(tile, 2 * reach + 1)

    with tempfile.TemporaryDirectory() as folder:
        stage = Stage.create(Path(folder) / "stage", {"fingerprint": "test"}, grid.n_tiles)
        records = [
            stage_tile(stage, seams, tile, connected(widened(marks[tile.read.slices]), 1))
            for tile in grid
        ]
        [contact] = seams.contacts(0)
        joins = join_contact(seams, contact, records.__getitem__)
    assert connected(widened(marks), 1).max() == 1
    assert as_pairs(joins) == [(1, 1)]
