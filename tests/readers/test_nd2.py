"""ND2: a real file agrees with other readers, files made here with what went in."""

from __future__ import annotations

import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.errors import ImageReadError, SourceNotFoundError
from patchworks.geometry.box import Box

nd2 = pytest.importorskip("nd2")
from patchworks.readers.nd2 import Nd2Reader  # noqa: E402

DATA = Path(__file__).parents[3] / "shared" / "data"
REAL = DATA / "cluster.nd2"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real files")
RNG = np.random.default_rng(0)
MAGIC = 0x0ABECEDA
KINDS = {bool: "bool", int: "lx_int32", float: "double", str: "CLxStringW"}


def whole(reader):
    return reader.read(Box.whole(reader.scene.shape))


def xml(value, name="no_name"):
    if not isinstance(value, dict):
        return f'<{name} runtype="{KINDS[type(value)]}" value="{value}"/>'
    inner = "".join(xml(v, k) for k, v in value.items())
    return f'<{name} runtype="CLxListVariant">{inner}</{name}>'


def variant(value):
    return f'<variant version="1.0">{xml(value)}</variant>'.encode()


def time_loop(count, period):
    return 1, {"uiCount": count, "dStart": 0.0, "dPeriod": period, "dDuration": 0.0}


def position_loop(names):
    points = {f"p{i}": {"dPosX": 0.0, "dPosName": name} for i, name in enumerate(names)}
    return 2, {"Points": points}


def z_loop(count, step):
    return 4, {"uiCount": count, "dZStep": step}


def experiment(loops):
    kind, parameters = loops[0]
    level = {"eType": kind, "uLoopPars": parameters}
    return level | ({"ppNextLevelEx": {"i0": experiment(loops[1:])}} if loops[1:] else {})


