"""What one may not read, or what is a link to nothing, is refused by an error that names it."""

from __future__ import annotations

import multiprocessing.pool  # noqa: F401 - what is imported later may be closed too
from collections.abc import Callable
from pathlib import Path

import dask.array  # noqa: F401
import numpy as np
import pytest
import tifffile
from PIL import Image  # noqa: F401

from patchworks import load_ome_zarr, relabel_sequential_zarr, tile_process
from patchworks.errors import PatchworksError, SourceNotFoundError, TargetExistsError
from patchworks.plugins.ome_zarr import add_pyramid, to_ome_zarr, write_labels
from patchworks.plugins.overview import overview_png
from tests.rights import closed, open_folder
from tests.stores import blobs, components, ome_zarr

IMAGE = blobs((32, 32))
QUIET = {"progress": False}
USES: dict[str, Callable[[Path], object]] = {
    "convert": lambda store: to_ome_zarr(store, store.parent / "out.zarr", **QUIET),
    "segment": lambda store: tile_process(store, components, **QUIET),
    "load": load_ome_zarr,
    "add a pyramid": lambda store: add_pyramid(store, **QUIET),
    "write labels": lambda store: write_labels(store, IMAGE, **QUIET),
    "relabel": lambda store: relabel_sequential_zarr(store, component="0"),
    "draw": lambda store: overview_png(store, path=store.parent / "picture.png"),
}
METADATA = [("0.4", ".zattrs"), ("0.4", "0/.zarray"), ("0.5", "zarr.json"), ("0.5", "0/zarr.json")]


@pytest.fixture
def folder():
    with open_folder() as place:
        yield place


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("version, part", [*METADATA, ("0.4", "."), ("0.5", "0")])
def test_a_closed_store_is_named(folder, use, version, part):
    store = folder / "image.zarr"
    ome_zarr(store, [IMAGE], version=version, axes="yx")
    with closed(store / part), pytest.raises(SourceNotFoundError) as raised:
        USES[use](store)
    assert str(store) in str(raised.value)
    assert "Permission denied" in str(raised.value)
    assert [path.name for path in folder.iterdir()] == ["image.zarr"]


@pytest.mark.parametrize(
    "use, part", [("convert", "1"), ("convert", "0/c/0/0"), ("segment", "0/c/0/0")]
)
def test_a_link_to_nothing_is_named(folder, use, part):
    store = folder / "image.zarr"
    ome_zarr(store, [IMAGE, IMAGE[::2, ::2]], axes="yx")
    (store / part).rename(folder / "kept")
    (store / part).symlink_to("elsewhere")
    with pytest.raises(PatchworksError, match=str(store)):
        USES[use](store)


def test_a_level_that_may_not_be_read_is_named_where_it_is_drawn(folder):
    store = folder / "image.zarr"
    ome_zarr(store, [IMAGE, IMAGE[::2, ::2]], axes="yx")
    write_labels(store, components(IMAGE), **QUIET)
    for part, error in (("1", r"its level '1' cannot be opened"), ("0/c/0/0", "cannot be read")):
        with closed(store / part), pytest.raises(PatchworksError, match=f"{store}.*{error}"):
            USES["draw"](store)


def test_what_may_not_be_read_at_the_target_is_never_replaced(folder):
    store = folder / "image.zarr"
    ome_zarr(store, [IMAGE], axes="yx")
    with closed(store / "zarr.json"), pytest.raises(TargetExistsError, match="never replaced"):
        to_ome_zarr(IMAGE, store, overwrite=True, **QUIET)


@pytest.mark.parametrize("mode", [0, 0o111])
def test_a_closed_folder_of_files_is_named(folder, mode):
    files = folder / "files"
    files.mkdir()
    for z in range(2):
        tifffile.imwrite(files / f"s_z{z}.tif", np.ones((8, 8), "u1"))
    with closed(files, mode), pytest.raises(SourceNotFoundError, match=str(files)):
        USES["convert"](files)
