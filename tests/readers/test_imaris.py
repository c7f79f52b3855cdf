"""Imaris: files in its layout come back, and real files agree with its own users' reader."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchworks.errors import ImageReadError, MissingExtraError, PatchworksError
from patchworks.geometry.box import Box
from patchworks.readers.scene import Channel

h5py = pytest.importorskip("h5py")
from patchworks.readers import imaris  # noqa: E402
from patchworks.readers.imaris import ImarisReader  # noqa: E402

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real files")
REAL = ("PtK2Cell.ims", "brain_crop3_L1-3_c0.ims")
RNG = np.random.default_rng(0)


def whole(reader, level=0):
    return reader.read(Box.whole(reader.scene.shapes[level]), level)


def put(group, **attributes):
    """Write attributes as Imaris does: arrays of single bytes."""
    for name, value in attributes.items():
        group.attrs[name] = np.frombuffer(value.encode("latin-1"), "S1")


def write(path, levels, *, chunks=(4, 16, 16), storage=None, image=None, channels=(), times=()):
    """Write levels of (t, c, z, y, x), padded to whole chunks."""
    storage = {"compression": "gzip"} if storage is None else storage
    with h5py.File(path, "w") as file:
        for r, voxels in enumerate(levels):
            for t, c in np.ndindex(*voxels.shape[:2]):
                group = file.create_group(f"DataSet/ResolutionLevel {r}/TimePoint {t}/Channel {c}")
                size = voxels.shape[2:]
                put(group, **{f"ImageSize{a}": str(n) for a, n in zip("ZYX", size, strict=True)})
                pad = [(0, -n % s) for n, s in zip(size, chunks or (1, 1, 1), strict=True)]
                padded = np.pad(voxels[t, c], pad, constant_values=9)
                group.create_dataset("Data", data=padded, chunks=chunks, **storage)
        put(file.create_group("DataSetInfo/Image"), **(image or {}))
        for c, channel in enumerate(channels):
            put(file.create_group(f"DataSetInfo/Channel {c}"), **channel)
        said = {f"TimePoint{i + 1}": time for i, time in enumerate(times)}
        put(file.create_group("DataSetInfo/TimeInfo"), **said)
    return path


def voxels(*shape):
    return RNG.integers(0, 60000, shape).astype(np.uint16)


STORAGE = {
    "gzip": {"compression": "gzip"},
    "gzip, shuffled": {"compression": "gzip", "shuffle": True},
    "plain": {},
    "lzf": {"compression": "lzf"},
    "checksums": {"compression": "gzip", "fletcher32": True},
}


@pytest.mark.parametrize("storage", STORAGE)
def test_any_storage_comes_back_without_padding(tmp_path, storage):
    stored = voxels(2, 3, 6, 37, 50)
    path = write(tmp_path / "a.ims", [stored], storage=STORAGE[storage])
    reader = ImarisReader(path)
    assert reader.scene.axes == "tczyx"
    assert reader.scene.block == (1, 1, 4, 16, 16)
    np.testing.assert_array_equal(whole(reader), stored)
    box = Box((1, 0, 3, 15, 20), (2, 2, 6, 37, 50))
    np.testing.assert_array_equal(reader.read(box), stored[box.slices])
    reader.close()
    np.testing.assert_array_equal(whole(reader), stored)
    reader.close()


def test_contiguous_volumes_have_no_block(tmp_path):
    stored = voxels(1, 1, 6, 37, 50)
    reader = ImarisReader(write(tmp_path / "a.ims", [stored], chunks=None, storage={}))
    assert reader.scene.axes == "zyx"
    assert reader.scene.block == (1, 1, 1)
    np.testing.assert_array_equal(whole(reader), stored[0, 0])
    reader.close()


def test_chunks_never_written_are_the_fill_value(tmp_path):
    path = tmp_path / "a.ims"
    with h5py.File(path, "w") as file:
        group = file.create_group("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0")
        options = {"dtype": "u1", "chunks": (16, 16), "compression": "gzip", "fillvalue": 7}
        data = group.create_dataset("Data", (1, 32, 40), **{**options, "chunks": (1, 16, 16)})
        data[0, :16, :16] = 1
    reader = ImarisReader(path)
    expected = np.full((32, 40), 7, np.uint8)
    expected[:16, :16] = 1
    np.testing.assert_array_equal(whole(reader), expected)
    reader.close()


def test_levels_of_any_ratio(tmp_path):
    levels = [voxels(1, 2, 5, 63, 31), voxels(1, 2, 5, 31, 15), voxels(1, 2, 2, 15, 7)]
    reader = ImarisReader(write(tmp_path / "a.ims", levels))
    assert reader.scene.shapes == ((2, 5, 63, 31), (2, 5, 31, 15), (2, 2, 15, 7))
    for level, stored in enumerate(levels):
        np.testing.assert_array_equal(whole(reader, level), stored[0])
    reader.close()


IMAGE = {
    "ExtMin0": "-10.5", "ExtMax0": "-5.5", "ExtMin1": "100", "ExtMax1": "104",
    "ExtMin2": "0", "ExtMax2": "1.8", "Unit": "um", "Description": "Zürich, 5 µm",
}  # fmt: skip


def test_calibration(tmp_path):
    path = write(
        tmp_path / "a.ims",
        [voxels(3, 2, 6, 40, 50)],
        image=IMAGE,
        times=["2020-01-01 00:00:00.000", "2020-01-01 00:00:02.501", "2020-01-01 00:00:05.000"],
        channels=[
            {"Name": "Zellkörper µ", "Color": "1.000 0.500 0.000", "ColorRange": "0.000 255.000"},
            {"Name": "(name not specified)", "Color": "0.009 1.000 -0.000", "ColorRange": "5 5"},
        ],
    )
    scene = ImarisReader(path).scene
    assert scene.spacing == {
        "t": (2.5, "second"),
        "z": (0.3, "micrometer"),
        "y": (0.1, "micrometer"),
        "x": (0.1, "micrometer"),
    }
    assert scene.origin == {"z": 0.0, "y": 100.0, "x": -10.5}
    assert scene.channels == (
        Channel("Zellkörper µ", "FF8000", (0, 255)),
        Channel("(name not specified)", "02FF00", None),
    )


@pytest.mark.parametrize(
    "image, expected",
    [
        ({}, {}),
        ({**IMAGE, "Unit": "nm"}, "nanometer"),
        ({k: v for k, v in IMAGE.items() if k != "Unit"}, "micrometer"),
        ({**IMAGE, "ExtMax0": "-10.5", "ExtMax1": "nan", "ExtMax2": ""}, {}),
        ({f"Ext{e}{i}": str(n * s) for i, n in enumerate((50, 40, 6))
          for e, s in (("Min", 0), ("Max", 1))}, {}),
    ],
)  # fmt: skip
def test_what_the_file_does_not_say_is_not_made_up(tmp_path, image, expected):
    scene = ImarisReader(write(tmp_path / "a.ims", [voxels(1, 1, 6, 40, 50)], image=image)).scene
    if isinstance(expected, str):
        assert {unit for _, unit in scene.spacing.values()} == {expected}
        assert set(scene.spacing) == set("zyx")
    else:
        assert scene.spacing == expected
        assert scene.origin == {}
    assert scene.channels == ()


def test_uneven_times_have_no_step(tmp_path):
    times = [f"2020-01-01 00:00:0{s}.000" for s in (0, 1, 3)]
    path = write(tmp_path / "a.ims", [voxels(3, 1, 4, 16, 16)], times=times)
    assert "t" not in ImarisReader(path).scene.spacing


def test_a_pickled_reader_reads_the_same(tmp_path):
    stored = voxels(1, 2, 6, 37, 50)
    reader = ImarisReader(write(tmp_path / "a.ims", [stored]))
    whole(reader)
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(whole(again), stored[0])
    reader.close()
    again.close()


@pytest.mark.parametrize("storage", ["gzip, shuffled", "lzf"])
def test_threads_read_the_same(tmp_path, storage):
    stored = voxels(2, 2, 8, 100, 100)
    reader = ImarisReader(write(tmp_path / "a.ims", [stored], storage=STORAGE[storage]))
    boxes = [
        Box((t, 0, z, y, 3), (t + 1, 2, z + 3, y + 30, 90))
        for t in (0, 1)
        for z in range(5)
        for y in range(0, 70, 10)
    ]
    with ThreadPoolExecutor(8) as threads:
        for box, found in zip(boxes, threads.map(reader.read, boxes), strict=True):
            np.testing.assert_array_equal(found, stored[box.slices])
    reader.close()


@pytest.mark.parametrize("part", [0.05, 0.5, 0.9, 0.999])
def test_a_file_cut_off_fails(tmp_path, part):
    path = write(tmp_path / "a.ims", [voxels(1, 1, 8, 64, 64)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(PatchworksError, match=r"a\.ims"):
        whole(ImarisReader(path))


def test_a_damaged_chunk_fails(tmp_path):
    path = write(tmp_path / "a.ims", [voxels(1, 1, 8, 64, 64)])
    with h5py.File(path) as file:
        data = file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data"]
        chunk = data.id.get_chunk_info(3)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 20 : chunk.byte_offset + 60] = bytes(40)
    path.write_bytes(content)
    reader = ImarisReader(path)
    with pytest.raises(ImageReadError, match=r"a\.ims"):
        whole(reader)
    reader.close()


def test_another_hdf5_file_fails(tmp_path):
    path = tmp_path / "a.ims"
    with h5py.File(path, "w") as file:
        file.create_dataset("voxels", data=np.zeros(3))
    with pytest.raises(PatchworksError, match=r"a\.ims"):
        ImarisReader.scene_names(path)


def test_a_missing_filter_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.ims", [voxels(1, 1, 4, 16, 16)])
    reader = ImarisReader(path)
    _ = reader.scene
    monkeypatch.setattr(imaris.h5py.h5z, "filter_avail", lambda _: False)
    with pytest.raises(MissingExtraError, match="pip install hdf5plugin"):
        whole(reader)
    reader.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    chunks=st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 20)),
    cut=st.tuples(*[st.floats(0, 1)] * 6),
)
def test_any_box_is_that_part_of_the_whole(tmp_path, shape, chunks, cut):
    stored = voxels(1, 1, *shape)
    reader = ImarisReader(write(tmp_path / "a.ims", [stored], chunks=chunks))
    expected = stored[0, 0] if shape[0] > 1 else stored[0, 0, 0]
    ends = [
        sorted([int(a * n), int(b * n)])
        for a, b, n in zip(cut[::2], cut[1::2], expected.shape, strict=False)
    ]
    box = Box(tuple([a for a, _ in ends]), tuple([b for _, b in ends]))
    np.testing.assert_array_equal(reader.read(box), expected[box.slices])
    reader.close()


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_real_files_agree_with_the_ims_reader(name, capsys):
    ims = pytest.importorskip("imaris_ims_file_reader.ims")
    reader = ImarisReader(DATA / name)
    scene = reader.scene
    rng = np.random.default_rng(0)
    for level, shape in enumerate(scene.shapes):
        other = ims.ims(str(DATA / name), ResolutionLevelLock=level, resolution_decimal_places=None)
        try:
            assert other.shape[-3:] == shape[-3:]
            for _ in range(4):
                starts = [int(rng.integers(0, n)) for n in shape]
                box = Box(
                    tuple(starts),
                    tuple(
                        [
                            int(rng.integers(a + 1, n + 1))
                            for a, n in zip(starts, shape, strict=True)
                        ]
                    ),
                )
                spans = (slice(0, 1),) * (5 - len(shape)) + box.slices
                found = reader.read(box, level)
                np.testing.assert_array_equal(found, np.asarray(other[spans]).reshape(box.shape))
            if level == 0:
                ours = [scene.spacing[axis][0] for axis in "zyx"]
                np.testing.assert_allclose(ours, other.resolution, rtol=1e-3)
        finally:
            other.hf.close()
    reader.close()
    capsys.readouterr()


@needs_data
def test_what_the_real_files_say():
    first, second = [ImarisReader(DATA / name).scene for name in REAL]
    assert [c.name for c in first.channels] == ["Kinetochores", "Microtubules", "DNA", "Dynactin"]
    assert [c.color for c in first.channels] == ["FF0000", "00FF00", "0000FF", "FFFFFF"]
    assert first.spacing["z"] == (0.2, "micrometer")
    assert second.shapes == ((51, 317, 336), (25, 158, 168), (12, 79, 84))
    assert second.origin == {"z": 3523.13, "y": 6081.06, "x": 571.516}
    assert round(second.spacing["y"][0], 5) == 0.99722


@needs_data
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_real_file_cut_off_fails(tmp_path, name, part):
    content = (DATA / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(PatchworksError, match=name):
        whole(ImarisReader(path))
