"""bioio: units are kept, nothing is made up, and plugins' gaps are errors, not wrong voxels."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

from patchworks.errors import ImageReadError, SourceNotFoundError
from patchworks.geometry.box import Box

pytest.importorskip("bioio")
pytest.importorskip("bioio_ome_tiff")
pytest.importorskip("bioio_tifffile")
from patchworks.readers.bioio import BioioReader

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [  # what plugins warn of is theirs; as errors, the warnings make bioio pass them over
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:As of version 0.4.0:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not parse tiff pixel size:UserWarning"),
]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real files")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 65535, (2, 3, 4, 32, 40), dtype=np.uint16)


def whole(reader):
    return reader.read(Box.whole(reader.scene.shape))


def ome(path, image, axes, *, unit="nm", size=200.0, **metadata):
    sizes = {f"PhysicalSize{axis}": size for axis in "XYZ"}
    sizes |= {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"} if unit else {}
    tifffile.imwrite(path, image, ome=True, metadata={"axes": axes, **sizes, **metadata})
    return path


@pytest.fixture(scope="module")
def stack_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bioio") / "stack.ome.tif"
    channels = {"Name": ["DAPI", "GFP", "RFP"], "Color": [255, -16776961, 65535]}
    times = {"TimeIncrement": 500.0, "TimeIncrementUnit": "ms"}
    return ome(path, IMAGE, "TCZYX", Channel=channels, **times)


def test_nanometers_stay_nanometers(stack_path):
    scene = BioioReader(stack_path).scene
    assert (scene.axes, scene.shape, scene.dtype) == ("tczyx", IMAGE.shape, IMAGE.dtype)
    assert scene.block == (1, 1, 1, 32, 40)
    assert dict(scene.spacing) == {
        "t": (0.5, "second"),
        "z": (200.0, "nanometer"),
        "y": (200.0, "nanometer"),
        "x": (200.0, "nanometer"),
    }
    assert [c.name for c in scene.channels] == ["DAPI", "GFP", "RFP"]
    assert [c.color for c in scene.channels] == ["000000", "FF0000", "0000FF"]


def test_boxes_are_those_parts_of_the_image(stack_path):
    reader = BioioReader(stack_path)
    np.testing.assert_array_equal(whole(reader), IMAGE)
    for _ in range(10):
        start = [int(RNG.integers(0, n)) for n in IMAGE.shape]
        stop = [int(RNG.integers(a, n)) + 1 for a, n in zip(start, IMAGE.shape, strict=True)]
        box = Box(tuple(start), tuple(stop))
        np.testing.assert_array_equal(reader.read(box), IMAGE[box.slices])


def test_threads_read_through_one_reader_that_travels(stack_path):
    reader = pickle.loads(pickle.dumps(BioioReader(stack_path)))
    boxes = [Box((t, c, 0, 0, 0), (t + 1, c + 1, 4, 32, 40)) for t in range(2) for c in range(3)]
    with ThreadPoolExecutor(4) as pool:
        for box, part in zip(boxes, pool.map(reader.read, boxes), strict=True):
            np.testing.assert_array_equal(part, IMAGE[box.slices])
    reader.close()
    np.testing.assert_array_equal(reader.read(boxes[1]), IMAGE[boxes[1].slices])


@pytest.mark.parametrize(
    "unit, size, expected",
    [
        ("µm", 1.0, (1.0, "micrometer")),
        (None, 1.0, None),
        (None, 0.25, (0.25, "micrometer")),
        ("pixel", 2.0, None),
    ],
)
def test_a_size_of_one_without_unit_is_no_calibration(tmp_path, unit, size, expected):
    path = ome(tmp_path / "one.ome.tif", IMAGE[0, 0], "ZYX", unit=unit, size=size)
    assert BioioReader(path).scene.spacing.get("x") == expected


def test_uncalibrated_tiff_has_no_spacing_and_no_channels(tmp_path):
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, IMAGE[0, 0, 0])
    scene = BioioReader(path).scene
    assert (scene.axes, scene.spacing, scene.channels, scene.name) == ("yx", {}, (), "")


def test_imagej_channels_are_channels(tmp_path):
    path = tmp_path / "imagej.tif"
    image = IMAGE[0].transpose(1, 0, 2, 3)  # (z, c, y, x), as ImageJ has it
    tifffile.imwrite(path, image, imagej=True, metadata={"axes": "ZCYX"})
    reader = BioioReader(path)
    assert reader.scene.axes == "czyx"
    assert not {"y", "x"} & set(reader.scene.spacing)
    np.testing.assert_array_equal(whole(reader), IMAGE[0])


def test_color_samples_are_channels(tmp_path):
    path = tmp_path / "color.tif"
    image = RNG.integers(0, 255, (24, 36, 3), dtype=np.uint8)
    tifffile.imwrite(path, image, photometric="rgb")
    reader = BioioReader(path)
    assert (reader.scene.axes, reader.scene.block) == ("cyx", (3, 24, 36))
    assert [c.color for c in reader.scene.channels] == ["FF0000", "00FF00", "0000FF"]
    np.testing.assert_array_equal(whole(reader), np.moveaxis(image, -1, 0))
    box = Box((1, 3, 4), (2, 20, 30))
    np.testing.assert_array_equal(reader.read(box), np.moveaxis(image, -1, 0)[box.slices])


def test_unknown_format_says_so(tmp_path):
    path = tmp_path / "notes.unknown"
    path.write_text("no image")
    with pytest.raises(SourceNotFoundError, match=r"no installed reader .*'\.unknown'"):
        BioioReader.scene_names(path)


@needs_data
def test_truncated_file_is_an_error(tmp_path):
    pytest.importorskip("bioio_czi")
    content = (DATA / "mosaic_test.czi").read_bytes()
    path = tmp_path / "cut.czi"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises((SourceNotFoundError, ImageReadError), match=r"cut\.czi"):
        whole(BioioReader(path))


@needs_data
def test_real_mosaic_is_stitched():
    pytest.importorskip("bioio_czi")
    czi = pytest.importorskip("pylibCZIrw.czi")
    reader = BioioReader(DATA / "mosaic_test.czi")
    with czi.open_czi(str(DATA / "mosaic_test.czi")) as document:
        expected = document.read()[..., 0].copy()
    assert (reader.scene.axes, reader.scene.name) == ("yx", "TR1")
    assert reader.scene.spacing["x"] == (pytest.approx(1.08333333333333), "micrometer")
    np.testing.assert_array_equal(whole(reader), expected)


@needs_data
def test_color_czi_that_the_plugin_reads_wrongly_is_refused():
    pytest.importorskip("bioio_czi")
    with pytest.raises(SourceNotFoundError, match="pylibCZIrw"):
        _ = BioioReader(DATA / "RGB-8bit.czi").scene


@needs_data
def test_real_slide_agrees_with_tifffile():
    path = DATA / "CMU-1-Small-Region.ome.tiff"
    reader = BioioReader(path)
    assert len(BioioReader.scene_names(path)) == 3
    assert reader.scene.spacing == {"y": (0.499, "micrometer"), "x": (0.499, "micrometer")}
    box = Box((0, 1000, 1100), (3, 1200, 1350))
    np.testing.assert_array_equal(reader.read(box), tifffile.imread(path, series=0)[box.slices])


@pytest.mark.parametrize("name", ["whole.png", "whole.npy", "whole"])
def test_a_format_that_no_plugin_reads_is_not_called_damaged(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(SourceNotFoundError, match=r"no installed reader.*bioio-imageio.*TIFF") as e:
        BioioReader.scene_names(tmp_path / name)
    assert "damaged" not in str(e.value)


def test_a_file_that_its_plugin_cannot_read_may_be_damaged(tmp_path):
    (tmp_path / "cut.ome.tif").write_bytes(b"abc" * 100)
    with pytest.raises(SourceNotFoundError, match="may be damaged or cut off"):
        BioioReader.scene_names(tmp_path / "cut.ome.tif")
