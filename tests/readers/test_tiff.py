"""TIFF: what tifffile writes comes back, box by box; damaged files fail."""

from __future__ import annotations

import pickle
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from patchworks.errors import InputError, MissingExtraError, PatchworksError, SourceNotFoundError
from patchworks.geometry.box import Box
from patchworks.readers import tiff_metadata
from patchworks.readers.scene import Channel
from patchworks.readers.tiff import TiffReader

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real files")
SLIDE = DATA / "CMU-1-Small-Region.ome.tiff"
RNG = np.random.default_rng(0)


def whole(reader, level=0):
    return reader.read(Box.whole(reader.scene.shapes[level]), level)


def image(*shape, dtype=np.uint16):
    return RNG.integers(0, 255, shape).astype(dtype)


def boxes(shape, n=12, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        ends = [sorted(rng.integers(0, extent + 1, 2)) for extent in shape]
        yield Box(
            tuple([int(min(a, n - 1)) for (a, _), n in zip(ends, shape, strict=True)]),
            tuple([int(max(b, a + 1, 1)) for a, b in ends]),
        ).intersect(Box.whole(shape)) or Box.whole(shape)


def write(path, voxels, **options):
    options.setdefault("photometric", "minisblack")
    tifffile.imwrite(path, voxels, **options)
    return path


def assert_reads(reader, expected):
    assert reader.scene.shape == expected.shape
    assert reader.scene.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(whole(reader), expected)
    for box in boxes(expected.shape):
        np.testing.assert_array_equal(reader.read(box), expected[box.slices])


STORAGE = {
    "mapped": {},
    "big endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "pages apart": {"contiguous": False, "ome": True},
    "tiles": {"tile": (32, 16)},
    "deflate tiles": {"tile": (16, 32), "compression": "zlib", "predictor": True},
    "deflate big endian": {"compression": "zlib", "byteorder": ">", "rowsperstrip": 7},
    "LZW strips": {"compression": "lzw", "rowsperstrip": 11},
    "zstd": {"compression": "zstd", "tile": (32, 32)},
    "LERC": {"compression": "lerc", "tile": (32, 32)},
    "JPEG XL, lossless": {"compression": "jpegxl", "compressionargs": {"lossless": True}},
    "JPEG 2000, lossless": {"compression": "jpeg2000", "tile": (32, 32)},
    "PackBits": {"compression": "packbits"},
}


@pytest.mark.parametrize("storage", STORAGE)
def test_any_storage_comes_back(tmp_path, storage):
    voxels = image(3, 2, 50, 70)
    options = {"metadata": {"axes": "ZCYX"}, **STORAGE[storage]}
    path = write(tmp_path / "a.tif", voxels, **options)
    assert_reads(TiffReader(path), voxels.transpose(1, 0, 2, 3))


@pytest.mark.parametrize(
    "storage, block",
    [
        ("mapped", (1, 1, 1, 1)),
        ("pages apart", (1, 1, 1, 1)),
        ("deflate tiles", (1, 1, 16, 32)),
        ("LZW strips", (1, 1, 11, 70)),
    ],
)
def test_the_block_is_what_is_decoded_at_once(tmp_path, storage, block):
    options = {"metadata": {"axes": "ZCYX"}, **STORAGE[storage]}
    path = write(tmp_path / "a.tif", image(3, 2, 50, 70), **options)
    assert TiffReader(path).scene.block == block


def test_no_tile_outside_of_the_box_is_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", image(4, 64, 64), tile=(16, 16), compression="zlib")
    reader = TiffReader(path)
    page = reader._image.levels[0].keyframe
    decode, decoded = page.decode, []
    monkeypatch.setattr(page, "decode", lambda *a, **k: decoded.append(a[1]) or decode(*a, **k))
    reader.read(Box((1, 16, 16), (3, 32, 33)))
    assert decoded == [5, 6, 5, 6]


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f2", "f4", "f8", "c8"])
def test_any_type_comes_back(tmp_path, dtype):
    voxels = image(20, 30, dtype=dtype)
    assert_reads(TiffReader(write(tmp_path / "a.tif", voxels)), voxels)
    packed = write(tmp_path / "b.tif", voxels, compression="zlib", byteorder=">")
    assert_reads(TiffReader(packed), voxels)


def test_bits_become_numbers(tmp_path):
    voxels = image(20, 31) > 100
    path = tmp_path / "a.tif"
    Pillow.fromarray(voxels).save(path, compression="group4")
    assert_reads(TiffReader(path), voxels.astype(np.uint8))


@pytest.mark.parametrize(
    "axes, shape, expected",
    [
        ("CZTYX", (2, 3, 4, 20, 30), "tczyx"),
        ("TZCYX", (2, 3, 4, 20, 30), "tczyx"),
        ("TZCYX", (1, 3, 1, 20, 30), "zyx"),
        ("ZYX", (5, 1, 30), "zyx"),
        ("QYX", (5, 20, 30), "zyx"),
        ("IYX", (5, 20, 30), "zyx"),
        ("TQYX", (2, 5, 20, 30), "tzyx"),
    ],
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_axes_come_in_our_order(tmp_path, axes, shape, expected, compression):
    voxels = image(*shape)
    path = write(tmp_path / "a.tif", voxels, metadata={"axes": axes}, compression=compression)
    reader = TiffReader(path)
    named = axes.replace("Q", "Z").replace("I", "Z").lower()
    at = [named.index(a) for a in "tczyx" if a in named]
    kept = [i for i in at if shape[i] > 1 or named[i] in "yx"]
    assert reader.scene.axes == expected
    assert_reads(reader, voxels.transpose(at).reshape([shape[i] for i in kept]))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_samples_are_channels(tmp_path, planar, compression):
    voxels = image(20, 30, 3, dtype="u1")
    stored = voxels if planar == "contig" else voxels.transpose(2, 0, 1)
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "planarconfig": planar, "compression": compression}
    write(path, stored, **options)
    reader = TiffReader(path)
    assert_reads(reader, voxels.transpose(2, 0, 1))
    whole_pixels = 3 if planar == "contig" and compression else 1
    assert reader.scene.block[0] == whole_pixels
    assert [c.color for c in reader.scene.channels] == ["FF0000", "00FF00", "0000FF"]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_channels_of_samples_become_one_axis(tmp_path, compression, planar):
    voxels = image(2, 4, 20, 30, 3, dtype="u1")
    stored, axes = (voxels, "CZYXS")
    if planar == "separate":
        stored, axes = voxels.transpose(0, 1, 4, 2, 3), "CZSYX"
    path = write(
        tmp_path / "a.tif",
        stored,
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        metadata={"axes": axes},
    )
    expected = voxels.transpose(0, 4, 1, 2, 3).reshape(6, 4, 20, 30)
    assert_reads(TiffReader(path), expected)


def test_unknown_axes_are_asked_for(tmp_path):
    path = write(tmp_path / "a.tif", image(2, 3, 4, 5))
    with pytest.raises(InputError, match=r"a\.tif.*\(2, 3, 4, 5\).*QQYX.*axes='czyx'"):
        _ = TiffReader(path).scene
    other = write(tmp_path / "b.tif", image(2, 4, 5), metadata={"axes": "HYX"})
    with pytest.raises(InputError, match="HYX"):
        _ = TiffReader(other).scene


def test_axes_given_name_the_own_ones(tmp_path):
    voxels = image(2, 1, 3, 4, 5)
    reader = TiffReader(write(tmp_path / "a.tif", voxels), axes="ztyx")
    assert reader.scene.axes == "tzyx"
    assert_reads(reader, voxels[:, 0].transpose(1, 0, 2, 3))
    other = TiffReader(reader.path, axes="tzyx")
    assert other.identity() != reader.identity()
    again = pickle.loads(pickle.dumps(reader))
    assert again.axes == "ztyx"
    np.testing.assert_array_equal(whole(again), whole(reader))


@pytest.mark.parametrize("axes", ["zyx", "tczyx", "qzyx", "zzyx", "tczx", 3])
def test_axes_that_do_not_fit_are_refused(tmp_path, axes):
    path = write(tmp_path / "a.tif", image(2, 3, 4, 5))
    with pytest.raises(InputError, match=r"\(2, 3, 4, 5\).*QQYX"):
        _ = TiffReader(path, axes=axes).scene


def test_ome_calibration_and_channels(tmp_path):
    metadata = {
        "axes": "TCYX",
        "PhysicalSizeX": 65.5,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.0655,
        "PhysicalSizeYUnit": "µm",
        "TimeIncrement": 300,
        "TimeIncrementUnit": "ms",
        "Channel": {"Name": ["DAPI", "GFP"], "Color": [65535, -16776961]},
        "Name": "cells",
    }
    path = write(tmp_path / "a.ome.tif", image(3, 2, 20, 30), metadata=metadata)
    scene = TiffReader(path).scene
    assert TiffReader.scene_names(path) == ("cells",)
    assert scene.name == "cells"
    assert scene.spacing == {
        "t": (0.3, "second"),
        "y": (0.0655, "micrometer"),
        "x": (65.5, "nanometer"),
    }
    assert scene.channels == (Channel("DAPI", "0000FF"), Channel("GFP", "FF0000"))


def test_ome_images_are_scenes_with_pyramids(tmp_path):
    path = tmp_path / "a.ome.tif"
    images = [image(3, 64, 96), image(40, 50)]
    with tifffile.TiffWriter(path, ome=True) as tif:
        options = {"photometric": "minisblack", "tile": (16, 16), "compression": "zlib"}
        tif.write(images[0], subifds=1, metadata={"axes": "ZYX", "Name": "first"}, **options)
        tif.write(images[0][:, ::2, ::2], subfiletype=1, **options)
        tif.write(images[1], metadata={"axes": "YX", "Name": "second"}, **options)
    assert TiffReader.scene_names(path) == ("first", "second")
    first = TiffReader(path)
    assert first.scene.shapes == ((3, 64, 96), (3, 32, 48))
    np.testing.assert_array_equal(whole(first, 1), images[0][:, ::2, ::2])
    assert_reads(TiffReader(path, 1), images[1])


def multi_file(folder):
    """One OME-TIFF image of three planes, each in a file of its own."""
    planes = image(3, 20, 30)
    parts = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="p{z}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z in range(3)
    )
    for z, plane in enumerate(planes):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{z}">'
            f'<Image ID="Image:0" Name="set"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
            f'Type="uint16" SizeX="30" SizeY="20" SizeZ="3" SizeC="1" SizeT="1">{parts}</Pixels>'
            f"</Image></OME>"
        )
        write(folder / f"p{z}.ome.tif", plane, description=xml, metadata=None, compression="zlib")
    return planes


