"""Tiled equals untiled: the promise of the library, on touching cells and connected components."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks import tile_process
from tests import cells
from tests.strategies import binary_images, chunks_of, halos, shapes, tile_shapes

laws = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    "shape, tile_shape, pitch, halo",
    [
        ((768, 768), (192, 192), 24, 24),
        ((768, 768), (192, 192), 48, 24),
        ((72, 160, 160), (36, 64, 64), 18, 16),
    ],
)
def test_touching_cells_are_those_of_the_whole_image(shape, tile_shape, pitch, halo):
    image, segment = cells.make(shape, pitch), cells.segmenter(pitch)
    tiled = tile_process(image, segment, tile_shape=tile_shape, overlap=halo).compute()
    assert cells.agreement(segment(image), tiled)["f1"] >= 0.999


def connected(image, connectivity):
    return ndimage.label(image, ndimage.generate_binary_structure(image.ndim, connectivity))[0]


def segment_tiled(image, connectivity, **keywords):
    return tile_process(
        image,
        lambda tile: connected(tile, connectivity),
        connectivity=connectivity,
        pyramid_levels=1,
        max_workers=1,
        progress=False,
        **keywords,
    ).compute()


@st.composite
def tilings(draw, ndim, *, min_halo=0, max_halo=3):
    """An image, tiles that need not divide it, a halo per axis, and a connectivity."""
    shape = draw(shapes(min_axes=ndim, max_axes=ndim))
    tiles = draw(tile_shapes(shape))
    halo = draw(halos(ndim, min_value=min_halo, max_value=max_halo))
    fitted = tuple(min(h, t) for h, t in zip(halo, tiles, strict=True))
    return draw(binary_images(shape)), tiles, fitted, draw(st.integers(1, ndim))


def check(tiling, stitch="auto"):
    image, tiles, halo, connectivity = tiling
    tiled = segment_tiled(image, connectivity, tile_shape=tiles, overlap=halo, stitch=stitch)
    assert cells.same_partition(connected(image, connectivity), tiled)


@settings(laws, max_examples=80)
@given(tilings(2))
def test_components_in_2d_are_exact_with_and_without_halos(tiling):
    check(tiling)


@settings(laws, max_examples=80)
@given(tilings(3))
def test_components_in_3d_are_exact_with_and_without_halos(tiling):
    check(tiling)


@settings(laws, max_examples=30)
@given(tilings(4, max_halo=1))
def test_components_in_4d_are_exact_with_and_without_halos(tiling):
    check(tiling)


@settings(laws, max_examples=60)
@given(st.one_of(tilings(2, max_halo=0), tilings(3, max_halo=0)))
def test_components_are_exact_without_any_halo(tiling):
    check(tiling)


@settings(laws, max_examples=60)
@given(st.one_of(tilings(2, min_halo=1), tilings(3, min_halo=1)))
def test_components_are_exact_with_a_halo_on_every_axis(tiling):
    check(tiling)


@settings(laws, max_examples=60)
@given(st.one_of(tilings(2, min_halo=1), tilings(3, min_halo=1)))
def test_joining_by_touch_is_exact_for_components_whatever_the_halo(tiling):
    check(tiling, stitch="touch")


@settings(laws, max_examples=60)
@given(st.data(), st.integers(2, 3))
def test_components_are_exact_on_irregular_dask_chunks(data, ndim):
    shape = data.draw(shapes(min_axes=ndim, max_axes=ndim))
    image = data.draw(binary_images(shape))
    chunks = data.draw(chunks_of(shape))
    largest = [max(c) for c in chunks]
    halo = [min(h, t) for h, t in zip(data.draw(halos(ndim)), largest, strict=True)]
    connectivity = data.draw(st.integers(1, ndim))
    tiled = segment_tiled(da.from_array(image, chunks=chunks), connectivity, overlap=halo)
    assert cells.same_partition(connected(image, connectivity), tiled)


@settings(laws, max_examples=40)
@given(tilings(2))
def test_labels_are_numbered_from_one_without_a_gap(tiling):
    image, tiles, halo, connectivity = tiling
    tiled = segment_tiled(image, connectivity, tile_shape=tiles, overlap=halo)
    assert np.array_equal(np.unique(tiled[tiled > 0]), np.arange(1, tiled.max() + 1))
