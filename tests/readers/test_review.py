"""What a review of the readers found: names of files, files of many images, what is described."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from patchworks.conversion.collection import plan_images
from patchworks.conversion.plan import ConversionOptions
from patchworks.errors import ImageReadError, InputError, SourceNotFoundError
from patchworks.geometry.box import Box
from patchworks.readers.registry import open_reader, scene_names
from patchworks.readers.scene import SceneReader

STACK = np.arange(4 * 20 * 30, dtype=np.uint16).reshape(4, 20, 30)
LEFT_BY_OTHERS = ("Thumbs.db", "desktop.ini", ".DS_Store", "._scan_z0.tif")


def whole(reader: SceneReader) -> np.ndarray:
    shape = reader.scene.shape
    return reader.read(Box((0,) * len(shape), shape))


def write(path: Path, voxels: np.ndarray, description: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tif:
        for i, plane in enumerate(voxels.reshape(-1, *voxels.shape[-2:])):
            tif.write(
                plane,
                description=description if i == 0 else None,
                metadata=None,
                contiguous=False,
                photometric="minisblack",
            )
    return path


def n_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def write_scan(folder: Path) -> Path:
    for i, plane in enumerate(STACK):
        write(folder / f"scan_z{i}.tif", plane)
    return folder


@pytest.mark.parametrize(
    "name",
    ["scan[1].tif", "a b.TIF", "zellen-ü.tiff", "x*y.tif", "q{t}.tif", "what?.tif", "no_end"],
)
def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, STACK)
    for source in (path, str(path)):
        assert np.array_equal(whole(open_reader(source)), STACK)


@pytest.mark.parametrize("pattern", ["", "*.tif", "scan_z{z}.tif", "scan_z[0-9].tif"])
@pytest.mark.parametrize("parent", ["plain", "well[1]", "a*b", "q{z}"])
def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(
    tmp_path: Path, parent: str, pattern: str
) -> None:
    folder = write_scan(tmp_path / parent)
    reader = open_reader(folder / pattern)
    assert reader.scene.axes == "zyx"
    assert np.array_equal(whole(reader), STACK)
    reader.close()


def test_a_pattern_may_be_in_the_name_of_a_folder(tmp_path: Path) -> None:
    for i, plane in enumerate(STACK):
        write(tmp_path / f"z_{i}" / "image.tif", plane)
    assert np.array_equal(whole(open_reader(tmp_path / "z_*" / "image.tif")), STACK)


@pytest.mark.parametrize("pattern", ["", "*.tif", "*"])
def test_what_file_managers_leave_in_folders_is_no_part_of_a_sequence(
    tmp_path: Path, pattern: str
) -> None:
    folder = write_scan(tmp_path / "scan")
    for name in LEFT_BY_OTHERS:
        (folder / name).write_bytes(b"\0")
    reader = open_reader(folder / pattern)
    assert np.array_equal(whole(reader), STACK)
    reader.close()


def test_names_with_digits_of_other_kinds_are_sorted(tmp_path: Path) -> None:
    for i, plane in enumerate(STACK):
        write(tmp_path / f"mm{i}²{i}.tif", plane)
    assert np.array_equal(whole(open_reader(tmp_path)), STACK)


@pytest.mark.parametrize(("name", "reader"), [("a.czi", "tiff"), ("a.ims", "tiff")])
def test_a_wrong_ending_is_said(tmp_path: Path, name: str, reader: str) -> None:
    path = write(tmp_path / name, STACK)
    with pytest.raises(SourceNotFoundError, match=f"begins like one of '{reader}'"):
        open_reader(path)
    assert np.array_equal(whole(open_reader(path, reader=reader)), STACK)


def ome(order: str, n_c: int, n_z: int, file_name: str) -> str:
    planes = "".join(
        f'<TiffData IFD="{i}" FirstC="{i % n_c}" FirstZ="{i // n_c}" PlaneCount="1">'
        f'<UUID FileName="{file_name}">urn:uuid:0</UUID></TiffData>'
        for i in range(n_c * n_z)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/'
        f'OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="{order}" '
        f'Type="uint16" SizeX="30" SizeY="20" SizeZ="{n_z}" SizeC="{n_c}" SizeT="1">'
        f"{planes}</Pixels></Image></OME>"
    )


def test_a_renamed_ome_tiff_is_not_taken_for_a_plain_stack(tmp_path: Path) -> None:
    path = write(tmp_path / "renamed.ome.tif", STACK, ome("XYCZT", 2, 2, "first.ome.tif"))
    with pytest.raises(InputError, match=r"first\.ome\.tif.*renamed"):
        open_reader(path)
    assert np.array_equal(whole(open_reader(path, axes="zyx")), STACK)
    path.rename(tmp_path / "first.ome.tif")
    right = STACK.reshape(2, 2, 20, 30).swapaxes(0, 1)
    assert np.array_equal(whole(open_reader(tmp_path / "first.ome.tif")), right)


def test_imagej_writes_a_negative_distance_for_a_stack_scanned_downwards(tmp_path: Path) -> None:
    path = tmp_path / "down.tif"
    tifffile.imwrite(
        path, STACK, imagej=True, metadata={"axes": "ZYX", "unit": "um", "spacing": -0.5}
    )
    assert open_reader(path).scene.spacing["z"] == (0.5, "micrometer")


def test_channels_of_different_types_are_not_cast(tmp_path: Path) -> None:
    path = tmp_path / "two.ims"
    with h5py.File(path, "w") as file:
        for c, dtype in enumerate((np.uint16, np.float32)):
            group = file.create_group(f"DataSet/ResolutionLevel 0/TimePoint 0/Channel {c}")
            group["Data"] = (STACK * 1000.5).astype(dtype)
    reader = open_reader(path)
    with pytest.raises(ImageReadError, match="float32"):
        whole(reader)
    reader.close()


def test_a_tiff_of_many_images_is_parsed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, n = tmp_path / "many.ome.tif", 40
    images = np.random.default_rng(0).integers(0, 999, (n, 3, 32, 40), dtype=np.uint16)
    with tifffile.TiffWriter(path) as tif:
        for i, image in enumerate(images):
            tif.write(image, metadata={"axes": "ZYX", "Name": f"s{i}"}, compression="zlib")
    opened: list[object] = []
    parse = tifffile.TiffFile.__init__

    def counted(self: tifffile.TiffFile, *args: object, **kwargs: object) -> None:
        opened.append(args)
        parse(self, *args, **kwargs)

    monkeypatch.setattr(tifffile.TiffFile, "__init__", counted)
    plan = plan_images(path, tmp_path / "out.zarr", ConversionOptions(scene="all"))
    assert len(opened) == 1
    for part, image in zip(plan.parts, images, strict=True):
        assert np.array_equal(whole(part.reader), image)
        part.reader.close()


def test_a_tiff_of_many_images_that_is_written_anew_is_parsed_anew(tmp_path: Path) -> None:
    path = tmp_path / "two.tif"
    for n in (2, 3):
        with tifffile.TiffWriter(path) as tif:
            for i in range(n):
                tif.write(STACK[0, : 5 + i], metadata=None)
        assert len(scene_names(path)) == n
        assert np.array_equal(whole(open_reader(path, scene=1)), STACK[0, :6])


def test_opening_ten_thousand_pages_takes_seconds(tmp_path: Path) -> None:
    path = tmp_path / "long.tif"
    with tifffile.TiffWriter(path) as tif:
        for i in range(10_000):
            tif.write(STACK[0] + np.uint16(i), metadata=None, contiguous=False)
    begun = time.perf_counter()
    reader = open_reader(path)
    assert time.perf_counter() - begun < 10
    assert reader.scene.shape == (10_000, 20, 30)
    last = reader.read(Box((9_999, 0, 0), (10_000, 20, 30)))[0]
    assert np.array_equal(last, STACK[0] + 9_999)
    reader.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
def test_planning_all_scenes_of_a_czi_holds_no_file_open(tmp_path: Path) -> None:
    czi = pytest.importorskip("pylibCZIrw.czi")
    path, n = tmp_path / "wells.czi", 50
    with czi.create_czi(str(path)) as document:
        for s in range(n):
            document.write(
                data=np.full((16, 16, 1), s, np.uint16),
                plane={"C": 0, "Z": 0, "T": 0},
                location=(100 * s, 0),
                scene=s,
            )
    before = n_open()
    plan = plan_images(path, tmp_path / "out.zarr", ConversionOptions(scene="all"))
    assert n_open() - before < 5
    for s, part in enumerate(plan.parts):
        assert np.array_equal(whole(part.reader), np.full((16, 16), s))
        part.reader.close()
    assert n_open() - before < 5


def test_an_imaris_file_can_be_changed_and_removed_after_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "one.ims"
    with h5py.File(path, "w") as file:
        file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data"] = STACK
    reader = open_reader(path)
    assert np.array_equal(whole(reader), STACK)
    reader.close()
    with h5py.File(path, "r+"):
        pass
    shutil.move(path, tmp_path / "moved.ims")
