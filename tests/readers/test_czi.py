"""CZI: what Zeiss's library writes comes back, and real files agree with other readers."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchworks.errors import ImageReadError, SourceNotFoundError
from patchworks.geometry.box import Box

czi = pytest.importorskip("pylibCZIrw.czi")
from patchworks.readers.czi import CziReader  # noqa: E402

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real files")
RNG = np.random.default_rng(0)


def whole(reader):
    return reader.read(Box.whole(reader.scene.shape))


def write(path, images, *, compression=None, **metadata):
    """Write {(scene, t, c, z, x, y): plane}."""
    with czi.create_czi(str(path), compression_options=compression) as document:
        for (scene, t, c, z, x, y), plane in images.items():
            document.write(plane, plane={"T": t, "C": c, "Z": z}, location=(x, y), scene=scene)
        document.write_metadata("test", **metadata)
    return path


@pytest.fixture(scope="module")
def stack():
    return RNG.integers(0, 65535, (3, 2, 4, 30, 50), dtype=np.uint16)


@pytest.fixture(scope="module")
def stack_path(stack, tmp_path_factory):
    t, c, z = np.indices(stack.shape[:3]).reshape(3, -1)
    planes = {(0, *at, 0, 0): stack[at] for at in zip(t, c, z, strict=True)}
    planes = {tuple(int(i) for i in at): plane for at, plane in planes.items()}
    path = tmp_path_factory.mktemp("czi") / "stack.czi"
    return write(
        path,
        planes,
        compression="zstd1:ExplicitLevel=1",
        scale_x=2e-7,
        scale_y=1.083333333333e-7,
        scale_z=1.5e-6,
        channel_names={0: "DAPI", 1: "GFP"},
        display_settings={
            0: czi.ChannelDisplaySettingsDataClass(
                True, czi.TintingMode.Color, czi.Rgb8Color(0x01, 0x82, 0xFF), 0.1, 0.5
            ),
        },
    )


@pytest.fixture
def reader(stack_path):
    with_handles = CziReader(stack_path)
    yield with_handles
    with_handles.close()


def test_axes_shape_and_type_are_those_written(reader, stack):
    scene = reader.scene
    assert (scene.axes, scene.shape, scene.dtype) == ("tczyx", stack.shape, stack.dtype)
    assert scene.block == (1, 1, 1, 30, 50)
    assert scene.files == (reader.path,)


def test_calibration_is_exact_in_micrometers(reader):
    assert reader.scene.spacing == {
        "x": (0.2, "micrometer"),
        "y": (0.1083333333333, "micrometer"),
        "z": (1.5, "micrometer"),
    }


def test_channels_have_names_colors_and_windows(reader):
    first, second = reader.scene.channels
    assert (first.name, first.color) == ("DAPI", "0182FF")
    assert first.window == pytest.approx((6553.5, 32767.5), rel=1e-5)
    assert (second.name, second.color, second.window) == ("GFP", None, None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.data())
def test_any_box_is_that_part_of_the_image(reader, stack, data):
    starts = [data.draw(st.integers(0, n - 1)) for n in stack.shape]
    stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, stack.shape, strict=True)]
    box = Box(tuple(starts), tuple(stops))
    np.testing.assert_array_equal(reader.read(box), stack[box.slices])


def test_threads_read_through_one_reader_at_once(reader, stack):
    boxes = [Box((t, c, z, 0, 0), (t + 1, c + 1, z + 1, 30, 50)) for t, c, z in np.ndindex(3, 2, 4)]
    with ThreadPoolExecutor(8) as pool:
        for box, part in zip(boxes * 5, pool.map(reader.read, boxes * 5), strict=True):
            np.testing.assert_array_equal(part, stack[box.slices])
    assert len(reader._idle) <= 8


def test_reader_travels_and_opens_again_after_close(reader, stack):
    twin = pickle.loads(pickle.dumps(reader))
    for one in (twin, reader):
        np.testing.assert_array_equal(whole(one), stack)
        one.close()
    np.testing.assert_array_equal(whole(reader), stack)


def test_uncalibrated_plane_has_y_and_x_and_no_spacing(tmp_path):
    plane = RNG.random((20, 30), dtype=np.float32)
    reader = CziReader(write(tmp_path / "plane.czi", {(0, 0, 0, 0, 0, 0): plane}))
    assert (reader.scene.axes, reader.scene.spacing, reader.scene.channels) == ("yx", {}, ())
    np.testing.assert_array_equal(whole(reader), plane)
    reader.close()


def test_mosaic_is_composed_from_its_tiles_and_gaps_are_zero(tmp_path):
    whole_image = RNG.integers(1, 255, (40, 90), dtype=np.uint8)
    whole_image[20:, 60:] = 0  # the tile that is not there
    tiles = {
        (0, 0, 0, 0, x - 35, y - 7): whole_image[y : y + 20, x : x + 30]
        for y in (0, 20)
        for x in (0, 30, 60)
        if (y, x) != (20, 60)
    }
    reader = CziReader(write(tmp_path / "mosaic.czi", tiles, scale_x=1e-6, scale_y=5e-7))
    assert reader.scene.block == (20, 30)
    assert reader.scene.origin == {}  # there is no other scene that it could lie beside
    np.testing.assert_array_equal(whole(reader), whole_image)
    box = Box((15, 25), (30, 75))
    np.testing.assert_array_equal(reader.read(box), whole_image[box.slices])
    reader.close()


def test_overlapping_tiles_show_the_last_one_in_every_box(tmp_path):
    tiles = {(0, 0, 0, 0, x, 0): np.full((10, 30), i + 1, np.uint8) for i, x in enumerate((0, 27))}
    reader = CziReader(write(tmp_path / "overlap.czi", tiles))
    expected = np.repeat([1, 2], [27, 30])
    assert reader.scene.block == (10, 27)
    np.testing.assert_array_equal(whole(reader)[0], expected)
    for start in range(0, 50, 5):
        box = Box((0, start), (1, start + 5))
        np.testing.assert_array_equal(reader.read(box)[0], expected[start : start + 5])
    reader.close()


def test_irregular_mosaic_has_its_largest_tile_as_block(tmp_path):
    tiles = {(0, 0, 0, 0, x, 0): np.ones((10, 30), np.uint8) for x in (0, 29, 59)}
    reader = CziReader(write(tmp_path / "jitter.czi", tiles))
    assert reader.scene.block == (10, 30)
    reader.close()


def test_scenes_are_separate_whatever_their_indices(tmp_path):
    first, second = np.full((10, 20), 7, np.uint8), np.full((30, 5), 9, np.uint8)
    path = write(tmp_path / "scenes.czi", {(2, 5, 0, 3, 0, 0): first, (5, 6, 0, 3, 100, 0): second})
    assert CziReader.scene_names(path) == ("", "")
    for index, image in enumerate((first, second)):
        reader = CziReader(path, index)
        np.testing.assert_array_equal(whole(reader), image)
        reader.close()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_color_becomes_channels_red_green_blue(tmp_path, dtype):
    bgr = RNG.integers(0, 200, (2, 12, 17, 3)).astype(dtype)
    planes = {(0, t, 0, 0, 0, 0): bgr[t] for t in range(2)}
    reader = CziReader(write(tmp_path / "color.czi", planes))
    scene = reader.scene
    assert (scene.axes, scene.block) == ("tcyx", (1, 3, 12, 17))
    assert [c.color for c in scene.channels] == ["FF0000", "00FF00", "0000FF"]
    expected = np.moveaxis(bgr[..., ::-1], -1, 1)
    np.testing.assert_array_equal(whole(reader), expected)
    box = Box((1, 1, 3, 4), (2, 3, 9, 10))
    np.testing.assert_array_equal(reader.read(box), expected[box.slices])
    reader.close()


def test_channels_of_two_types_are_read_in_the_larger_one(tmp_path):
    small = RNG.integers(0, 255, (8, 9), dtype=np.uint8)
    large = RNG.integers(0, 65535, (8, 9), dtype=np.uint16)
    planes = {(0, 0, 0, 0, 0, 0): small, (0, 0, 1, 0, 0, 0): large}
    reader = CziReader(write(tmp_path / "types.czi", planes))
    np.testing.assert_array_equal(whole(reader), np.stack([small.astype("uint16"), large]))
    reader.close()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_file_is_an_error(stack_path, tmp_path, share):
    content = stack_path.read_bytes()
    path = tmp_path / "cut.czi"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises((SourceNotFoundError, ImageReadError), match=r"cut\.czi"):
        whole(CziReader(path))


@needs_data
def test_truncated_real_file_is_an_error(tmp_path):
    content = (DATA / "mosaic_test.czi").read_bytes()
    path = tmp_path / "cut.czi"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises((SourceNotFoundError, ImageReadError), match=r"cut\.czi"):
        whole(CziReader(path))


@needs_data
@pytest.mark.parametrize(
    "name, axes, scene", [("s_1_t_1_c_1_z_1", "yx", ""), ("mosaic_test", "yx", "TR1")]
)
def test_real_files_agree_with_aicspylibczi(name, axes, scene):
    Reader = pytest.importorskip("bioio_czi.aicspylibczi_reader.reader").Reader

    path = DATA / f"{name}.czi"
    reader, other = CziReader(path), Reader(path)
    stored = other.xarray_dask_data
    image = other.mosaic_data if "M" in stored.dims else other.data
    assert (reader.scene.axes, CziReader.scene_names(path)) == (axes, (scene,))
    assert reader.scene.spacing["x"] == (1.0833333333333333, "micrometer")
    assert set(reader.scene.spacing) == {"y", "x"}
    np.testing.assert_array_equal(whole(reader), np.squeeze(image))
    for _ in range(10):
        start = [int(RNG.integers(0, n - 20)) for n in reader.scene.shape]
        box = Box(tuple(start), tuple(a + 20 for a in start))
        np.testing.assert_array_equal(reader.read(box), np.squeeze(image)[box.slices])
    reader.close()


@needs_data
def test_real_color_file_agrees_with_zeiss_library():
    path = DATA / "RGB-8bit.czi"
    reader = CziReader(path)
    with czi.open_czi(str(path)) as document:
        bgr = document.read().copy()
    assert (reader.scene.axes, reader.scene.dtype) == ("cyx", np.uint8)
    np.testing.assert_array_equal(whole(reader), np.moveaxis(bgr[..., ::-1], -1, 0))
    reader.close()


def test_scenes_lie_to_each_other_as_in_the_file(tmp_path):
    plane = np.ones((12, 17), np.uint8)
    images = {(0, 0, 0, 0, 40, 7): plane, (1, 0, 0, 0, 100, 7): plane}
    path = write(tmp_path / "apart.czi", images, scale_x=2e-6, scale_y=2e-6)
    first, second = CziReader(path, 0), CziReader(path, 1)
    assert (first.scene.origin, second.scene.origin) == ({}, {"x": 120.0})
    for reader in (first, second):
        reader.close()
