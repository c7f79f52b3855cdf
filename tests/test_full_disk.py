"""A disk that is full ends a run with what and where, keeps what is done, and lets it go on."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from patchworks import pipeline, tile_process
from patchworks.errors import TargetNotWritableError
from tests.images import above_1100, files_of, smooth_noise

IMAGE = smooth_noise((40, 40))
RUN = {"tile_shape": (10, 10), "overlap": 2, "progress": False, "max_workers": 1}


class Disk:
    """Makes every byte that this process writes to a file an error of the system's."""

    def __init__(self) -> None:
        self.soft, self.hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.hard))

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.soft, self.hard))


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.make_room()


def test_while_tiles_are_staged(tmp_path, disk):
    calls = []

    def segment(tile: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 6:
            disk.fill()
        return above_1100(tile)

    with pytest.raises(TargetNotWritableError) as caught:
        tile_process(IMAGE, segment, write_to=tmp_path / "o.zarr", **RUN)
    assert str(tmp_path / "o.zarr.stage") in str(caught.value)
    assert "File too large" in str(caught.value)
    assert "of 16 tiles are done and kept in" in caught.value.__notes__[0]


@pytest.mark.parametrize("step", ["relabel", "begin_label_image", "gather_region", "publish"])
def test_in_a_later_step(tmp_path, disk, monkeypatch, step):
    do = getattr(pipeline, step)

    def with_full_disk(*args: object) -> object:
        disk.fill()
        return do(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, step, with_full_disk)
        with pytest.raises(TargetNotWritableError) as caught:
            tile_process(IMAGE, above_1100, write_to=tmp_path / "o.zarr", **RUN)
    assert "o.zarr" in str(caught.value)
    assert "File too large" in str(caught.value)
    assert "16 of 16 tiles are done and kept in" in caught.value.__notes__[0]
    assert not (tmp_path / "o.zarr").exists()
    disk.make_room()
    for name in ("o.zarr", "undisturbed.zarr"):
        tile_process(IMAGE, above_1100, write_to=tmp_path / name, **RUN)
    assert files_of(tmp_path / "o.zarr") == files_of(tmp_path / "undisturbed.zarr")
    assert not (tmp_path / "o.zarr.stage").exists()


def test_what_is_to_be_replaced_comes_back_where_the_new_one_cannot_be_named(tmp_path, monkeypatch):
    run = {"write_to": tmp_path / "o.zarr", **RUN}
    tile_process(IMAGE, above_1100, **run)
    before = files_of(tmp_path / "o.zarr")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails)
        with pytest.raises(TargetNotWritableError, match="Input/output error"):
            tile_process(IMAGE, above_1100, connectivity=2, overwrite=True, **run)
    assert files_of(tmp_path / "o.zarr") == before
    tile_process(IMAGE, above_1100, connectivity=2, overwrite=True, **run)
    assert files_of(tmp_path / "o.zarr") != before
    assert [path.name for path in tmp_path.iterdir()] == ["o.zarr"]
