"""Objects of a slice and of the next: counted tile by tile, judged as a whole."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patchworks.geometry.grid import TileGrid
from patchworks.io.staged_labels import LabelVoxels, find_runs
from patchworks.steps.links import Overlaps, best_partners, extents_of, overlaps_of, runs_of
from tests.cells import same_partition
from tests.linked import linked
from tests.strategies import label_images, tile_shapes

SHAPE = (2, 6, 9)


def counted(labels, tile_shape):
    """Voxels and first voxel of each label, and overlaps, added up over the tiles of two slices."""
    n = int(labels.max())
    sizes, first = np.zeros(n + 1, np.int64), np.full(n + 1, 2**62)
    found = []
    grid = TileGrid.regular(labels.shape, (1, *tile_shape), (0, 0, 0))
    for tile in grid:
        runs = runs_of(find_runs(np.ascontiguousarray(labels[tile.core.slices])))
        extents = extents_of(runs, n, tile, labels.shape)
        there = extents[:, 0] > 0
        sizes[1:] += extents[:, 0]
        first[1:][there] = np.minimum(first[1:], extents[:, 1])[there]
        if (other := grid.next_on(0, tile.index)) is not None:
            theirs = LabelVoxels(labels[grid[other].core.slices])
            found.append(overlaps_of(runs, runs_of(theirs)))
    return sizes, first, np.concatenate(found)


@given(label_images(SHAPE), tile_shapes(SHAPE[1:]), st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_slices_are_linked_by_the_rule_whatever_the_tiles(labels, tile_shape, least):
    below, above = labels
    both = np.stack([below, np.where(above > 0, above + labels.max(), 0)])  # of one slice each
    sizes, first, overlaps = counted(both, tile_shape)
    assert np.array_equal(sizes[1:], np.bincount(both.ravel())[1:])
    best = best_partners(Overlaps(*overlaps.T), sizes, first, least)
    joined = np.arange(both.max() + 1)
    joined[overlaps[best, 1]] = overlaps[best, 0]
    assert same_partition(linked([below, above], least), joined[both])


def test_nothing_overlaps_nothing():
    nothing = np.empty(0, np.int64)
    found = best_partners(Overlaps(nothing, nothing, nothing), np.zeros(1), np.zeros(1), 0.25)
    assert found.tolist() == []


def test_an_iou_of_just_the_limit_is_enough():
    for shared, size, least in ((1, 10, 0.1), (3, 10, 0.3), (7, 10, 0.7), (1, 3, 1 / 3)):
        overlaps = Overlaps(np.array([1]), np.array([2]), np.array([shared]))
        sizes, first = np.array([0, size, shared]), np.array([0, 0, 50])
        assert best_partners(overlaps, sizes, first, least).tolist() == [0]
        assert best_partners(overlaps, sizes, first, least + 1e-9).tolist() == []