def test_an_image_in_several_files(tmp_path):
    planes = multi_file(tmp_path)
    reader = TiffReader(tmp_path / "p1.ome.tif")
    assert_reads(reader, planes)
    assert {f.name for f in reader.scene.files} == {f"p{z}.ome.tif" for z in range(3)}
    assert reader.scene.files[0] == reader.path
    reader.close()


def test_a_missing_file_of_several_is_named(tmp_path):
    multi_file(tmp_path)
    (tmp_path / "p2.ome.tif").unlink()
    with pytest.raises(InputError, match=r"2 of 3 planes.*p2\.ome\.tif"):
        _ = TiffReader(tmp_path / "p0.ome.tif").scene


def test_planes_never_acquired_are_zero(tmp_path):
    multi_file(tmp_path)
    path = tmp_path / "p0.ome.tif"
    with tifffile.TiffFile(path) as tif:
        xml, plane = tif.ome_metadata, tif.pages.first.asarray()
    cut = xml[: xml.index('<TiffData FirstZ="1"')] + "</Pixels></Image></OME>"
    write(path, plane, description=cut, metadata=None)
    assert_reads(TiffReader(path), np.stack([plane, 0 * plane, 0 * plane]))


def test_imagej(tmp_path):
    voxels = image(2, 3, 4, 20, 30)
    ramp = np.arange(256, dtype=np.uint8)
    path = write(
        tmp_path / "a.tif",
        voxels,
        imagej=True,
        resolution=(1 / 0.065, 1 / 0.0675),
        metadata={
            "axes": "TZCYX",
            "unit": "um",
            "spacing": 0.3,
            "finterval": 2.5,
            "Labels": ["a", "b", "c", "d"],
            "LUTs": [np.stack([ramp * r, ramp * g, ramp * 0]) for r in (0, 1) for g in (0, 1)],
            "Ranges": (0, 10, 5, 200, 0, 0, 1, 2),
        },
    )
    reader = TiffReader(path)
    assert_reads(reader, voxels.transpose(0, 2, 1, 3, 4))
    spacing = reader.scene.spacing
    assert {a: unit for a, (_, unit) in spacing.items()} == {
        "t": "second",
        "z": "micrometer",
        "y": "micrometer",
        "x": "micrometer",
    }
    values = [spacing[a][0] for a in "tzyx"]
    np.testing.assert_allclose(values, [2.5, 0.3, 0.0675, 0.065], rtol=1e-6)
    assert reader.scene.channels == (
        Channel("a", None, (0, 10)),
        Channel("b", "00FF00", (5, 200)),
        Channel("c", "FF0000", None),
        Channel("d", "FFFF00", (1, 2)),
    )


