"""What a function is told of an image's scale: for the axes of its tiles, once, before all else."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from patchworks import tile_process
from patchworks.errors import InputError
from patchworks.plan import RunOptions, plan_run
from patchworks.plugins.ome_zarr import to_ome_zarr


@dataclass(frozen=True)
class Recorder:
    """Labels pieces above a number of voxels' sizes; keeps what it was told."""

    told: tuple[Any, Any] | None = None
    calls: list = field(default_factory=list, compare=False)

    def at_scale(self, voxel_size, shape):
        self.calls.append("at_scale")
        return replace(self, told=(voxel_size, shape))

    def prepare(self, sample):
        self.calls.append("prepare")
        assert self.told is not None
        return self

    def __call__(self, tile):
        return ndimage.label(tile > 100)[0]


@pytest.fixture
def image(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 200, (2, 3, 4, 32, 32), dtype="uint16")
    sizes = {"t": 60, "z": 2.0, "y": 0.5, "x": 0.25}
    return str(to_ome_zarr(voxels, tmp_path / "a.zarr", axes="tczyx", pixel_size=sizes, n_levels=2))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ((2.0, 0.5, 0.25), (4, 32, 32))),
        ({"slice_wise": True}, ((0.5, 0.25), (32, 32))),
        ({"channel": [2, 0]}, ((2.0, 0.5, 0.25), (2, 4, 32, 32))),
        ({"channel": [1], "slice_wise": True}, ((0.5, 0.25), (1, 32, 32))),
    ],
)
def test_it_is_told_of_the_axes_of_its_tiles(image, options, told):
    assert plan_run(image, Recorder(), RunOptions(**options)).segmenter.told == told


def test_a_level_has_its_own_scale(image):
    assert plan_run(image, Recorder(), RunOptions(level=1)).segmenter.told[0] == (2.0, 1.0, 0.5)


def test_sizes_that_are_not_known_are_none():
    plan = plan_run(np.zeros((8, 16)), Recorder(), RunOptions(write_to="memory://at-scale"))
    assert plan.segmenter.told == ((None, None), (8, 16))


def test_it_is_told_once_per_run_and_before_it_is_prepared():
    recorder = Recorder()
    tile_process(np.zeros((32, 32)), recorder, tile_shape=(16, 16), overlap=2, progress=False)
    assert recorder.calls == ["at_scale", "prepare"]


def test_another_scale_is_another_run(image, tmp_path):
    finer = tmp_path / "b.zarr"
    voxels = np.random.default_rng(0).integers(0, 200, (2, 3, 4, 32, 32), dtype="uint16")
    to_ome_zarr(voxels, finer, axes="tczyx", pixel_size={"z": 1.0, "y": 0.5, "x": 0.25})
    digests = {plan_run(p, Recorder(), RunOptions()).segmenter_digest for p in (image, str(finer))}
    assert len(digests) == 2


def test_what_it_finds_wrong_is_said_before_anything_is_written(image, tmp_path):
    class Refusing(Recorder):
        def at_scale(self, voxel_size, shape):
            raise InputError("voxels too large")

    with pytest.raises(InputError, match="too large"):
        tile_process(image, Refusing(), write_to=tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
