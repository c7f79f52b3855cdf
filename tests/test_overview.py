"""The overview picture: its size, its outlines, and what it takes to make it."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from patchworks import tile_process
from patchworks.errors import InputError
from patchworks.io import projection
from patchworks.plugins.ome_zarr import write_labels
from patchworks.plugins.overview import GREYS, PALETTE, overview_picture, overview_png
from tests.stores import ome_zarr

ROOT = Path(__file__).parents[1]


def stores(folder, image, labels, n_levels=1, chunks=None):
    """Write an image, and labels with a pyramid that takes every second voxel in y and x."""
    axes = {2: "yx", 3: "zyx", 4: "azyx"}[image.ndim]
    levels = [labels[..., :: 2**k, :: 2**k] for k in range(4)]
    return (
        ome_zarr(
            folder / "image.zarr",
            [image[..., :: 2**k, :: 2**k] for k in range(n_levels)],
            axes=axes,
            chunks=chunks,
        ),
        ome_zarr(folder / "labels.zarr", levels, axes=axes, chunks=chunks),
    )


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def is_colour(rgb: np.ndarray) -> np.ndarray:
    return rgb.max(axis=-1) != rgb.min(axis=-1)


def a_square(shape=(100, 120)):
    labels = np.zeros(shape, "uint32")
    labels[..., 30:60, 40:80] = 3
    return labels


class TestOutlines:
    def test_they_lie_inside_objects_where_labels_change(self, tmp_path):
        labels = a_square()
        labels[30:60, 60:80] = 4
        image, stored = stores(tmp_path, np.zeros(labels.shape, "uint8"), labels)
        rgb = pixels(overview_picture(image, stored, max_pixels=120))
        assert rgb.shape == (100, 120, 3)
        expected = np.zeros(labels.shape, bool)
        expected[30:60, 40:80] = True
        expected[31:59, 41:59] = False
        expected[31:59, 61:79] = False
        np.testing.assert_array_equal(is_colour(rgb), expected)
        assert (rgb[30, 40] == PALETTE[3]).all()
        assert (rgb[30, 79] == PALETTE[4]).all()

    def test_small_images_are_enlarged_and_large_ones_shrunk(self, tmp_path):
        for n, shape in ((1, (800, 960, 3)), (9, (500, 600, 3))):
            labels = np.kron(a_square(), np.ones((n, n), "uint32"))
            folder = tmp_path / str(n)
            image, stored = stores(folder, labels.astype("uint8"), labels)
            rgb = pixels(overview_picture(image, stored, max_pixels=1000 if n == 1 else 600))
            assert rgb.shape == shape
            rows, columns = np.nonzero(is_colour(rgb))
            found = np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1])
            expected = np.array([30, 60, 40, 80]) * shape[0] / 100
            assert abs(found - expected).max() <= 2

    @pytest.mark.parametrize("leading", [(5,), (2, 3)])
    def test_every_plane_counts(self, tmp_path, leading):
        labels = np.zeros((*leading, 64, 64), "uint16")
        labels[(-1,) * len(leading) + (slice(10, 20), slice(10, 20))] = 1
        labels[(0,) * len(leading) + (slice(40, 50), slice(40, 50))] = 2
        image, stored = stores(tmp_path, labels, labels)
        rgb = pixels(overview_picture(image, stored, max_pixels=64))
        assert is_colour(rgb)[10, 10]
        assert is_colour(rgb)[40, 40]
        assert is_colour(rgb).sum() == 2 * 36
        assert (rgb[15, 15] == 255).all() or (rgb[45, 45] == 255).all()

    def test_seams(self, tmp_path):
        image, stored = stores(tmp_path, np.zeros((100, 120), "uint8"), a_square() * 0)
        rgb = pixels(overview_picture(image, stored, max_pixels=120, tile_shape=(50, 40)))
        rows, columns = np.nonzero(rgb[..., 0])
        assert set(rows[np.isin(columns, (40, 80), invert=True)]) == {50}
        assert set(columns[rows != 50]) == {40, 80}

    def test_over_an_image_of_floats_with_nothing_in_places(self, tmp_path):
        image = np.full((50, 60), np.nan, "float32")
        image[10:20] = -3.5
        image[20:30] = 7
        image[30, 0] = np.inf
        stored = stores(tmp_path, image, np.zeros(image.shape, "uint8"))
        assert pixels(overview_picture(*stored, max_pixels=60)).max() == 255

    def test_neighbours_never_share_a_colour(self, tmp_path):
        labels = np.zeros((80, 80), "uint64")
        side = np.arange(8)
        # As numbered in tiles: those above one another differ by 8, the number of colours.
        cells = 1 + side[:, None] * 8 + side[None] + 2**40
        labels[:] = np.kron(cells, np.ones((10, 10), "uint64"))
        image, stored = stores(tmp_path, np.zeros(labels.shape, "uint8"), labels)
        rgb = pixels(overview_picture(image, stored, max_pixels=80)).astype(int)
        for one, other in ((rgb[10::10], rgb[9:-1:10]), (rgb[:, 10::10], rgb[:, 9:-1:10])):
            assert (one != other).any(axis=-1).all()
        assert is_colour(rgb)[10::10].all()

    def test_labels_are_found_by_their_name_or_alone(self, tmp_path):
        labels = a_square()
        image, _ = stores(tmp_path, labels.astype("uint8"), labels)
        write_labels(image, labels, name="cells", progress=False)
        expected = overview_picture(image, f"{image}/labels/cells")
        assert overview_picture(image) == expected == overview_picture(image, "cells")
        assert (
            overview_png(image, path=tmp_path / "a.png", max_pixels=1024).read_bytes() == expected
        )
        write_labels(image, labels, name="nuclei", progress=False)
        with pytest.raises(InputError, match="'cells', 'nuclei'"):
            overview_picture(image)

    def test_the_home_folder_may_be_named_in_short(self, tmp_path, monkeypatch):
        image, stored = stores(tmp_path, np.zeros((100, 120), "uint8"), a_square())
        monkeypatch.setenv("HOME", str(tmp_path))
        assert overview_png(image, stored, "~/a.png") == tmp_path / "a.png"
        assert (tmp_path / "a.png").stat().st_size

    def test_a_folder_that_is_not_there_is_refused_before_anything_is_drawn(self, tmp_path):
        with pytest.raises(InputError, match=r"path=.*a\.png.*no folder .*nowhere; make"):
            overview_png("not-read.zarr", path=tmp_path / "nowhere" / "a.png")

    def test_labels_of_another_shape_are_refused(self, tmp_path):
        image, stored = stores(tmp_path, np.zeros((50, 60), "uint8"), np.zeros((50, 61), "uint8"))
        with pytest.raises(InputError, match=r"shape \(50, 61\); the image has \(50, 60\)"):
            overview_picture(image, stored)


class TestSize:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("max_bytes", [2_000, 150_000])
    def test_it_holds_for_noise(self, tmp_path, seed, max_bytes):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(200, 1500, 2))
        labels = rng.integers(0, 2**32, shape, dtype="uint32")
        image, stored = stores(tmp_path, rng.integers(0, 2**16, shape, dtype="uint16"), labels)
        picture = overview_picture(image, stored, max_bytes=max_bytes)
        assert len(picture) <= max_bytes
        assert pixels(picture).max() > 100

    def test_no_more_is_lost_than_must_be(self, tmp_path):
        labels = a_square()
        image, stored = stores(tmp_path, labels, labels)
        unlimited = overview_picture(image, stored)
        assert overview_picture(image, stored, max_bytes=len(unlimited)) == unlimited

    def test_less_than_any_picture_takes_is_refused(self, tmp_path):
        image, stored = stores(tmp_path, a_square(), a_square())
        with pytest.raises(InputError, match=r"max_bytes=10: the smallest picture takes \d+"):
            overview_picture(image, stored, max_bytes=10)

    def test_a_png_is_a_file_of_few_colours(self, tmp_path):
        image, stored = stores(tmp_path, a_square(), a_square())
        path = overview_png(image, stored, tmp_path / "a.png", max_pixels=240)
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("PNG", (240, 200))
        assert len(GREYS) + len(PALETTE) == 256


class TestBounds:
    def test_a_coarse_level_is_read_in_place_of_the_full_one(self, tmp_path, monkeypatch):
        labels = np.kron(a_square(), np.ones((8, 8), "uint32"))
        stored = stores(tmp_path, labels.astype("uint8"), labels, n_levels=4)
        read = []
        monkeypatch.setattr(
            projection, "maximum_projection", lambda s, b: read.append(s.shape) or np.zeros(s.shape)
        )
        monkeypatch.setattr(
            "patchworks.plugins.overview.maximum_projection", projection.maximum_projection
        )
        overview_picture(*stored, max_pixels=480)
        assert read == [(400, 480), (400, 480)]

    @pytest.mark.parametrize("n_planes, expected", [(40, 40), (16, 16), (3, 3), (1, 1)])
    def test_the_same_planes_of_both_are_read(self, tmp_path, monkeypatch, n_planes, expected):
        labels = np.broadcast_to(a_square((40, 40, 40))[:, :, :], (40, 40, 40)).copy()
        labels[:, 0, 0] = np.arange(1, 41)
        image, stored = (
            ome_zarr(tmp_path / name, [labels], chunks=(8, 8, 8)) for name in ("i.zarr", "l.zarr")
        )
        monkeypatch.setattr(projection, "MAX_BYTES", n_planes * 40 * 40 * 4)
        source = projection.ImageSource
        seen: dict[str, set[int]] = {}
        read = source.read

        def watched(self, box):
            seen.setdefault(self.name, set()).update(range(box.start[0], box.stop[0]))
            return read(self, box)

        monkeypatch.setattr(source, "read", watched)
        overview_picture(image, stored, max_pixels=40)
        planes = list(seen.values())
        assert len(planes) == 2
        assert planes[0] == planes[1]
        assert len(planes[0]) == expected
        assert 16 <= min(planes[0]) <= 23 or expected > 3

    def test_an_image_that_is_too_large_is_left_black(self, tmp_path, monkeypatch, caplog):
        labels = a_square().astype("uint8")
        image, stored = stores(tmp_path, np.full(labels.shape, 9, "float64"), labels)
        monkeypatch.setattr(projection, "MAX_BYTES", labels.size * 4)
        rgb = pixels(overview_picture(image, stored, max_pixels=120))
        assert is_colour(rgb).sum() == 2 * 30 + 2 * 38
        assert (rgb[~is_colour(rgb)] == 0).all()
        assert "one plane of shape (100, 120)" in caplog.text
        assert "outlines over black" in caplog.text

    def test_labels_that_are_too_large_are_refused(self, tmp_path, monkeypatch):
        image, stored = stores(tmp_path, a_square().astype("uint8"), a_square())
        monkeypatch.setattr(projection, "MAX_BYTES", 100)
        with pytest.raises(InputError, match=r"labels.zarr.*a pyramid helps"):
            overview_picture(image, stored)

    def test_reading_ends_in_time(self, tmp_path, monkeypatch, caplog):
        image, stored = stores(tmp_path, a_square((9, 100, 120)), a_square((9, 100, 120)),
                               chunks=(1, 100, 120))  # fmt: skip
        monkeypatch.setattr(projection, "MAX_SECONDS", 0.0)
        assert is_colour(pixels(overview_picture(image, stored, max_pixels=120))).any()
        assert "what came until then" in caplog.text


@pytest.mark.parametrize("shape", [(70, 90), (4, 70, 90), (2, 3, 70, 90)])
def test_of_labels_that_patchworks_made(tmp_path, shape):
    image = np.zeros(shape, "uint16")
    image[..., 20:40, 20:60] = 1000
    array = zarr.create_array(tmp_path / "image.zarr", data=image, chunks=shape)
    tile_process(
        array, lambda tile: (tile > 500).astype("uint8"), write_to=tmp_path / "l.zarr",
        tile_shape=shape, overlap=0, progress=False,
    )  # fmt: skip
    rgb = pixels(overview_picture(tmp_path / "image.zarr", tmp_path / "l.zarr", max_pixels=90))
    assert is_colour(rgb).sum() == 2 * 40 + 2 * 18


SPARSE = """
import re, time
from pathlib import Path
from patchworks.plugins.ome_zarr import write_labels
from patchworks.plugins.overview import overview_picture
overview_picture("small.zarr", "small_labels.zarr")

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before, start = peak(), time.perf_counter()
picture = overview_picture("image.zarr", "labels.zarr", max_bytes=150_000)
print(peak() - before, time.perf_counter() - start, len(picture))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, chunks",
    [
        ((1, 11_000, 12_000), (1, 1024, 1024)),  # the largest plane that is read
        ((1, 16_384, 16_384), (1, 1024, 1024)),  # larger
        ((1, 8192, 16_000), (1, 8192, 16_000)),  # one chunk
        ((256, 1024, 1024), (64, 256, 256)),
        ((4096, 256, 256), (16, 256, 256)),
        ((64, 2048, 2048), (64, 1024, 1024)),
    ],
)
def test_memory_and_time_of_large_images_are_bounded(tmp_path, shape, chunks):
    rng = np.random.default_rng(0)
    piece = rng.integers(0, 2000, (1, 512, 512), dtype="uint16")
    small = np.zeros((1, 64, 64), "uint16")
    for name in ("small.zarr", "small_labels.zarr"):
        zarr.create_array(tmp_path / name, data=small, chunks=small.shape)
    image = zarr.create_array(
        tmp_path / "image.zarr", shape=shape, chunks=chunks, dtype="uint16", fill_value=7
    )
    image[shape[0] // 2, :512, :256] = piece[0, :, :256]
    folder, levels = tmp_path / "labels.zarr", []
    group = zarr.open_group(folder, mode="w")
    for k in range(6):
        level = (shape[0], shape[1] >> k, shape[2] >> k)
        array = group.create_array(
            str(k), shape=level, chunks=tuple(map(min, chunks, level)), dtype="uint32"
        )
        array[shape[0] // 2, : 512 >> k, : 256 >> k] = 5
        scale = {"type": "scale", "scale": [1.0, 2.0**k, 2.0**k]}
        levels.append({"path": str(k), "coordinateTransformations": [scale]})
    axes = [{"name": a, "type": "space"} for a in "zyx"]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": "labels", "axes": axes, "datasets": levels}],
    }
    done = subprocess.run(
        [sys.executable, "-c", SPARSE],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    mebibytes, seconds, n_bytes = map(float, done.stdout.split())
    print(shape, done.stdout, done.stderr)
    assert mebibytes < 1024
    assert seconds < 20
    assert n_bytes <= 150_000
