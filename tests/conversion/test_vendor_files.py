"""Files as vendors' tools write them: right at any size, in memory that does not grow with it."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from patchworks.io.ngff import read_multiscale
from patchworks.plugins.ome_zarr import to_ome_zarr
from tests.benchmarks.conversion import ENDING, KINDS, make, run, stacks


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind in ("ome", "bigtiff") else [])
        for kind in KINDS
    ],
)
def test_a_stack_comes_out_plane_by_plane_and_calibrated(kind, tmp_path):
    path = tmp_path / f"scan{ENDING.get(kind, '.ome.tif')}"
    make(kind, path, 160)  # 20 planes: more than a region holds
    target = to_ome_zarr(path, tmp_path / "scan.ome.zarr", n_levels=2, progress=False)
    group = zarr.open_group(target, mode="r")
    multiscale = read_multiscale(dict(group.attrs), kind)
    assert multiscale is not None
    assert "".join(axis.name for axis in multiscale.axes) == "zyx"
    assert multiscale.levels[0].scale == pytest.approx((1.0, 0.2, 0.2))
    assert {axis.unit for axis in multiscale.axes} == {"micrometer"}
    assert multiscale.levels[1].translation == pytest.approx((0.0, 0.1, 0.1))
    for start, planes in stacks(20):
        stop = start + len(planes)
        assert (np.asarray(group["0"][start:stop]) == planes).all()
        cells = planes.reshape(len(planes), 1024, 2, 1024, 2).astype(float)
        assert (np.asarray(group["1"][start:stop]) == np.rint(cells.mean((2, 4)))).all()


@pytest.mark.parametrize("kind", ["ome-pyramid"])
def test_levels_of_the_file_are_taken_over(kind, tmp_path):
    path = tmp_path / "scan.ome.tif"
    make(kind, path, 64)
    target = to_ome_zarr(path, tmp_path / "o.zarr", reuse_pyramid=True, progress=False)
    group = zarr.open_group(target, mode="r")
    for level in range(3):
        for start, planes in stacks(8):
            found = np.asarray(group[str(level)][start : start + len(planes)])
            assert (found == planes[:, :: 2**level, :: 2**level]).all()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["czi", "ims", "ome", "striped"])
def test_memory_is_the_same_for_half_a_gibibyte_and_for_four(kind, tmp_path):
    peaks = []
    for mib in (512, 1024, 2048, 4096):
        path = tmp_path / f"{mib}{ENDING.get(kind, '.ome.tif')}"
        make(kind, path, mib)
        _, peak = run("ours", str(path), str(tmp_path / f"{mib}.zarr"))
        peaks.append(peak)
        path.unlink()
    print(f"{kind}: peak memory {', '.join(f'{peak:.0f}' for peak in peaks)} MiB")
    assert max(peaks) <= 1.15 * min(peaks)
