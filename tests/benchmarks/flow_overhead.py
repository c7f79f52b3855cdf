"""What the flow costs beside the library: `segment_image` against `tile_process`.

    python tests/benchmarks/flow_overhead.py [TILES] [SECONDS_PER_TILE]

Both work on as many tiles at a time as there are cores; the flow starts its own Prefect server and
workers, and its time holds all of that. Prints both, the difference, and the number of task runs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import zarr
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from scipy import ndimage

from flows import segment_image
from flows.server import prefect_server
from patchworks import tile_process

TILE = 32


class Slow:
    """A threshold that takes its time without holding the interpreter's lock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        return ndimage.label(tile > 1100)[0]


def count_task_runs() -> int:
    """Return how many task runs the latest flow run had."""
    with prefect_server(), get_client(sync_client=True) as client:
        latest = max(client.read_flow_runs(limit=200), key=lambda run: run.created)
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[latest.id]))
        found, offset = 0, 0
        while page := client.read_task_runs(flow_run_filter=wanted, limit=200, offset=offset):
            found, offset = found + len(page), offset + len(page)
    return found


def main(n_tiles: int = 4096, seconds: float = 0.02) -> None:
    """Run both and print what they took."""
    across = ceil(sqrt(n_tiles))
    shape = (TILE * ceil(n_tiles / across), TILE * across)
    noise = np.random.default_rng(0).normal(0, 1, shape)
    image = (1000 + 8000 * ndimage.gaussian_filter(noise, 2.5)).clip(0).astype("uint16")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zarr.create_array(folder / "image.zarr", data=image, chunks=(8 * TILE, 8 * TILE))
        run = {"tile_shape": (TILE, TILE), "overlap": 4}
        begin = time.perf_counter()
        tile_process(
            folder / "image.zarr", Slow(seconds), write_to=folder / "a.zarr", progress=False, **run
        )
        library_s = time.perf_counter() - begin
        begin = time.perf_counter()
        report = segment_image(
            folder / "image.zarr", segmenter=Slow(seconds), write_to=folder / "b.zarr", **run
        )
        flow_s = time.perf_counter() - begin
    over = flow_s - 1.05 * library_s
    print(f"{report.n_tiles} tiles of {1000 * seconds:g} ms")
    print(f"tile_process   {library_s:7.1f} s")
    print(f"segment_image  {flow_s:7.1f} s: 5 % and {over:.1f} s more")
    print(f"task runs      {count_task_runs():7d}")
    print("steps         ", {step: round(s, 2) for step, s in report.seconds.items()})


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, float), sys.argv[1:], strict=False)))
