"""The inner parts of a run, one by one: pytest -m benchmark tests/benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy import ndimage

from patchworks.geometry.grid import TileGrid
from patchworks.geometry.pyramid import plan_pyramid
from patchworks.io.chunk_writer import ChunkWriter
from patchworks.io.label_image import LabelImage, LabelTarget
from patchworks.io.location import Location
from patchworks.io.ngff import Calibration
from patchworks.io.record import TileRecord
from patchworks.io.source import open_source
from patchworks.io.stage import Stage
from patchworks.io.staged_labels import find_runs
from patchworks.io.tile_reader import TileReader
from patchworks.run import RunSpec
from patchworks.steps.levels import RegionWriter
from patchworks.steps.merge import build_relabeling, gather_region
from patchworks.steps.pyramid import pool_labels
from patchworks.steps.seams import join_by_agreement, join_by_touch
from patchworks.steps.stage import stage_tile

pytestmark = pytest.mark.benchmark

SHAPE, TILE = (64, 512, 512), (32, 256, 256)
GRID = TileGrid.regular(SHAPE, TILE, (8, 8, 8))
SPEC = RunSpec(grid=GRID)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 1, SHAPE)
    return (200 + 6000 * ndimage.gaussian_filter(noise, 3)).clip(0, 9999).astype("uint16")


@pytest.fixture(scope="module")
def labels(image) -> np.ndarray:
    return ndimage.label(image > 400)[0]


@pytest.fixture(scope="module")
def stage(tmp_path_factory, labels) -> Stage:
    made = Stage.create(tmp_path_factory.mktemp("s") / "stage", {"fingerprint": "f"}, GRID.n_tiles)
    for tile in GRID:
        stage_tile(made, SPEC.seams, tile, labels[tile.read.slices])
    return made


def test_read_tiles_with_halos(benchmark, tmp_path: Path, image):
    zarr.create_array(tmp_path / "i.zarr", data=image, chunks=(16, 128, 128))
    source = open_source(tmp_path / "i.zarr", channel=0, level=0)

    def read():
        reader = TileReader(source, GRID)
        return sum(reader.read(tile)[1] for tile in GRID)

    benchmark(read)


def test_stage_a_tile(benchmark, stage, labels):
    tile = GRID[0]
    benchmark(stage_tile, stage, SPEC.seams, tile, labels[tile.read.slices])


def test_a_record_to_bytes_and_back(benchmark, stage):
    record = stage.read_record(0)
    benchmark(lambda: TileRecord.from_bytes(record.to_bytes()))


@pytest.mark.parametrize("join", ["agreement", "touch"])
def test_judge_a_seam(benchmark, labels, join):
    slab = labels[:, :, 255:257]
    if join == "agreement":
        benchmark(join_by_agreement, slab, slab)
    else:
        benchmark(join_by_touch, slab[..., 0], slab[..., 1], 0)


def test_number_the_objects(benchmark):
    rng = np.random.default_rng(0)
    n_labels = np.full(1000, 1000)
    joins = np.stack([rng.integers(0, 1000, 10**5), rng.integers(1, 1001, 10**5)] * 2, 1)
    benchmark(build_relabeling, n_labels, n_labels, joins)


def test_relabel_a_region(benchmark, stage):
    counts = np.array([stage.read_counts(i) for i in range(GRID.n_tiles)])
    relabeling = build_relabeling(counts[:, 0], counts[:, 1], np.empty((0, 4), int))
    region = GRID[0].core
    benchmark(lambda: gather_region(stage, GRID, relabeling, region).read(region))


def test_find_runs(benchmark, labels):
    benchmark(find_runs, labels)


def test_write_a_region_plane_by_plane(benchmark, tmp_path: Path, labels):
    place = Location(str(tmp_path / "l.zarr"))
    calibration = Calibration.unknown(("z", "y", "x"))
    target = LabelTarget(
        location=place, image_group=None, name="l", version="0.5", calibration=calibration
    )
    image = LabelImage(target, plan_pyramid(GRID, 5, 2), np.dtype("uint32"), "f")
    image.create()
    made, writer = labels.astype("uint32"), RegionWriter(image, pool_labels)
    region = image.pyramid.regions()[0].core
    benchmark(writer.write, region, lambda box: made[box.slices])


@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
def test_pool_a_region(benchmark, labels, dtype):
    benchmark(pool_labels, labels.astype(dtype), (1, 2, 2))


def test_write_a_region(benchmark, tmp_path: Path, labels):
    codec = zarr.codecs.ZstdCodec(level=1)
    array = zarr.create_array(
        tmp_path / "l.zarr", shape=SHAPE, chunks=(64, 256, 256), dtype="uint32", compressors=codec
    )
    whole = TileGrid.regular(SHAPE, SHAPE, (0, 0, 0))[0].core
    benchmark(ChunkWriter(array, tmp_path / "l.zarr", 1).write, whole, labels.astype("uint32"))


def test_plan_a_million_tiles(benchmark):
    shape = (6400, 51_200, 51_200)
    benchmark(lambda: RunSpec(grid=TileGrid.regular(shape, (64, 512, 512), (16,) * 3)).pyramid)
