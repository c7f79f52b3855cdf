from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.io.stage import Stage
from patchworks.io.staged_labels import LabelVoxels, PartLabels, find_runs
from patchworks.steps.merge import Relabeling, build_relabeling, gather_region
from tests.strategies import boxes, grids

laws = settings(deadline=None, max_examples=150)


def global_labels_by_union_find(n_labels, n_nodes, joins) -> list[list[int]]:
    """Return per tile the global label of each local one, background first: brute force.

    Objects are numbered by their first label, tile by tile; those without a label that owns voxels
    get no number.
    """
    parent = {(t, a): (t, a) for t, n in enumerate(n_nodes) for a in range(1, n + 1)}

    def root(node):
        while parent[node] != node:
            node = parent[node]
        return node

    for tile, a, other, b in joins:
        parent[root((tile, a))] = root((other, b))
    number = {}
    return [
        [0, *(number.setdefault(root((t, a)), len(number) + 1) for a in range(1, n + 1))]
        for t, n in enumerate(n_labels)
    ]


@st.composite
def joined_tiles(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of labels and of nodes per tile, and joins between nodes of two tiles."""
    n_tiles = draw(st.integers(1, 7))
    n_labels = draw(st.lists(st.integers(0, 5), min_size=n_tiles, max_size=n_tiles))
    n_nodes = [n + draw(st.integers(0, 3)) for n in n_labels]
    nodes = [(t, a) for t, n in enumerate(n_nodes) for a in range(1, n + 1)]
    pairs = [(a, b) for a in nodes for b in nodes if a[0] < b[0]]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=15)) if pairs else []
    joins = np.array([(*a, *b) for a, b in chosen], np.int64).reshape(-1, 4)
    return np.array(n_labels), np.array(n_nodes), joins


def tables(relabeling: Relabeling) -> list[list[int]]:
    return [relabeling.table(tile).tolist() for tile in range(len(relabeling.n_labels))]


@laws
@given(joined_tiles())
def test_relabeling_is_what_a_union_find_says(drawn):
    assert tables(build_relabeling(*drawn)) == global_labels_by_union_find(*drawn)


@laws
@given(joined_tiles(), st.randoms(use_true_random=False))
def test_relabeling_does_not_depend_on_the_order_of_the_joins(drawn, random):
    n_labels, n_nodes, joins = drawn
    shuffled = joins.tolist()
    random.shuffle(shuffled)
    again = build_relabeling(n_labels, n_nodes, np.array(shuffled, np.int64).reshape(-1, 4))
    assert tables(again) == tables(build_relabeling(*drawn))


@laws
@given(joined_tiles())
def test_relabeling_does_not_depend_on_the_direction_of_the_joins(drawn):
    n_labels, n_nodes, joins = drawn
    turned = build_relabeling(n_labels, n_nodes, joins[:, [2, 3, 0, 1]])
    assert tables(turned) == tables(build_relabeling(*drawn))


@laws
@given(joined_tiles())
def test_a_join_that_is_found_twice_changes_nothing(drawn):
    n_labels, n_nodes, joins = drawn
    twice = build_relabeling(n_labels, n_nodes, np.concatenate([joins, joins]))
    assert tables(twice) == tables(build_relabeling(*drawn))


@laws
@given(joined_tiles())
def test_global_labels_are_contiguous(drawn):
    relabeling = build_relabeling(*drawn)
    found = {label for table in tables(relabeling) for label in table} - {0}
    assert found == set(range(1, relabeling.n_objects + 1))


@laws
@given(joined_tiles())
def test_a_table_has_one_entry_per_label_that_owns_voxels_and_background_first(drawn):
    n_labels, *_ = drawn
    relabeling = build_relabeling(*drawn)
    assert [len(table) for table in tables(relabeling)] == (n_labels + 1).tolist()
    assert all(table[0] == 0 for table in tables(relabeling))


def test_labels_keep_their_numbers_where_nothing_is_joined():
    relabeling = build_relabeling(np.array([2, 0, 3]), np.array([4, 1, 3]), np.empty((0, 4), int))
    assert tables(relabeling) == [[0, 1, 2], [0], [0, 3, 4, 5]]


def test_a_label_of_the_halo_carries_an_object_from_one_tile_to_another():
    # Label 1 of tile 1 lies in its halo only: it owns no voxel there, but tiles 0 and 2 meet it.
    joins = np.array([[0, 1, 1, 1], [1, 1, 2, 1]])
    relabeling = build_relabeling(np.array([1, 0, 1]), np.array([1, 1, 1]), joins)
    assert tables(relabeling) == [[0, 1], [0], [0, 1]]


def test_labels_of_the_halo_own_no_number():
    joins = np.array([[0, 2, 1, 1]])  # neither owns voxels
    relabeling = build_relabeling(np.array([1, 0, 1]), np.array([2, 1, 1]), joins)
    assert relabeling.n_objects == 2
    assert tables(relabeling) == [[0, 1], [0], [0, 2]]


def test_two_labels_of_one_tile_that_a_neighbour_joins_become_one():
    joins = np.array([[0, 1, 1, 1], [0, 3, 1, 1]])
    relabeling = build_relabeling(np.array([3, 1]), np.array([3, 1]), joins)
    assert tables(relabeling) == [[0, 1, 2, 1], [0, 1]]


def test_no_tiles_with_labels_make_no_objects():
    relabeling = build_relabeling(np.zeros(4, int), np.zeros(4, int), np.empty((0, 4), int))
    assert relabeling.n_objects == 0
    assert tables(relabeling) == [[0]] * 4


def relabeling_of(n_objects: int) -> Relabeling:
    none = np.empty(0, np.int64)
    n = np.array([n_objects])
    return Relabeling(n, np.array([0, n_objects]), np.array([0, 0]), none, none)


@pytest.mark.parametrize(
    ("n_objects", "dtype"), [(0, "u4"), (1, "u4"), (2**32 - 1, "u4"), (2**32, "u8")]
)
def test_labels_are_uint32_unless_their_number_needs_uint64(n_objects, dtype):
    assert relabeling_of(n_objects).dtype == np.dtype(dtype)


@laws
@given(joined_tiles())
def test_tables_have_the_dtype_of_the_label_image(drawn):
    relabeling = build_relabeling(*drawn)
    assert {relabeling.table(t).dtype for t in range(len(drawn[0]))} == {relabeling.dtype}


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Stage:
    return Stage.create(tmp_path_factory.mktemp("merge") / "stage", {"fingerprint": "x"}, 4096)


@settings(deadline=None, max_examples=25)
@given(drawn=joined_tiles())
def test_a_relabeling_read_from_the_stage_is_the_one_that_was_saved(stage, drawn):
    relabeling = build_relabeling(*drawn)
    relabeling.save(stage)
    loaded = Relabeling.load(stage)
    assert tables(loaded) == tables(relabeling)
    assert (loaded.n_objects, loaded.dtype) == (relabeling.n_objects, relabeling.dtype)
    assert loaded.digest() == relabeling.digest()


@laws
@given(joined_tiles(), joined_tiles())
def test_only_the_same_numbering_has_the_same_digest(one, other):
    a, b = build_relabeling(*one), build_relabeling(*other)
    assert (a.digest() == b.digest()) == (tables(a) == tables(b))


@st.composite
def staged_tiles(draw) -> tuple[TileGrid, list[np.ndarray]]:
    """A grid and local labels 1..n of every tile; some tiles are empty."""
    grid = draw(grids(max_axes=4, max_halo=0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = []
    for tile in grid:
        n = int(rng.integers(0, 4))
        drawn = rng.integers(0, n + 1, tile.core.shape)
        ids, local = np.unique(drawn, return_inverse=True)
        local = local.reshape(drawn.shape) + (1 if ids[0] > 0 else 0)
        labels.append(local.astype("uint8"))
    return grid, labels


def write_all(stage: Stage, labels: list[np.ndarray]) -> None:
    for tile, local in enumerate(labels):
        if local.any():
            place = np.nonzero(local)
            first = tuple(int(axis.min()) for axis in place)
            part = local[tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in place)]
            kinds = [
                LabelVoxels(local),
                find_runs(local),
                PartLabels(local.shape, first, find_runs(part)),
                PartLabels(local.shape, first, LabelVoxels(part)),
            ]
            stage.write_labels(tile, kinds[tile % 4])


@settings(deadline=None, max_examples=50)
@given(drawn=staged_tiles(), data=st.data())
def test_a_region_holds_the_global_labels_of_every_tile_in_it(stage, drawn, data):
    grid, labels = drawn
    write_all(stage, labels)
    n_labels = np.array([int(local.max()) for local in labels])
    relabeling = build_relabeling(n_labels, n_labels, np.empty((0, 4), int))
    whole = np.zeros(grid.shape, relabeling.dtype)
    for tile, local in zip(grid, labels, strict=True):
        whole[tile.core.slices] = relabeling.table(tile.index)[local]
    region = data.draw(boxes(grid.shape))
    found = gather_region(stage, grid, relabeling, region)
    if found is None:
        assert not whole[region.slices].any()
    else:
        inside = data.draw(boxes(region.shape))
        for box in (region, inside.relative_to(tuple(-a for a in region.start))):
            labels = found.read(box)
            assert labels.dtype == relabeling.dtype
            np.testing.assert_array_equal(labels, whole[box.slices])


def test_a_region_of_empty_tiles_is_none_and_reads_nothing(stage, monkeypatch):
    monkeypatch.setattr(Stage, "read_labels", lambda *_: pytest.fail("read an empty tile"))
    grid = TileGrid.regular((8, 8), (4, 4), (0, 0))
    relabeling = build_relabeling(np.zeros(4, int), np.zeros(4, int), np.empty((0, 4), int))
    assert gather_region(stage, grid, relabeling, Box.whole((8, 8))) is None
