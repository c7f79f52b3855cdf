"""LIF: a real file agrees with liffile's own reading, written ones with what was written."""

from __future__ import annotations

import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.errors import ImageReadError, SourceNotFoundError
from patchworks.geometry.box import Box

liffile = pytest.importorskip("liffile")
from patchworks.readers.lif import LifReader  # noqa: E402

DATA = Path(__file__).parents[3] / "shared" / "data"
REAL = DATA / "xz-example.lif"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real files")
RNG = np.random.default_rng(0)
NUMBERS = {"x": 1, "y": 2, "z": 3, "t": 4, "m": 10}


def whole(reader):
    return reader.read(Box.whole(reader.scene.shape))


def dimension(axis, extent, stride, origin="0", length="0", unit="m"):
    return (
        f'<DimensionDescription DimID="{NUMBERS[axis]}" NumberOfElements="{extent}" '
        f'Origin="{origin}" Length="{length}" Unit="{unit}" BitInc="0" BytesInc="{stride}"/>'
    )


def channel(offset, *, bits=8, kind=0, tag=0, lut="", dye=""):
    entry = f"<ChannelProperty><Key>DyeName</Key><Value>{dye}</Value></ChannelProperty>"
    return (
        f'<ChannelDescription DataType="{kind}" ChannelTag="{tag}" Resolution="{bits}" '
        f'NameOfMeasuredQuantity="" Min="0" Max="255" Unit="" LUTName="{lut}" '
        f'IsLUTInverted="0" BytesInc="{offset}" BitInc="0">{entry if dye else ""}'
        "</ChannelDescription>"
    )


def element(name, block, dimensions, channels, extra="", children=""):
    return (
        f'<Element Name="{name}"><Data><Image><ImageDescription>'
        f"<Channels>{''.join(channels)}</Channels><Dimensions>{''.join(dimensions)}</Dimensions>"
        f'</ImageDescription>{extra}</Image></Data><Memory Size="0" MemoryBlockID="{block}"/>'
        f"<Children>{children}</Children></Element>"
    )


def folder(name, children):
    return f'<Element Name="{name}"><Children>{children}</Children></Element>'