@pytest.mark.parametrize(
    "unit, expected",
    [
        (None, None),
        ("pixel", None),
        ("\\u00B5m", "micrometer"),
        ("micron", "micrometer"),
        ("nm", "nanometer"),
        ("inch", "inch"),
    ],
)
def test_imagej_units(tmp_path, unit, expected):
    metadata = {} if unit is None else {"unit": unit}
    path = tmp_path / "a.tif"
    write(path, image(20, 30), imagej=True, resolution=(4, 4), metadata=metadata)
    found = TiffReader(path).scene.spacing
    assert found == ({} if expected is None else {"y": (0.25, expected), "x": (0.25, expected)})


def test_dots_per_inch_are_no_calibration(tmp_path):
    path = write(tmp_path / "a.tif", image(20, 30), resolution=(72, 72), resolutionunit="INCH")
    assert TiffReader(path).scene.spacing == {}


def test_slides_say_micrometres_per_pixel(tmp_path):
    path = tmp_path / "a.svs"
    options = {"photometric": "rgb", "tile": (32, 32), "compression": "jpeg", "metadata": None}
    text = "Aperio Image Library v11\n100x80|AppMag = 20|MPP = 0.4990"
    with tifffile.TiffWriter(path) as tif:
        tif.write(image(96, 128, 3, dtype="u1"), description=text, **options)
        tif.write(image(24, 32, 3, dtype="u1"), description="Aperio Image Library", **options)
    reader = TiffReader(path)
    assert reader.scene.spacing == {"y": (0.499, "micrometer"), "x": (0.499, "micrometer")}
    np.testing.assert_array_equal(whole(reader), tifffile.imread(path).transpose(2, 0, 1))


