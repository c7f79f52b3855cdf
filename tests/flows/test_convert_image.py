"""The flow `convert_image`: what it shows, refuses, keeps and returns, on a real server."""

from __future__ import annotations

import logging
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile
import zarr

from flows import conversion, convert_image
from patchworks.errors import (
    ImageReadError,
    InputError,
    PatchworksError,
    SourceNotFoundError,
    TargetExistsError,
)
from patchworks.geometry import image_pyramid, pyramid
from patchworks.plugins.ome_zarr import to_ome_zarr
from tests.conversion.small_files import STACK, damage, write_tiff
from tests.conversion.written import check_pyramid, leftovers
from tests.flows.test_segment_image import latest_task_runs
from tests.stores import contents, ome_zarr

OPTIONS = {"n_levels": 5, "chunks": (8, 64, 64)}


@pytest.fixture
def small_regions():
    """Regions so small that a small image has several, and levels with passes of their own."""
    with (
        mock.patch.object(image_pyramid, "REGION_BYTES", 2**20),
        mock.patch.object(pyramid, "MIN_FUSED_CHUNK", 32),
    ):
        yield


@pytest.fixture
def nothing_starts(monkeypatch):
    """Fail where a server or workers would be started."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a server or workers were started")

    monkeypatch.setattr("flows.job.prefect_server", started)
    monkeypatch.setattr("flows.cluster_start.distributed.LocalCluster", started)


@pytest.mark.usefixtures("server", "small_regions")
class TestOnAServer:
    def test_every_step_is_a_named_task_and_a_warning_is_seen(self, tmp_path, caplog, request):
        source, target = tmp_path / "scan.tif", tmp_path / "scan.ome.zarr"
        tifffile.imwrite(source, STACK, tile=(64, 64), metadata={"axes": "ZYX"})
        with caplog.at_level(logging.WARNING, "patchworks"):
            report = convert_image(source, target, **OPTIONS)
        said = [record.getMessage() for record in caplog.records if record.name != "prefect"]
        assert (
            len([text for text in said if "scan.tif says no pixel size for z, y, x" in text]) == 1
        )
        check_pyramid(target, STACK, 2)
        names = [name for name, state in latest_task_runs() if state == "Completed"]
        for step in ("set up conversion", "convert level 0, regions", "convert level 4, regions",
                     "finish conversion"):  # fmt: skip
            assert any(name.startswith(step) for name in names), (step, names)
        assert (report.target, report.n_bytes) == (str(target), STACK.nbytes)
        assert report.n_reused == 0
        assert report.n_regions > 3
        spans = [n.split()[-1].split("-") for n in names if n.startswith("convert level 0")]
        regions = [i for span in spans for i in range(int(span[0]), int(span[-1]) + 1)]
        assert sorted(regions) == list(range(report.n_regions))
        assert leftovers(tmp_path) == []
        # Done already, it is returned without a server or a worker.
        request.getfixturevalue("nothing_starts")
        before = contents(tmp_path)
        again = convert_image(source, target, **OPTIONS)
        assert (again.n_reused, again.n_regions) == (report.n_regions, report.n_regions)
        assert "made from this file already" in str(again)
        assert contents(tmp_path) == before

    @pytest.mark.slow
    def test_all_images_make_the_collection_that_the_function_makes(self, tmp_path, request):
        source, target = tmp_path / "two.ome.tif", tmp_path / "flow" / "two.zarr"
        images = [STACK[:3], STACK[3:8, :100]]
        with tifffile.TiffWriter(source, ome=True) as file:
            for voxels in images:
                file.write(voxels, metadata={"axes": "ZYX"})
        report = convert_image(source, target, scene="all", n_levels=2)
        assert report.target == str(target)
        assert report.n_bytes == sum([voxels.nbytes for voxels in images])
        for index, voxels in enumerate(images):
            check_pyramid(target / str(index), voxels, 2)
        assert leftovers(target.parent) == []
        to_ome_zarr(source, tmp_path / "two.zarr", scene="all", n_levels=2, progress=False)
        assert contents(target) == contents(tmp_path / "two.zarr")
        request.getfixturevalue("nothing_starts")
        again = convert_image(str(source), str(target), scene="all", n_levels=2)
        assert again.n_reused == again.n_regions == report.n_regions

    def test_what_comes_to_the_target_meanwhile_stays(self, tmp_path, monkeypatch):
        source, target = write_tiff(tmp_path / "scan.tif"), tmp_path / "scan.ome.zarr"
        one_pass = conversion._one_pass

        def meanwhile(*args: object) -> None:
            if not target.exists():
                ome_zarr(target, [STACK[:2]])
            one_pass(*args)

        with monkeypatch.context() as patch:
            patch.setattr(conversion, "_one_pass", meanwhile)
            with pytest.raises(TargetExistsError, match="overwrite=True") as seen:
                convert_image(source, target, **OPTIONS)
        assert "goes on from there" in seen.value.__notes__[0]
        assert (zarr.open_group(target, mode="r")["0"][...] == STACK[:2]).all()
        report = convert_image(source, target, overwrite=True, **OPTIONS)
        assert report.n_reused == report.n_regions
        check_pyramid(target, STACK, 2)
        assert leftovers(tmp_path) == []

    def test_a_source_that_changes_is_refused_and_converted_anew(self, tmp_path, monkeypatch):
        source, target = write_tiff(tmp_path / "scan.tif"), tmp_path / "scan.ome.zarr"
        one_pass = conversion._one_pass

        def meanwhile(*args: object) -> None:
            one_pass(*args)
            write_tiff(source, STACK[::-1])

        with monkeypatch.context() as patch:
            patch.setattr(conversion, "_one_pass", meanwhile)
            with pytest.raises(ImageReadError, match="changed while it was read"):
                convert_image(source, target, **OPTIONS)
        assert {path.name for path in tmp_path.iterdir()} == {source.name}
        convert_image(source, target, **OPTIONS)
        check_pyramid(target, STACK[::-1], 2)

    @pytest.mark.slow
    def test_a_part_that_cannot_be_read_ends_it_and_the_rest_is_kept(self, tmp_path):
        """The same call reads what is missing, and only that: all else is damaged by then."""
        source, target = write_tiff(tmp_path / "scan.tif"), tmp_path / "scan.ome.zarr"
        whole, stamp = source.read_bytes(), source.stat().st_mtime_ns
        damage(source, tile=0, stamp=stamp)
        with pytest.raises(
            ImageReadError, match=r"scan\.tif: cannot be read .*\(0, 0, 0\)"
        ) as seen:
            convert_image(source, target, **OPTIONS)
        (note,) = seen.value.__notes__
        (kept,) = [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
        assert f"kept in {kept}" in note
        assert not target.exists()
        states = [state for name, state in latest_task_runs() if "level 0" in name]
        assert states.count("Failed") == 1
        assert states.count("Completed") == len(states) - 1 > 2
        source.write_bytes(whole)
        damage(source, tile=-1, stamp=stamp)
        report = convert_image(source, target, **OPTIONS)
        assert report.n_reused == report.n_regions - 1
        check_pyramid(target, STACK, 2)
        assert leftovers(tmp_path) == []


BAD = {
    "missing": ({"source": "none.czi"}, SourceNotFoundError, "none.czi"),
    "damaged": ({"source": "noise.ims"}, SourceNotFoundError, "noise.ims"),
    "folder": ({"source": "."}, PatchworksError, "source"),
    "array": ({"source": STACK}, InputError, "other processes"),
    "target in memory": ({"target": "memory://out.zarr"}, InputError, "other processes"),
    "target": ({"target": "noise.ims"}, PatchworksError, "never replaced"),
    "the source": ({"target": "scan.tif", "overwrite": True}, InputError, "source"),
    "axes": ({"axes": "yx"}, InputError, "axes='yx'"),
    "pixel size": ({"pixel_size": {"y": -1}}, InputError, "micrometers > 0"),
    "channel names": ({"channel_names": ["a", "b"]}, InputError, "expected 1"),
    "chunks": ({"chunks": (1, 2)}, InputError, "chunks"),
    "scene": ({"scene": 3}, InputError, "scene=3"),
    "workers": ({"max_workers": 0}, InputError, "max_workers=0"),
    "half a worker": ({"max_workers": 0.5, "scene": "all"}, InputError, "max_workers=0.5"),
}


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_before_a_server_or_workers_start(tmp_path, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)
    write_tiff(Path("scan.tif"), STACK[:, :64, :64])
    Path("noise.ims").write_bytes(np.random.default_rng(0).bytes(3000))
    given, error, said = BAD[bad]
    before = contents(tmp_path)
    with pytest.raises(error) as raised:
        convert_image(**{"source": "scan.tif", "target": "out.ome.zarr", **given})
    assert said in str(raised.value)
    assert contents(tmp_path) == before
