"""`patchworks convert`: what its options do to a small file, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from flows.cli import main
from tests.conversion.written import (
    arrays,
    axes,
    check_pyramid,
    levels,
    multiscale,
    ome,
    placed,
    units,
)
from tests.stores import contents

VOXELS = np.random.default_rng(0).integers(0, 60000, (2, 5, 70, 50), dtype="uint16")
"""(c, z, y, x)."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Files of one image and of two, in the folder where commands run."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("scan.tif", VOXELS, ome=True, metadata={"axes": "CZYX"})
    with tifffile.TiffWriter("two.ome.tif", ome=True) as file:
        for name, voxels in (("left", VOXELS[0, 0]), ("right", VOXELS[1, 1, :30])):
            file.write(voxels, metadata={"axes": "YX", "Name": name})
    return tmp_path


def convert(*arguments: str) -> Path:
    """Run a command that succeeds."""
    assert main(["convert", *arguments]) == 0
    return Path(arguments[1])


def test_the_target_is_printed_and_the_image_is_there(folder, capsys):
    target = convert("scan.tif", "out.ome.zarr")
    said = capsys.readouterr()
    assert said.out == f"{'image':<22}{folder / 'out.ome.zarr'}\n"
    assert "MB/s" in said.err
    assert axes(target) == "czyx"
    assert units(target) == [None] * 4
    check_pyramid(target, VOXELS, 2)
    before = contents(folder)
    convert("scan.tif", "out.ome.zarr")
    said = capsys.readouterr()
    assert "made from this file already" in said.err
    assert str(folder / "out.ome.zarr") in said.out
    assert contents(folder) == before


def test_pixel_sizes(folder):
    sizes = ["--pixel-size", "z=1.5", "--pixel-size", "y=0.25", "--pixel-size", "x=2"]
    target = convert("scan.tif", "out.zarr", *sizes)
    assert placed(target)[0][0] == [1.0, 1.5, 0.25, 2.0]
    assert units(target) == [None, *["micrometer"] * 3]


def test_levels_and_chunks(folder):
    target = convert("scan.tif", "out.zarr", "--levels", "3", "--chunks", "1,2,16,32")
    assert [array.shape[-2:] for array in arrays(target)] == [(70, 50), (35, 25), (18, 13)]
    assert arrays(target)[0].chunks == (1, 2, 16, 32)
    check_pyramid(target, VOXELS, 2)


def test_shards(folder):
    chunks = ["--chunks", "1,1,16,16"]
    assert arrays(convert("scan.tif", "sharded.zarr", *chunks, "--shard"))[0].shards
    assert not arrays(convert("scan.tif", "not.zarr", *chunks, "--no-shard"))[0].shards


def test_the_older_version(folder):
    target = convert("scan.tif", "out.zarr", "--ngff-version", "0.4")
    assert (target / ".zattrs").exists()
    assert multiscale(target)["version"] == "0.4"
    check_pyramid(target, VOXELS, 2)


def test_channel_names(folder):
    target = convert("scan.tif", "out.zarr", "--channel-names", "nuclei,membrane of cells")
    labels = [channel["label"] for channel in ome(target)["omero"]["channels"]]
    assert labels == ["nuclei", "membrane of cells"]


@pytest.mark.parametrize("scene, voxels", [("1", VOXELS[1, 1, :30]), ("left", VOXELS[0, 0])])
def test_a_scene_by_index_or_name(folder, scene, voxels):
    target = convert("two.ome.tif", "out.zarr", "--scene", scene)
    np.testing.assert_array_equal(levels(target)[0], voxels)


def test_all_scenes(folder):
    target = convert("two.ome.tif", "out.zarr", "--scene", "all")
    assert zarr.open_group(target).attrs["ome"]["bioformats2raw.layout"] == 3
    np.testing.assert_array_equal(levels(target / "1")[0], VOXELS[1, 1, :30])


def test_axes_and_reader(folder):
    tifffile.imwrite("plain.tif", VOXELS[0])
    target = convert("plain.tif", "out.zarr", "--axes", "tyx", "--reader", "tiff")
    assert axes(target) == "tyx"
    assert axes(convert("scan.tif", "bioio.zarr", "--reader", "bioio")) == "czyx"


def test_what_is_there_is_replaced_where_asked(folder, capsys):
    convert("scan.tif", "out.zarr")
    assert main(["convert", "two.ome.tif", "out.zarr"]) == 1
    assert "overwrite" in capsys.readouterr().err
    target = convert("two.ome.tif", "out.zarr", "--overwrite", "--workers", "1")
    assert axes(target) == "yx"


def test_a_pattern_of_files(folder):
    for z, plane in enumerate(VOXELS[0]):
        tifffile.imwrite(f"plane_z{z}.tif", plane)
    np.testing.assert_array_equal(levels(convert("plane_*.tif", "out.zarr"))[0], VOXELS[0])


@pytest.mark.parametrize(
    "option, expected",
    [
        (["--chunks", "1,a"], "expected integers"),
        (["--ngff-version", "0.6"], "invalid choice"),
        (["--levels", "two"], "invalid int value"),
        (["--pixel-size", "0.2"], "AXIS=MICROMETERS"),
    ],
)
def test_options_that_cannot_be_are_explained(folder, capsys, option, expected):
    before = contents(folder)
    with pytest.raises(SystemExit) as ended:
        main(["convert", "scan.tif", "out.zarr", *option])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err
    assert contents(folder) == before


def test_the_command_itself(folder):
    """In a process of its own: the exit code, the streams, and the warning for the user."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "convert", "scan.tif", "out.zarr"],
        env={"PYTHONPATH": str(root), "PATH": "", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{'image':<22}{folder / 'out.zarr'}\n"
    assert "scan.tif says no pixel size for z, y, x" in done.stderr
