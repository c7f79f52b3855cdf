"""The jobs of `table.py`, each run as a process: prints what it measured as JSON.

python tests/benchmarks/jobs.py JOB ARGUMENTS...
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr
from scipy import ndimage

from patchworks.execution.executor import ThreadExecutor
from patchworks.execution.machine import available_cores
from patchworks.geometry.grid import TileGrid
from patchworks.io.location import Location, open_array
from patchworks.plan import RunOptions, plan_run
from patchworks.report import RunReport
from patchworks.run_plan import run_plan
from patchworks.segmenters import Segmenter

TILE, HALO, LEVELS = (64, 512, 512), 16, 5


def above_400(tile: np.ndarray) -> np.ndarray:
    return ndimage.label(tile > 400)[0]


def compared(tile: np.ndarray) -> np.ndarray:
    return (tile > 400).view(np.uint8)


def asleep(tile: np.ndarray) -> np.ndarray:
    time.sleep(0.1)
    return (tile > 400).view(np.uint8)


def python_loop(tile: np.ndarray) -> np.ndarray:
    n = 0
    for i in range(8_000_000):
        n += i & 3
    return (tile > n).astype(np.uint8)


def highest_memory() -> int:
    """Return the most memory this process has had; `ru_maxrss` begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def segment(
    image: str, fn: Segmenter, *, n_workers: int | None = None, **options: object
) -> tuple[RunReport, float]:
    """Segment an image in its own store; returns the report and the seconds of it all."""
    shutil.rmtree(Path(image) / "labels", ignore_errors=True)
    shutil.rmtree(f"{image}.stage", ignore_errors=True)
    start = time.perf_counter()
    keywords = {"tile_shape": TILE, "overlap": HALO, "pyramid_levels": LEVELS, **options}
    plan = plan_run(image, fn, RunOptions(**keywords))  # type: ignore[arg-type]
    executor = ThreadExecutor(n_workers or available_cores())
    report = run_plan(plan, executor, progress=False)
    return report, time.perf_counter() - start


def label(image: str, stitch: str = "auto", skip: str = "", tile: str = "") -> dict[str, float]:
    shape = tuple(map(int, tile.split(","))) if tile else TILE
    keywords = {"stitch": stitch, "skip_empty": bool(skip), "tile_shape": shape}
    start = time.process_time()
    report, seconds = segment(image, above_400, **keywords)
    cpu, peak = time.process_time() - start, highest_memory()
    print(report, file=sys.stderr)
    return {"seconds": seconds, "cpu": cpu, "peak": peak, "projected": report.projected_bytes}


def constant(image: str) -> dict[str, float]:
    report, seconds = segment(image, compared)
    print(report, file=sys.stderr)
    return {"seconds": seconds}


def once(image: str, pipeline: str) -> dict[str, float]:
    """Read the image once and write its labels once, in whole chunks, on all cores."""
    source = open_array(Location(image), "0")
    path = Path(f"{image}.once")
    shutil.rmtree(path, ignore_errors=True)
    codec = zarr.codecs.ZstdCodec(level=1)
    chunks = (64, 256, 256)
    target = zarr.create_array(
        path, shape=source.shape, chunks=chunks, dtype="uint32", compressors=codec
    )
    if pipeline == "zarrs":
        target = open_array(Location(str(path)), mode="r+")
    else:
        source = zarr.open_array(f"{image}/0", mode="r")
    grid = TileGrid.regular(source.shape, TILE, (0, 0, 0))
    boxes = [tile.core.slices for tile in grid]
    labels = [(source[box] > 400).astype(np.uint32) for box in boxes[:2]]

    def write(index: int) -> None:
        voxels = labels[index % 2]
        target[boxes[index]] = voxels[tuple([slice(s.stop - s.start) for s in boxes[index]])]

    start = time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(lambda box: source[box].shape, boxes))
        list(pool.map(write, range(len(boxes))))
    seconds = time.perf_counter() - start
    shutil.rmtree(path)
    return {"seconds": seconds}


def stage(image: str, staged: str) -> dict[str, float]:
    """Label tiles on their own, as a user's own tiling would."""
    source = open_array(Location(image), "0")
    shutil.rmtree(staged, ignore_errors=True)
    group = zarr.open_group(staged, mode="w")
    target = group.create_array("staged", shape=source.shape, chunks=TILE, dtype="int32")
    for tile in TileGrid.regular(source.shape, TILE, (0, 0, 0)):
        target[tile.core.slices] = above_400(source[tile.core.slices])
    return {}


def merge(staged: str, levels: str = "5") -> dict[str, float]:
    import dask.array  # noqa: F401 - as in the peer's job, which counts no imports

    from patchworks import merge_tile_labels

    out = f"{staged}.merged"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    merge_tile_labels(staged, out, input_component="staged", pyramid_levels=int(levels))
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return {"seconds": seconds}


def tiny(n: str) -> dict[str, float]:
    import dask.array as da

    from patchworks import tile_process

    image = np.zeros((int(n) * 16, int(n) * 16), "uint16")
    image[::7, ::5] = 1
    lazy = da.from_array(image, chunks=(16, 16))
    start = time.perf_counter()
    tile_process(lazy, lambda tile: (tile > 0).astype("int32"), overlap=0, progress=False)
    return {"ms_a_tile": (time.perf_counter() - start) * 1000 / int(n) ** 2}


def sleep(image: str) -> dict[str, float]:
    report, seconds = segment(image, asleep, n_workers=1)
    print(report, file=sys.stderr)
    step = report.seconds["segment"]
    return {"of_step": report.function_s / step, "of_call": report.function_s / seconds}


def lock(n_workers: str, n_tiles: str = "120") -> dict[str, float]:
    from patchworks import tile_process

    image = np.ones((32 * int(n_tiles), 64), "uint16")
    start = time.perf_counter()
    tile_process(
        image,
        python_loop,
        tile_shape=(32, 64),
        overlap=0,
        max_workers=int(n_workers),
        progress=False,
    )
    return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    jobs = {f.__name__: f for f in (label, constant, once, stage, merge, tiny, sleep, lock)}
    print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