def write(path, frames, *, loops=(), calibration=None, samples=1, times=None, lossless=False):
    """Write frames (n, y, x, component), in the chunks that NIS-Elements 4 has in its files."""
    n, height, width, components = frames.shape
    row_bytes = -(-width * components * frames.itemsize // 4) * 4  # rows are padded to 4 bytes
    attributes = {
        **{"uiWidth": width, "uiHeight": height, "uiComp": components, "uiSequenceCount": n},
        **{"uiWidthBytes": row_bytes, "uiBpcSignificant": 8 * frames.itemsize},
        **{"uiBpcInMemory": 8 * frames.itemsize, "eCompression": 0 if lossless else 2},
    }
    planes = {
        f"a{i}": {"sDescription": f"channel {i}", "uiColor": 0x30201 * (i + 1)}
        | {"uiCompCount": samples, "pFluorescentProbe": {"m_sName": "dye"}}
        for i in range(components // samples)
    }
    metadata = {
        **{"bCalibrated": calibration is not None, "dCalibration": calibration or 0.0},
        "sPicturePlanes": {"uiCount": len(planes), "sPlaneNew": planes},
    }
    chunks = {
        b"ImageAttributes!": variant(attributes),
        b"ImageMetadataSeq|0!": variant(metadata),
    }
    if loops:
        chunks[b"ImageMetadata!"] = variant(experiment(loops))
    if times is not None:
        chunks[b"CustomData|AcqTimesCache!"] = np.asarray(times, float).tobytes()
    for i, frame in enumerate(frames):
        rows = np.zeros((height, row_bytes), np.uint8)
        rows[:, : width * components * frames.itemsize] = frame.reshape(height, -1).view(np.uint8)
        pixels = rows.tobytes()
        chunks[b"ImageDataSeq|%d!" % i] = bytes(8) + (zlib.compress(pixels) if lossless else pixels)
    path.write_bytes(file_of(chunks))
    return path


def file_of(chunks):
    parts = [
        struct.pack("<IIQ32s64s", MAGIC, 32, 64, b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver2.1")
    ]
    index, offset = b"", len(parts[0])
    for name, content in chunks.items():
        head = struct.pack("<IIQ", MAGIC, 4072, len(content)) + name.ljust(4072, b"\0")
        index += name + struct.pack("<QQ", offset, len(content))
        offset += len(head) + len(content)
        parts += [head, content]
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", offset)
    name = b"ND2 FILEMAP SIGNATURE NAME 0001!"
    parts += [struct.pack("<IIQ", MAGIC, len(name), len(index) + len(end)), name, index, end]
    return b"".join(parts)


@needs_data
def test_real_file_agrees_with_nd2_and_bioio():
    bioio_nd2 = pytest.importorskip("bioio_nd2")
    reader = Nd2Reader(REAL)
    scene = reader.scene
    assert (scene.axes, scene.shape, scene.block) == (
        "tczyx",
        (3, 2, 10, 31, 38),
        (1, 2, 1, 1, 1),
    )
    image = whole(reader)
    np.testing.assert_array_equal(image, nd2.imread(REAL).transpose(0, 2, 1, 3, 4))
    other = bioio_nd2.Reader(REAL).xarray_data.transpose("T", "C", "Z", "Y", "X")
    np.testing.assert_array_equal(image, other)
    for _ in range(20):
        start = [int(RNG.integers(0, n)) for n in scene.shape]
        stop = [int(RNG.integers(a, n)) + 1 for a, n in zip(start, scene.shape, strict=True)]
        box = Box(tuple(start), tuple(stop))
        np.testing.assert_array_equal(reader.read(box), image[box.slices])


@needs_data
def test_real_calibration_and_channels_are_those_of_the_file():
    scene = Nd2Reader(REAL).scene
    step = (0.16780898323268245, "micrometer")
    interval = scene.spacing["t"]
    assert dict(scene.spacing) == {"x": step, "y": step, "z": (0.5, "micrometer"), "t": interval}
    assert interval == (pytest.approx((21.740177911873907 - 0.4450834982842207) / 2), "second")
    assert [(c.name, c.color) for c in scene.channels] == [
        ("5-FAM/pH 9.0", "78E90F"),
        ("FM 4-64/2% CHAPS", "FE0100"),
    ]


FRAMES = RNG.integers(0, 65535, (12, 5, 7, 2), dtype=np.uint16)
"""(t, position, z) 2 x 2 x 3 frames of (y, x, c), with padded rows."""
IMAGE = FRAMES.reshape(2, 2, 3, 5, 7, 2).transpose(1, 0, 5, 2, 3, 4)
"""(position, t, c, z, y, x)."""
LOOPS = (time_loop(2, 1500.0), position_loop(["A1", ""]), z_loop(3, 0.25))


@pytest.fixture(scope="module", params=[False, True], ids=["mapped", "lossless"])
def stack_path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("nd2") / "stack.nd2"
    return write(path, FRAMES, loops=LOOPS, calibration=0.1, lossless=request.param)


def test_positions_are_scenes_with_their_frames(stack_path):
    assert Nd2Reader.scene_names(stack_path) == ("A1", "")
    for index in range(2):
        reader = Nd2Reader(stack_path, index)
        np.testing.assert_array_equal(whole(reader), IMAGE[index])
        assert dict(reader.scene.spacing) == {
            "t": (1.5, "second"),
            "z": (0.25, "micrometer"),
            "y": (0.1, "micrometer"),
            "x": (0.1, "micrometer"),
        }
        assert [c.color for c in reader.scene.channels] == ["010203", "020406"]
    with nd2.ND2File(stack_path) as file:
        is_mapped = file.attributes.compressionType != "lossless"
    assert reader.scene.block == ((1, 2, 1, 1, 1) if is_mapped else (1, 2, 1, 5, 7))


@settings(max_examples=30)
@given(st.data())
def test_any_box_is_that_part_of_the_image(stack_path, data):
    starts = [data.draw(st.integers(0, n - 1)) for n in IMAGE.shape[1:]]
    stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, IMAGE.shape[1:], strict=True)]
    box = Box(tuple(starts), tuple(stops))
    np.testing.assert_array_equal(Nd2Reader(stack_path, 1).read(box), IMAGE[1][box.slices])


def test_threads_read_at_once_and_leave_no_file_open(stack_path):
    reader = pickle.loads(pickle.dumps(Nd2Reader(stack_path)))
    boxes = [Box((t, 0, z, 0, 0), (t + 1, 2, z + 1, 5, 7)) for t in range(2) for z in range(3)]
    with ThreadPoolExecutor(8) as pool:
        for box, part in zip(boxes * 20, pool.map(reader.read, boxes * 20), strict=True):
            np.testing.assert_array_equal(part, IMAGE[0][box.slices])
    assert all(file.closed for file in reader._idle)
    reader.close()
    np.testing.assert_array_equal(whole(reader), IMAGE[0])


def test_uncalibrated_plane_has_y_and_x_and_no_spacing(tmp_path):
    frames = RNG.integers(0, 255, (1, 6, 9, 1), dtype=np.uint8)
    reader = Nd2Reader(write(tmp_path / "plane.nd2", frames))
    assert (reader.scene.axes, reader.scene.spacing) == ("yx", {})
    np.testing.assert_array_equal(whole(reader), frames[0, ..., 0])


def test_color_becomes_channels_red_green_blue(tmp_path):
    frames = RNG.integers(0, 255, (2, 6, 9, 3), dtype=np.uint8)
    path = write(tmp_path / "color.nd2", frames, loops=[z_loop(2, 1.0)], samples=3)
    reader = Nd2Reader(path)
    assert (reader.scene.axes, reader.scene.block) == ("czyx", (3, 1, 1, 1))
    assert [c.color for c in reader.scene.channels] == ["FF0000", "00FF00", "0000FF"]
    np.testing.assert_array_equal(whole(reader), frames[..., ::-1].transpose(3, 0, 1, 2))


@pytest.mark.parametrize(
    "times, expected",
    [
        ([5, 2005, 4005, 6005], (2.0, "second")),
        ([5, 2005, 4005, 7005], None),
        (None, None),
        ([0, 0, 0, 0], None),
    ],
)
def test_interval_without_a_period_is_the_recorded_one_if_even(tmp_path, times, expected):
    frames = np.zeros((4, 6, 9, 1), np.uint8)
    path = write(tmp_path / "t.nd2", frames, loops=[time_loop(4, 0.0)], times=times)
    assert Nd2Reader(path).scene.spacing.get("t") == expected


def test_frames_never_acquired_are_zero(tmp_path):
    frames = RNG.integers(1, 255, (2, 6, 9, 1), dtype=np.uint8)
    path = write(tmp_path / "aborted.nd2", frames, loops=[time_loop(3, 10.0)])
    image = whole(Nd2Reader(path))
    np.testing.assert_array_equal(image[:2], frames[..., 0])
    assert not image[2].any()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_file_is_an_error(stack_path, tmp_path, share):
    content = stack_path.read_bytes()
    path = tmp_path / "cut.nd2"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises((SourceNotFoundError, ImageReadError), match=r"cut\.nd2"):
        whole(Nd2Reader(path))


@needs_data
def test_truncated_real_file_is_an_error(tmp_path):
    path = tmp_path / "cut.nd2"
    path.write_bytes(REAL.read_bytes()[: REAL.stat().st_size // 2])
    with pytest.raises((SourceNotFoundError, ImageReadError), match=r"cut\.nd2"):
        whole(Nd2Reader(path))
