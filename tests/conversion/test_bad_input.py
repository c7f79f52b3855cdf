"""Whatever cannot be converted is refused with an error of ours, and nothing is left behind."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path
from unittest import mock

import dask.array as da
import fsspec.implementations.memory
import numpy as np
import pytest
import tifffile
import zarr

from flows.cli import main
from patchworks.errors import (
    InputError,
    MissingExtraError,
    PatchworksError,
    SourceNotFoundError,
    TargetExistsError,
    TargetNotWritableError,
)
from patchworks.plugins.ome_zarr import to_ome_zarr
from patchworks.readers.registry import FORMATS
from tests.conversion.small_files import STACK, WRITERS, write_czi, write_tiff
from tests.stores import contents, ome_zarr

VOXELS = STACK[:, :64, :64]
ARRAY = np.zeros((4, 32, 32), "uint16")
NOISE = random.Random(5).randbytes(5000)
SUFFIXES = [suffix for known in FORMATS for suffix in known.suffixes]
MAGIC = [magic for known in FORMATS for magic in known.magic]
REAL = Path(__file__).parents[3] / "shared" / "data"
LAST_SCENES = {
    **{"PtK2Cell.ims": 0, "mosaic_test.czi": 0, "xz-example.lif": 2, "cluster.nd2": 0},
    "maize_clsm.tif": 0,
}
MISSING = {".ims": "h5py", ".czi": "pylibCZIrw", ".lif": "liffile", ".nd2": "nd2", "": "bioio"}


def refused(folder: Path, source, error=PatchworksError, match=None, target=None, **options) -> str:
    """Check that a conversion raises the error and changes nothing; return the message."""
    before = contents(folder)
    target = folder / "out.ome.zarr" if target is None else target
    with pytest.raises(error, match=match) as raised:
        to_ome_zarr(source, target, progress=False, **options)
    assert contents(folder) == before
    assert isinstance(raised.value, PatchworksError)
    return str(raised.value)


@pytest.fixture
def tiff(tmp_path):
    return write_tiff(tmp_path / "scan.tif", VOXELS)


@pytest.fixture
def store(tmp_path):
    zarr.create_array(str(tmp_path / "stack.zarr"), data=VOXELS)
    return tmp_path / "stack.zarr"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestFiles:
    """Files that no reader can read; readers of vendors may leave them to the garbage collector."""

    @pytest.mark.parametrize("suffix", [*SUFFIXES, ".xyz", ""])
    @pytest.mark.parametrize("content", [NOISE, b""], ids=["noise", "empty"])
    def test_what_is_no_image(self, tmp_path, suffix, content):
        path = tmp_path / f"scan{suffix}"
        path.write_bytes(content)
        assert str(path) in refused(tmp_path, path, SourceNotFoundError)

    @pytest.mark.parametrize("magic", MAGIC)
    @pytest.mark.parametrize("content", [NOISE, b""], ids=["noise", "nothing"])
    def test_what_only_begins_like_an_image(self, tmp_path, magic, content):
        path = tmp_path / "scan"
        path.write_bytes(magic + content)
        assert str(path) in refused(tmp_path, path, SourceNotFoundError)

    @pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
    @pytest.mark.parametrize("suffix", WRITERS)
    def test_files_cut_off(self, tmp_path, suffix, share):
        path = WRITERS[suffix](tmp_path / f"scan{suffix}", VOXELS)
        os.truncate(path, int(share * path.stat().st_size))
        assert str(path) in refused(tmp_path, path)

    @pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not beside this checkout")
    @pytest.mark.parametrize("name", LAST_SCENES)
    def test_real_files_cut_off(self, tmp_path, name):
        path = Path(shutil.copyfile(REAL / name, tmp_path / name))
        os.truncate(path, path.stat().st_size // 2)
        assert str(path) in refused(tmp_path, path, scene=LAST_SCENES[name])

    @pytest.mark.parametrize("known", [known.name for known in FORMATS])
    def test_a_reader_that_does_not_suit_the_file(self, tmp_path, known, store):
        path = tmp_path / "notes.txt"
        path.write_bytes(NOISE)
        for source in (path, store):
            assert str(source) in refused(tmp_path, source, SourceNotFoundError, reader=known)
        refused(tmp_path, tmp_path / "none.tif", SourceNotFoundError, "none.tif", reader=known)


@pytest.mark.parametrize("suffix", MISSING)
def test_a_missing_package_is_named_by_its_extra(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(NOISE)
    package = MISSING[suffix]
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    for known in FORMATS:
        monkeypatch.delitem(sys.modules, f"patchworks.readers.{known.name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(tmp_path, path, MissingExtraError, package)
    assert str(path) in message
    assert f"patchworks[{'imaris' if package == 'h5py' else 'bioio'}]" in message


class TestPlaces:
    def test_nothing_there(self, tmp_path, tiff):
        for path in ("none.tif", "none.zarr", "none_*.tif", "none_[0-9].tif", "none", "no/none.czi",
                     "scan.tif/none.tif", "n" * 300):  # fmt: skip
            assert path[:9] in refused(tmp_path, tmp_path / path, InputError)

    def test_folders_that_hold_no_image(self, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        refused(tmp_path, folder, SourceNotFoundError, r"folder: a folder .*TIFF")
        (folder / "notes.txt").write_bytes(NOISE)
        refused(tmp_path, folder, SourceNotFoundError, r"folder: a folder .*TIFF")
        refused(tmp_path, folder / "*.txt", SourceNotFoundError, r"notes\.txt.*TIFF")
        (tmp_path / "empty.zarr").mkdir()
        refused(tmp_path, tmp_path / "empty.zarr", SourceNotFoundError, r"empty\.zarr")

    @pytest.mark.parametrize("source", [None, 5, b"scan.tif", [[1, 2]], "", "a\0b", object()])
    def test_no_source(self, tmp_path, source):
        refused(tmp_path, source, InputError, "source")

    @pytest.mark.parametrize(
        "url, error",
        [
            ("memory://none.zarr", SourceNotFoundError),
            ("memory://scan.tif", SourceNotFoundError),
            ("nope://bucket/scan.zarr", InputError),
        ],
    )
    def test_urls_that_lead_nowhere(self, tmp_path, url, error):
        refused(tmp_path, url, error, url)

    def test_urls_that_cannot_be_reached(self, tmp_path):
        refusing = mock.patch.object(
            fsspec.implementations.memory.MemoryFileSystem,
            "exists",
            side_effect=ConnectionError("no"),
        )
        with refusing:
            refused(tmp_path, "memory://in.zarr", InputError, "memory://in.zarr: .*reached")
            refused(tmp_path, ARRAY, InputError, "out.zarr: .*reached", "memory://out.zarr")

    def test_urls_that_need_a_missing_package(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        refused(tmp_path, "gs://bucket/scan.zarr", MissingExtraError, "gs://bucket/scan.zarr")
        refused(tmp_path, ARRAY, MissingExtraError, "gs://", target="gs://bucket/scan.zarr")


class TestTargets:
    @pytest.mark.parametrize(
        "target",
        [
            "",
            "a\0b",
            5,
            b"out.zarr",
            "n" * 300,
            "://",
            "s3://",
            "memory:///",
            "~nobody-here/o.zarr",
        ],
    )
    def test_no_target(self, tmp_path, target):
        refused(tmp_path, ARRAY, InputError, target=target)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_what_is_no_image_is_never_replaced(self, tmp_path, overwrite):
        (tmp_path / "file").write_bytes(b"1")
        (tmp_path / "empty").mkdir()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "notes.txt").write_bytes(b"1")
        zarr.create_array(str(tmp_path / "array"), data=ARRAY)
        zarr.open_group(str(tmp_path / "group"))
        for name in ("file", "empty", "folder", "array", "group"):
            target = tmp_path / name
            refused(tmp_path, ARRAY, TargetExistsError, str(target), target, overwrite=overwrite)

    def test_another_image_is_there(self, tmp_path):
        ome_zarr(tmp_path / "out.ome.zarr", [VOXELS])
        refused(tmp_path, ARRAY, TargetExistsError, r"out\.ome\.zarr: .*overwrite=True")

    def test_the_same_image_with_other_options_is_there(self, tmp_path, tiff):
        to_ome_zarr(tiff, tmp_path / "out.ome.zarr", progress=False)
        refused(tmp_path, tiff, TargetExistsError, "other options", chunks=(1, 16, 16))

    def test_the_source_and_its_insides(self, tmp_path, tiff, store):
        apart = {"error": InputError, "match": "source", "overwrite": True}
        refused(tmp_path, tiff, target=tiff, **apart)
        refused(tmp_path, tiff, target=tiff / "out.zarr", **apart)
        refused(tmp_path, store, target=store, **apart)
        refused(tmp_path, store, target=store / "out.zarr", **apart)
        refused(tmp_path, store, target=store / ".." / store.name, **apart)
        refused(tmp_path, store, target=f"file://{store}", **apart)
        refused(tmp_path, zarr.open_array(store), target=store, **apart)
        refused(tmp_path, da.from_zarr(str(store)), target=store / "out.zarr", **apart)
        (tmp_path / "link").symlink_to(store)
        refused(tmp_path, tmp_path / "link", target=store, **apart)

    def test_what_holds_the_source(self, tmp_path):
        group = tmp_path / "group.zarr"
        zarr.open_group(str(group)).create_array("raw", data=VOXELS)
        before = {"error": InputError, "match": "source", "overwrite": True}
        refused(tmp_path, group / "raw", target=group, **before)
        refused(tmp_path, group / "raw", target=tmp_path, **before)

    def test_the_folder_of_a_sequence(self, tmp_path):
        folder = tmp_path / "planes"
        folder.mkdir()
        for z in range(3):
            tifffile.imwrite(folder / f"scan_z{z}.tif", ARRAY[0])
        refused(tmp_path, folder, InputError, "source", target=folder / "out.zarr")
        refused(tmp_path, folder / "scan_*.tif", InputError, "source", target=folder)

    def test_places_that_cannot_be_written(self, tmp_path, tiff):
        (tmp_path / "file").write_bytes(b"1")
        for place in (tmp_path / "file" / "out.zarr", "/proc/out.zarr", "/dev/null/out.zarr"):
            refused(tmp_path, tiff, TargetNotWritableError, str(place), target=place)


@pytest.mark.parametrize("scene", [1, -1, "nothing", True, 1.0, 0.0, None, ["0"]])
def test_scenes_that_are_not_there(tmp_path, tiff, scene):
    refused(tmp_path, ARRAY, InputError, "scene=.*array has 1 scene", scene=scene)
    refused(tmp_path, tiff, InputError, r"scene=.*scan\.tif has 1 scene", scene=scene)


@pytest.mark.parametrize("axes", ["", "yx", "zyxx", "zyy", "zyq", "tcz", "abc", 5, ("z", "y", "x")])
def test_axes_that_do_not_fit(tmp_path, tiff, store, axes):
    for source in (ARRAY, tiff, store):
        assert "axes=" in refused(tmp_path, source, InputError, axes=axes)


def test_axes_of_a_format_that_says_them(tmp_path):
    path = write_czi(tmp_path / "scan.czi", VOXELS)
    refused(tmp_path, path, InputError, r"scan\.czi: axes='tyx'.*leave axes out", axes="tyx")


SIZES = [0, -1, float("nan"), float("inf"), "0.2", True, np.True_, None, 1j, [0.2], 10**400]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size!r:.20}")
def test_sizes_that_are_none(tmp_path, tiff, size):
    for axis in "zx":
        refused(tmp_path, ARRAY, InputError, f"the size on '{axis}'", pixel_size={axis: size})
    message = refused(tmp_path, tiff, InputError, pixel_size={"y": size})
    assert "micrometers" in message
    assert "scan.tif" in message


@pytest.mark.parametrize("axis", ["q", "t", "c", "Y", "", "yx", 1, None])
def test_sizes_of_axes_that_are_not_there(tmp_path, axis):
    refused(tmp_path, ARRAY, InputError, "its axes are 'zyx'", pixel_size={axis: 1.0})


@pytest.mark.parametrize("given", [0, 5, "y", [1, 2], (), ""])
def test_sizes_that_are_no_mapping(tmp_path, given):
    refused(tmp_path, ARRAY, InputError, "micrometers per axis", pixel_size=given)


@pytest.mark.parametrize("names", [[], ["a"], ["a"] * 3, "ab", 5, [1, 2], {"a": 1, "b": 2}, b"ab"])
def test_channel_names_that_do_not_fit(tmp_path, names):
    message = refused(tmp_path, ARRAY[:2], InputError, axes="cyx", channel_names=names)
    assert "expected 2 name(s)" in message


OPTIONS = [
    *[{"downscale": value} for value in (1, 0, 1.5, -2, "2", True, None, 65)],
    *[{"n_levels": value} for value in (0, -1, 1.5, "2", True, 33)],
    *[{"chunks": value} for value in ((1, 2), (0, 1, 1), (1, 2, 3, 4), 5, "123", (1.5, 2, 2), ())],
    *[{"chunks": value} for value in ((None, 1, 1), b"123", {}, (-1, 2, 2), (True, 2, 2))],
    *[{"ngff_version": value} for value in ("0.6", 0.5, None, "", ["0.5"])],
    *[{"codec": value} for value in ("gzip", "", None, ["blosc"])],
    *[{"reader": value} for value in ("nope", "tiff", "", 5)],
    *[{"max_workers": value} for value in (0, -1, 1.5, "2", True)],
    *[{"overwrite": value} for value in ("no", 1, None)],
    *[{"reuse_pyramid": value} for value in ("no", 1, None)],
    *[{"shard": value} for value in ("no", 1)],
    {"shard": True, "ngff_version": "0.4"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_that_cannot_be(tmp_path, options):
    name = next(iter(options))
    assert f"{name}=" in refused(tmp_path, ARRAY, InputError, **options)
    if name not in ("reader", "max_workers"):
        refused(tmp_path, ARRAY, InputError, scene="all", **options)


@pytest.mark.parametrize("reader", ["nope", "", 5, "TIFF"])
def test_readers_that_are_not_there(tmp_path, tiff, reader):
    refused(tmp_path, tiff, InputError, r"reader=.*expected one of \['tiff'", reader=reader)


ARRAYS = {
    "objects": np.array([[None]]),
    "complex": np.zeros((4, 4), "complex64"),
    "text": np.array([["a"]]),
    "dates": np.zeros((3, 3), "M8[s]"),
    "records": np.zeros((3, 3), [("a", "u1")]),
    "long doubles": np.zeros((3, 3), np.longdouble),
    "no voxel": np.zeros((0, 4)),
    "no voxel in dask": da.zeros((0, 3)),
    "a number": np.zeros(()),
    "1-D": np.zeros(4),
    "1-D in dask": da.zeros(4),
    "4-D without axes": np.zeros((1, 1, 2, 2)),
    "6-D": np.zeros((1,) * 6),
    "unknown shape": da.from_array(np.arange(9.0).reshape(3, 3))[np.array([True, False, True])][
        da.ones(2, chunks=1) > 0
    ],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_no_image(tmp_path, kind):
    refused(tmp_path, ARRAYS[kind], InputError, "^array")


@pytest.mark.parametrize("dtype", ["complex64", "M8[s]"])
def test_stores_that_hold_no_image(tmp_path, dtype):
    zarr.create_array(str(tmp_path / "odd.zarr"), shape=(4, 4), dtype=dtype, zarr_format=2)
    refused(tmp_path, tmp_path / "odd.zarr", InputError, r"odd\.zarr: voxels of dtype")


def test_6_axes(tmp_path):
    refused(tmp_path, ARRAYS["6-D"], InputError, "axes='tczyxs'", axes="tczyxs")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["none.czi", "out.zarr"], "none.czi: there is nothing at this path"),
        (["scan.tif", "out.zarr", "--pixel-size", "y=small"], "the size on 'y' is 'small'"),
        (["scan.tif", "scan.tif"], "give another target"),
        (["scan.tif", "out.zarr", "--scene", "7"], "scene=7"),
        (["scan.tif", "out.zarr", "--channel-names", "a,b"], "expected 1 name(s)"),
    ],
)
def test_an_error_of_the_command_is_one_line(
    tmp_path, tiff, monkeypatch, capsys, arguments, expected
):
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert main(["convert", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("patchworks: ")
    assert expected in error
    assert len(error.splitlines()) == 1
    assert contents(tmp_path) == before