def write(path, elements, blocks):
    """Write a LIF file of version 2, as Leica's description of the format has it."""
    text = f'<LMSDataContainerHeader Version="2">{folder("project", elements)}'
    text = (text + "</LMSDataContainerHeader>").encode("utf-16-le")
    parts = [struct.pack("<IIBI", 0x70, len(text) + 5, 0x2A, len(text) // 2), text]
    for name, voxels in blocks.items():
        title = name.encode("utf-16-le")
        head = (0x70, len(title) + 14, 0x2A, voxels.nbytes, 0x2A, len(name))
        parts += [struct.pack("<IIBQBI", *head), title, voxels.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


@needs_data
@pytest.mark.parametrize(
    "index, name, axes, to_canonical",
    [(0, "xzt", "tczyx", (0, 1, 2, 3)), (1, "xzy", "czyx", (1, 2, 0, 3)), (2, "xz", "czyx", None)],
)
def test_real_scans_without_slow_y_agree_with_liffile(index, name, axes, to_canonical):
    reader = LifReader(REAL, index)
    with liffile.LifFile(REAL) as lif:
        expected = lif.images[index].asarray()
    expected = expected if to_canonical is None else expected.transpose(to_canonical)
    expected = expected.reshape(reader.scene.shape)
    assert (LifReader.scene_names(REAL)[index], reader.scene.axes) == (name, axes)
    assert reader.scene.block == (1,) * len(axes)
    np.testing.assert_array_equal(whole(reader), expected)
    for _ in range(20):
        start = [int(RNG.integers(0, n)) for n in reader.scene.shape]
        stop = [int(RNG.integers(a, n)) + 1 for a, n in zip(start, reader.scene.shape, strict=True)]
        box = Box(tuple(start), tuple(stop))
        np.testing.assert_array_equal(reader.read(box), expected[box.slices])


@needs_data
def test_real_calibration_is_that_of_the_axes_scanned():
    xzt, xzy = LifReader(REAL, 0).scene, LifReader(REAL, 1).scene
    assert xzt.spacing["t"] == (0.53, "second")
    assert xzt.spacing["z"] == (pytest.approx(17.8154 / 127, rel=1e-15), "micrometer")
    assert set(xzt.spacing) == {"t", "z", "x"}
    assert xzy.spacing["y"] == (pytest.approx(5.039354 / 22, rel=1e-15), "micrometer")
    assert [c.color for c in xzt.channels] == ["00FF00", "FF0000"]


STORED = RNG.integers(0, 4095, (2, 3, 2, 5, 7), dtype=np.uint16)
"""(t, z, c, y, x): the order in which LAS stores a stack."""


@pytest.fixture(scope="module")
def stack_path(tmp_path_factory):
    dimensions = [
        dimension("x", 7, 2, "1e-06", "1.2e-06"),
        dimension("y", 5, 14, "0", "8e-07"),
        dimension("z", 3, 140, "5e-06", "-3e-06"),
        dimension("t", 2, 420, "0", "2.5", "s"),
    ]
    channels = [channel(0, bits=12, lut="Green", dye="GFP"), channel(70, bits=12, lut="Fire")]
    scaling = '<ChannelScalingInfo WhiteValue="{}" BlackValue="{}"/>'
    extra = (
        '<Attachment Name="ViewerScaling">'
        f"{scaling.format(0.5, 0)}{scaling.format(1, 0.1)}</Attachment>"
    )
    path = tmp_path_factory.mktemp("lif") / "stack.lif"
    return write(path, element("stack", "B1", dimensions, channels, extra), {"B1": STORED})


def test_stack_is_moved_to_canonical_axes_with_its_calibration(stack_path):
    reader = LifReader(stack_path)
    scene = reader.scene
    assert (scene.axes, scene.dtype, scene.name) == ("tczyx", np.uint16, "stack")
    assert scene.spacing == {
        "t": (2.5, "second"),
        "z": (1.5, "micrometer"),
        "y": (0.2, "micrometer"),
        "x": (0.2, "micrometer"),
    }
    assert scene.origin == {"y": 0.0, "x": 1.0}
    assert [(c.name, c.color) for c in scene.channels] == [("GFP", "00FF00"), (None, None)]
    assert [c.window for c in scene.channels] == [(0, 2047.5), (409.5, 4095)]
    np.testing.assert_array_equal(whole(reader), STORED.transpose(0, 2, 1, 3, 4))


@settings(max_examples=30)
@given(st.data())
def test_any_box_is_that_part_of_the_image(stack_path, data):
    image = STORED.transpose(0, 2, 1, 3, 4)
    starts = [data.draw(st.integers(0, n - 1)) for n in image.shape]
    stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, image.shape, strict=True)]
    box = Box(tuple(starts), tuple(stops))
    np.testing.assert_array_equal(LifReader(stack_path).read(box), image[box.slices])


def test_threads_and_processes_share_nothing(stack_path):
    reader = pickle.loads(pickle.dumps(LifReader(stack_path)))
    box = Box((1, 0, 0, 0, 0), (2, 2, 3, 5, 7))
    with ThreadPoolExecutor(8) as pool:
        for part in pool.map(reader.read, [box] * 50):
            np.testing.assert_array_equal(part, STORED.transpose(0, 2, 1, 3, 4)[box.slices])
    reader.close()


def test_color_with_padded_rows_becomes_red_green_blue(tmp_path):
    padded = RNG.integers(0, 255, (4, 20), dtype=np.uint8)  # 5 pixels of b, g, r, and 5 bytes
    channels = [channel(0, tag=3), channel(1, tag=2), channel(2, tag=1)]
    dimensions = [dimension("x", 5, 3), dimension("y", 4, 20)]
    path = write(tmp_path / "c.lif", element("c", "B1", dimensions, channels), {"B1": padded})
    reader = LifReader(path)
    expected = padded[:, :15].reshape(4, 5, 3).transpose(2, 0, 1)[::-1]
    np.testing.assert_array_equal(whole(reader), expected)
    assert [c.color for c in reader.scene.channels] == ["FF0000", "00FF00", "0000FF"]
    assert (reader.scene.axes, reader.scene.spacing) == ("cyx", {})


def test_positions_and_images_of_one_name_are_scenes(tmp_path):
    tiles = RNG.integers(0, 255, (3, 4, 5), dtype=np.uint8)
    plain = RNG.random((4, 5), dtype=np.float32)
    scan = [dimension("x", 5, 1), dimension("y", 4, 5), dimension("m", 3, 20)]
    plane = [dimension("x", 5, 4), dimension("y", 4, 20)]
    elements = folder("A", element("image", "B1", scan, [channel(0)])) + folder(
        "B", element("image", "B2", plane, [channel(0, bits=32, kind=1)])
    )
    path = write(tmp_path / "scenes.lif", elements, {"B1": tiles, "B2": plain})
    names = [f"A/image position {i}" for i in range(3)]
    assert LifReader.scene_names(path) == (*names, "B/image")
    for index, image in enumerate([*tiles, plain]):
        np.testing.assert_array_equal(whole(LifReader(path, index)), image)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_file_is_an_error(stack_path, tmp_path, share):
    content = stack_path.read_bytes()
    path = tmp_path / "cut.lif"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises((SourceNotFoundError, ImageReadError), match=r"cut\.lif"):
        whole(LifReader(path))


@needs_data
def test_truncated_real_file_is_an_error_for_the_images_cut_off(tmp_path):
    path = tmp_path / "cut.lif"
    path.write_bytes(REAL.read_bytes()[: REAL.stat().st_size // 2])
    with pytest.raises((SourceNotFoundError, ImageReadError), match=r"cut\.lif"):
        whole(LifReader(path, 2))