def test_other_vendors_say_it_in_their_own_words():
    lsm = {"VoxelSizeX": 1e-7, "VoxelSizeY": 2e-7, "VoxelSizeZ": 0.0, "TimeIntervall": 1.5}
    assert tiff_metadata.lsm_spacing(lsm) == {
        "t": (1.5, "second"),
        "y": (0.2, "micrometer"),
        "x": (0.1, "micrometer"),
    }
    stk = {"XCalibration": 0.25, "YCalibration": 0.5, "CalibrationUnits": "um"}
    assert tiff_metadata.stk_spacing(stk)["x"] == (0.25, "micrometer")
    assert tiff_metadata.stk_spacing({**stk, "CalibrationUnits": "pixel"}) == {}
    summary = {"Summary": {"PixelSize_um": 0.1, "z-step_um": 0}}
    assert set(tiff_metadata.micromanager_spacing(summary)) == {"y", "x"}


def test_tiles_never_written_are_zero(tmp_path):
    path = tmp_path / "a.tif"
    tile = image(16, 16)
    tiles = iter([tile, None, None, tile])
    tifffile.imwrite(
        path,
        (None if t is None else t for t in tiles),
        shape=(32, 32),
        dtype="uint16",
        tile=(16, 16),
        photometric="minisblack",
        compression="zlib",
    )
    with tifffile.TiffFile(path) as tif:
        assert 0 in tif.pages.first.databytecounts
    zero = 0 * tile
    assert_reads(TiffReader(path), np.block([[tile, zero], [zero, tile]]))


