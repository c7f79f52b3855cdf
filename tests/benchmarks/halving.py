"""A function that has no memory for more than N voxels: objects, cuts and failed calls of its runs.

python tests/benchmarks/halving.py
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import zarr

from patchworks.execution.executor import ThreadExecutor
from patchworks.plan import RunOptions, plan_run
from patchworks.report import RunReport
from patchworks.run_plan import run_plan
from patchworks.segmenters import Segmenter
from tests import cells
from tests.images import above_1100, ome_zarr, smooth_noise
from tests.test_halving import Limited


def segmented(
    image: Path | np.ndarray, fn: Segmenter, tile_shape: tuple[int, ...], overlap: int
) -> tuple[RunReport, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "l.zarr"
        options = RunOptions(tile_shape=tile_shape, overlap=overlap, write_to=target)
        report = run_plan(plan_run(image, fn, options), ThreadExecutor(2), progress=False)
        return report, zarr.open_array(target / "0")[:]


def main() -> None:
    logging.disable(logging.WARNING)
    voxels = smooth_noise((32, 256, 256))
    with tempfile.TemporaryDirectory() as folder:
        image = ome_zarr(Path(folder) / "i.zarr", voxels)
        small, expected = segmented(image, above_1100, (32, 64, 64), 8)
        print(f"tiles of 64: {small.n_tiles} tiles, {small.n_objects} objects")
        print("tiles of 128, functions that fail above N voxels:")
        print("| N | objects | cuts | failed calls | as with small tiles | as the whole |")
        print("|---|---|---|---|---|---|")
        for n_voxels in (400_000, 200_000, 100_000, 30_000):
            fn = Limited(n_voxels)
            report, labels = segmented(image, fn, (32, 128, 128), 8)
            same = [cells.same_partition(x, labels) for x in (expected, above_1100(voxels))]
            failed = f"{fn.n_failures} of {fn.n_calls}"
            print(
                f"| {n_voxels} | {report.n_objects} | {report.n_halvings} | {failed} | {same[0]} "
                f"| {same[1]} |"
            )
    touching, segment = cells.make((512, 512), 24), cells.segmenter(24)
    report, labels = segmented(touching, Limited(20_000, segment), (512, 512), 24)
    found = cells.agreement(segment(touching), labels)
    print(f"touching cells in one tile of 512, N = 20000: {report.n_halvings} cuts, {found}")


if __name__ == "__main__":
    main()
