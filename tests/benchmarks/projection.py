"""Six functions: what their runs were projected to take of memory and time, and what they took.

python tests/benchmarks/projection.py IMAGE [FUNCTION...]     an OME-Zarr or zarr store, (z, y, x)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage


def compared(tile: np.ndarray) -> np.ndarray:
    return (tile > 400).view(np.uint8)


def components(tile: np.ndarray) -> np.ndarray:
    return ndimage.label(tile > 400)[0]


def smoothed(tile: np.ndarray) -> np.ndarray:
    return ndimage.label(ndimage.gaussian_filter(tile.astype(np.float32), 2) > 400)[0]


def difference(tile: np.ndarray) -> np.ndarray:
    voxels = tile.astype(np.float64)
    return ndimage.label(
        ndimage.gaussian_filter(voxels, 1) - ndimage.gaussian_filter(voxels, 4) > 50
    )[0].astype(np.int64)


def watershed(tile: np.ndarray) -> np.ndarray:
    from skimage.segmentation import watershed as flooded

    smooth = ndimage.gaussian_filter(tile.astype(np.float32), 1.5)
    peaks = (smooth == ndimage.maximum_filter(smooth, 9)) & (smooth > 450)
    return flooded(-smooth, ndimage.label(peaks)[0], mask=smooth > 350)


def network(tile: np.ndarray) -> np.ndarray:
    """Take memory as a small network does: some channels of float32."""
    channels = np.empty((8, *tile.shape), np.float32)
    for weight, channel in enumerate(channels):
        ndimage.uniform_filter(tile, 1 + 2 * (weight % 3), output=channel)
    return ndimage.label(channels.mean(0) > 400)[0]


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    f.__name__: f for f in (compared, components, smoothed, difference, watershed, network)
}


def measure(image: str, name: str) -> dict[str, float]:
    """Propose a run, carry it out as proposed, and return both sides."""
    from patchworks import plan_run
    from patchworks.run_plan import run_plan

    with tempfile.TemporaryDirectory(dir=Path(image).parent) as folder:
        proposal = plan_run(
            image, FUNCTIONS[name], probe=True, probe_seconds=40, write_to=Path(folder) / "l.zarr"
        )
        print(proposal, file=sys.stderr)
        Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        workers = proposal.workers
        run_plan(proposal.plan, workers.executor, engine=workers.engine, progress=False)
        seconds = time.perf_counter() - start
        status = Path("/proc/self/status").read_text()
        size = sum(p.stat().st_size for p in Path(folder, "l.zarr").rglob("*") if p.is_file())
    return {
        "tile": proposal.tile_shape,
        "overlap": proposal.overlap,
        "bytes_per_voxel": proposal.plan.need.bytes_per_voxel,
        "projected": proposal.projected_bytes,
        "peak": int(status.split("VmHWM:")[1].split()[0]) * 1024,
        "told_s": proposal.seconds,
        "seconds": seconds,
        "told_size": proposal.result_bytes,
        "size": size,
    }


def measured_apart(image: str, name: str) -> dict[str, float]:
    """Measure in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run(
        [sys.executable, __file__, "--one", image, name],
        env=environment, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(child.stdout)
    return found


def main() -> None:
    if sys.argv[1] == "--one":
        print(json.dumps(measure(*sys.argv[2:4])))
        return
    print(
        "| function | tile, overlap | bytes a voxel | projected / peak MiB | s told / taken | B |"
    )
    print("|---|---|---|---|---|---|")
    for name in sys.argv[2:] or FUNCTIONS:
        found = measured_apart(sys.argv[1], name)
        ratios = [found["projected"] / found["peak"], found["told_s"] / found["seconds"]]
        print(
            f"| {name} | {found['tile']}, {found['overlap']} | {found['bytes_per_voxel']:.1f} "
            f"| {found['projected'] / 2**20:.0f} / {found['peak'] / 2**20:.0f} = {ratios[0]:.2f} "
            f"| {found['told_s']:.1f} / {found['seconds']:.1f} = {ratios[1]:.2f} "
            f"| {found['told_size'] / found['size']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