CUT = {
    "mapped": {},
    "imagej": {"imagej": True},
    "ome": {"ome": True},
    "ome, compressed": {"ome": True, "compression": "zlib"},
    "strips": {"compression": "lzw", "rowsperstrip": 16},
    "tiles": {"compression": "zlib", "tile": (16, 16)},
    "plain pages": {"metadata": None},
    "plain compressed pages": {"metadata": None, "compression": "zlib"},
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.77, 0.9, 0.99, 0.999])
def test_a_file_cut_off_fails(tmp_path, kind, part):
    path = write(tmp_path / "a.tif", image(9, 40, 50), **CUT[kind])
    whole(TiffReader(path))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(PatchworksError, match=r"a\.tif"):
        whole(TiffReader(path))


@pytest.mark.parametrize("ome", [True, False])
def test_a_pyramid_cut_off_fails(tmp_path, ome):
    path, voxels = tmp_path / "a.tif", image(3, 64, 64)
    options = {"photometric": "minisblack", "tile": (16, 16), "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=ome) as tif:
        tif.write(voxels, subifds=2, **options)
        tif.write(voxels[:, ::2, ::2], subfiletype=1, **options)
        tif.write(voxels[:, ::4, ::4], subfiletype=1, **options)
    assert len(TiffReader(path).scene.shapes) == 3
    content = path.read_bytes()
    for n in range(0, len(content), 400):
        path.write_bytes(content[:n])
        with pytest.raises(PatchworksError, match=r"a\.tif"):
            _ = TiffReader(path).scene


@needs_data
@pytest.mark.parametrize(
    "name",
    ["ctc_N2DL-HeLa_02_t0-2_img.tif", "maize_clsm.tif", "stardist_img3d.tif", SLIDE.name],
)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_real_file_cut_off_fails(tmp_path, name, part):
    content = (DATA / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(PatchworksError, match=name):
        whole(TiffReader(path))


def test_a_damaged_tile_fails(tmp_path):
    path = write(tmp_path / "a.tif", image(64, 64), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as tif:
        at, n = tif.pages.first.dataoffsets[5], tif.pages.first.databytecounts[5]
    content = bytearray(path.read_bytes())
    content[at : at + n] = bytes(n)
    path.write_bytes(content)
    reader = TiffReader(path)
    reader.read(Box((0, 0), (16, 16)))
    with pytest.raises(PatchworksError, match=r"a\.tif"):
        whole(reader)


def test_a_file_that_shrinks_while_it_is_read_fails(tmp_path):
    path = write(tmp_path / "a.tif", image(64, 64))
    reader = TiffReader(path)
    whole(reader)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PatchworksError, match=r"a\.tif"):
        whole(reader)


def test_what_is_no_tiff_fails(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"something else")
    with pytest.raises(SourceNotFoundError, match=r"a\.tif"):
        TiffReader.scene_names(path)


def test_a_missing_codec_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", image(64, 64), compression="zlib")
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {1: None})
    with pytest.raises(MissingExtraError, match=r"ADOBE_DEFLATE.*pip install -U imagecodecs"):
        _ = TiffReader(path).scene


def test_reading_after_closing(tmp_path):
    voxels = image(3, 20, 30)
    path = write(tmp_path / "a.tif", voxels)
    reader = TiffReader(path)
    whole(reader)
    reader.close()
    np.testing.assert_array_equal(whole(reader), voxels)
    reader.close()
    shutil.move(path, tmp_path / "b.tif")


@pytest.mark.parametrize("storage", ["mapped", "deflate tiles", "LZW strips"])
def test_threads_read_the_same(tmp_path, storage):
    voxels = image(8, 2, 200, 200)
    options = {"metadata": {"axes": "ZCYX"}, **STORAGE[storage]}
    reader = TiffReader(write(tmp_path / "a.tif", voxels, **options))
    expected = voxels.transpose(1, 0, 2, 3)
    some = list(boxes(expected.shape, 100))
    with ThreadPoolExecutor(8) as threads:
        for box, found in zip(some, threads.map(reader.read, some), strict=True):
            np.testing.assert_array_equal(found, expected[box.slices])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    tile=st.sampled_from([None, (16, 16), (32, 16)]),
    compression=st.sampled_from([None, "zlib", "lzw"]),
    rows=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_any_box_is_that_part_of_the_whole(tmp_path, shape, tile, compression, rows, seed):
    voxels = np.random.default_rng(seed).integers(0, 60000, shape).astype(np.uint16)
    options = {"tile": tile} if tile else {"rowsperstrip": rows}
    path = tmp_path / "a.tif"
    write(path, voxels, compression=compression, metadata={"axes": "ZYX"}, **options)
    expected = voxels if shape[0] > 1 else voxels[0]
    reader = TiffReader(path)
    for box in boxes(expected.shape, 5, seed):
        np.testing.assert_array_equal(reader.read(box), expected[box.slices])
    reader.close()


@needs_data
@pytest.mark.parametrize("path", sorted(DATA.glob("*_*[dsm].tif")), ids=lambda p: p.name)
def test_real_files_agree_with_pillow(path):
    found = whole(TiffReader(path))
    with Pillow.open(path) as stack:
        frames = []
        for i in range(getattr(stack, "n_frames", 1)):
            stack.seek(i)
            frames.append(np.array(stack))
    np.testing.assert_array_equal(found, np.stack(frames).reshape(found.shape))


@needs_data
@pytest.mark.parametrize("path", sorted(DATA.glob("ctc_*.tif")), ids=lambda p: p.name)
def test_real_files_agree_with_their_strips(path):
    # Pillow halves these 16-bit frames to 8 bits; it finds the strips, zlib decodes them
    content, strips = path.read_bytes(), []
    with Pillow.open(path) as stack:
        for i in range(stack.n_frames):
            stack.seek(i)
            places = zip(stack.tag_v2[273], stack.tag_v2[279], strict=True)
            strips += [zlib.decompress(content[at : at + n]) for at, n in places]
        differences = stack.tag_v2.get(317, 1) == 2
    found = whole(TiffReader(path))
    expected = np.frombuffer(b"".join(strips), "<u2").reshape(found.shape)
    if differences:
        expected = np.cumsum(expected, axis=-1, dtype=np.uint16)
    np.testing.assert_array_equal(found, expected)


@needs_data
def test_a_real_slide():
    assert TiffReader.scene_names(SLIDE) == ("", "macro image", "label image")
    reader = TiffReader(SLIDE)
    scene = reader.scene
    assert scene.axes == "cyx"
    assert scene.shapes == ((3, 2967, 2220), (3, 768, 574))
    assert scene.block == (1, 1024, 1024)
    assert scene.spacing == {"y": (0.499, "micrometer"), "x": (0.499, "micrometer")}
    assert TiffReader(SLIDE, 1).scene.spacing == {}
    zarr = pytest.importorskip("zarr")
    converted = zarr.open_array(DATA / "CMU-1-Small-Region_s0.ome.zarr" / "0", mode="r")
    for box in boxes(scene.shape, 4):
        at = (0, box.slices[0], 0, *box.slices[1:])[-converted.ndim :]
        np.testing.assert_array_equal(reader.read(box), converted[at])
    reader.close()


def test_a_codec_that_imagecodecs_was_built_without(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", image(64, 64), compression="zlib")
    reader = TiffReader(path)

    def missing(*_, **__):
        raise ImportError("could not import name 'x' from 'imagecodecs'")

    monkeypatch.setattr(reader._image.levels[0].keyframe, "decode", missing)
    with pytest.raises(MissingExtraError, match="imagecodecs"):
        whole(reader)
