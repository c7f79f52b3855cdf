"""The conversion as a flow and as a function are one: the same stores, byte by byte."""

from __future__ import annotations

from unittest import mock

import pytest

from flows import convert_image
from patchworks.geometry import image_pyramid, pyramid
from patchworks.plugins.ome_zarr import to_ome_zarr
from tests.conversion.small_files import WRITERS
from tests.conversion.written import leftovers
from tests.stores import contents

pytestmark = pytest.mark.usefixtures("server")

RUNS = {
    "imaris, 0.4": (".ims", {"n_levels": 4, "chunks": (8, 64, 64), "ngff_version": "0.4"}),
    "czi, sharded": (".czi", {"n_levels": 3, "shard": True, "chunks": (8, 32, 32)}),
}


@pytest.mark.parametrize(
    "run",
    [pytest.param(run, marks=[pytest.mark.slow] if "imaris" in run else []) for run in RUNS],
)
def test_a_file(tmp_path, run):
    suffix, options = RUNS[run]
    options |= {"pixel_size": {"y": 0.5}, "channel_names": ["nuclei"]}
    source = WRITERS[suffix](tmp_path / f"scan{suffix}")
    targets = [tmp_path / by / "scan.ome.zarr" for by in ("function", "flow")]
    with (
        mock.patch.object(image_pyramid, "REGION_BYTES", 2**20),
        mock.patch.object(image_pyramid, "MAX_REGION_BYTES", 2**20),
        mock.patch.object(pyramid, "MIN_FUSED_CHUNK", 32),
    ):
        to_ome_zarr(source, targets[0], progress=False, **options)
        report = convert_image(source, targets[1], **options)
    assert report.n_regions > 1
    assert contents(targets[0]) == contents(targets[1])
    assert leftovers(targets[1].parent) == []
