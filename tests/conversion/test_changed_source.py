"""A source that changes while it is converted never becomes a mixture of old and new."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr

from patchworks.errors import ImageReadError
from patchworks.geometry import image_pyramid
from patchworks.plugins.ome_zarr import to_ome_zarr, write_labels
from patchworks.readers import array
from patchworks.readers.array import ArrayReader
from patchworks.readers.ome_zarr import ZarrReader
from patchworks.readers.scene import SceneReader
from patchworks.readers.sequence import SequenceReader
from patchworks.readers.tiff import TiffReader
from tests.stores import ome_zarr

OLD = np.random.default_rng(5).integers(0, 60000, (4, 64, 64), dtype="uint16")
NEW = OLD[::-1].copy()
QUIET = {"progress": False, "max_workers": 1}


def tiff(folder: Path, voxels: np.ndarray) -> Path:
    """Write a file over itself, as a microscope does that writes once more."""
    path = folder / "scan.tif"
    tifffile.imwrite(folder / "new.tif", voxels, metadata={"axes": "ZYX"}, photometric="minisblack")
    content = (folder / "new.tif").read_bytes()
    (folder / "new.tif").unlink()
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
    return path


def sequence(folder: Path, voxels: np.ndarray) -> Path:
    (folder / "seq").mkdir(exist_ok=True)
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / f"new{z}.tif", plane)
        (folder / f"new{z}.tif").replace(folder / "seq" / f"scan_z{z}.tif")
    return folder / "seq"


def store(folder: Path, voxels: np.ndarray) -> Path:
    return Path(ome_zarr(folder / "scan.zarr", [voxels], chunks=(1, 64, 64)))


def zarr_array(folder: Path, voxels: np.ndarray) -> zarr.Array:
    return zarr.create_array(folder / "a.zarr", data=voxels, chunks=(1, 64, 64), overwrite=True)


def dask_array(folder: Path, voxels: np.ndarray) -> da.Array:
    return da.from_array(zarr_array(folder, voxels), chunks=(1, 64, 64))


SOURCES = {
    "tiff": (tiff, TiffReader),
    "sequence": (sequence, SequenceReader),
    "store": (store, ZarrReader),
    "zarr array": (zarr_array, ArrayReader),
    "dask array": (dask_array, ArrayReader),
}


def while_read(reader: type[SceneReader], change: Callable[[], object], at: int = 2):
    """Have something happen before a reader reads for the time number `at`."""
    read, seen = reader._read, []

    def reading(self, box, level):
        seen.append(box)
        if len(seen) == at:
            change()
        return read(self, box, level)

    return mock.patch.object(reader, "_read", reading)


def small():
    """Regions of a plane each."""
    return mock.patch.multiple(image_pyramid, REGION_BYTES=8192, MAX_REGION_BYTES=8192)


def voxels_of(target: Path | str, scene: Any = 0) -> np.ndarray:
    return zarr.open_group(str(target), mode="r")["0/0" if scene == "all" else "0"][...]


@pytest.mark.parametrize("scene", [0, "all"])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_that_changes_is_refused_and_converted_anew(tmp_path, kind, scene):
    make, reader = SOURCES[kind]
    target = tmp_path / "out" / "scan.zarr"
    keywords = {"scene": scene, "chunks": (1, 64, 64), **QUIET}
    source = make(tmp_path, OLD)
    with small(), while_read(reader, lambda: make(tmp_path, NEW)):
        with pytest.raises(ImageReadError, match="changed while it was read"):
            to_ome_zarr(source, target, **keywords)
        assert not target.exists()
        assert not [path for path in target.parent.rglob("*") if ".stage" in path.name]
        to_ome_zarr(source, target, **keywords)
    assert (voxels_of(target, scene) == NEW).all()


def test_a_source_that_was_put_back_is_read_anew(tmp_path):
    """It has the fingerprint of the mixture then, which must not be gone on with."""
    source, target = tiff(tmp_path, OLD), tmp_path / "scan.zarr"
    times = source.stat().st_atime_ns, source.stat().st_mtime_ns
    with small(), while_read(TiffReader, lambda: tiff(tmp_path, NEW)):
        with pytest.raises(ImageReadError, match="changed"):
            to_ome_zarr(source, target, chunks=(1, 64, 64), **QUIET)
        tiff(tmp_path, OLD)
        os.utime(source, ns=times)
        to_ome_zarr(source, target, chunks=(1, 64, 64), **QUIET)
    assert (voxels_of(target) == OLD).all()


def test_in_an_object_store_the_same_call_converts_it_anew(tmp_path):
    source, target = tiff(tmp_path, OLD), f"memory://{uuid.uuid4().hex}/scan.zarr"
    with small(), while_read(TiffReader, lambda: tiff(tmp_path, NEW)):
        with pytest.raises(ImageReadError, match="changed") as raised:
            to_ome_zarr(source, target, chunks=(1, 64, 64), **QUIET)
        assert not hasattr(raised.value, "__notes__")
        to_ome_zarr(source, target, chunks=(1, 64, 64), **QUIET)
    assert (voxels_of(target) == NEW).all()


def test_of_a_source_that_is_out_of_reach_at_the_end_all_is_kept(tmp_path):
    source, target = tiff(tmp_path, OLD), tmp_path / "scan.zarr"
    away = tmp_path / "away.tif"
    with (
        small(),
        while_read(TiffReader, lambda: source.rename(away), at=4),
        pytest.raises(ImageReadError, match="cannot be seen") as raised,
    ):
        to_ome_zarr(source, target, chunks=(1, 64, 64), **QUIET)
    assert "4 of 4 regions are written and kept" in raised.value.__notes__[0]
    away.rename(source)
    with small(), while_read(TiffReader, mock.Mock(side_effect=AssertionError("read again")), at=1):
        to_ome_zarr(source, target, chunks=(1, 64, 64), **QUIET)
    assert (voxels_of(target) == OLD).all()


def test_what_is_in_memory_is_not_gone_through_again(tmp_path):
    with mock.patch.object(array, "identity_of_array", wraps=array.identity_of_array) as identity:
        to_ome_zarr(OLD, tmp_path / "scan.zarr", **QUIET)
    assert identity.call_count == 1


def test_labels_that_change_are_refused_and_written_anew(tmp_path):
    image, source = ome_zarr(tmp_path / "image.zarr", [OLD]), tiff(tmp_path, OLD)
    with small(), while_read(TiffReader, lambda: tiff(tmp_path, NEW)):
        with pytest.raises(ImageReadError, match="changed while it was read"):
            write_labels(image, source, **QUIET)
        assert not Path(image, "labels").exists()
        place = write_labels(image, source, **QUIET)
    assert (voxels_of(place) == NEW).all()
