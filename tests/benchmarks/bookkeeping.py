"""What a run costs beside its voxels: 1000 labels and 100 joins per tile, and no voxel at all.

    python tests/benchmarks/bookkeeping.py [FOLDER] [TILES ...]

Every number of tiles (10^4, 10^5 and 10^6 by default) runs in a process of its own. Prints seconds
and peak memory per step, and the exponent with which each step grows: 1.0 is linear. Records are
real files; beyond 10^5 tiles as many are written, and their time is multiplied.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import log
from pathlib import Path

import numpy as np

from patchworks.execution.executor import shrinking_batches
from patchworks.geometry.grid import TileGrid
from patchworks.io.record import TileRecord
from patchworks.io.stage import Stage
from patchworks.run import RunSpec
from patchworks.steps.merge import Relabeling, build_relabeling

LABELS, HALO_LABELS, JOINS = 1000, 60, 100
MAX_FILES = 100_000
TABLES = 2_000


def peak_mib() -> float:
    """Return the most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Steps:
    """Seconds and memory of each step."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float]] = {}

    @contextmanager
    def step(self, name: str, times: float = 1.0) -> Iterator[None]:
        """Measure a step; `times` says how much more of it there would be."""
        start = time.perf_counter()
        yield
        self.found[name] = ((time.perf_counter() - start) * times, peak_mib())


def synthetic_joins(n_tiles: int, rng: np.random.Generator) -> np.ndarray:
    """Return the joins of one batch of tiles: each with the tile after it."""
    tile = np.repeat(np.arange(n_tiles, dtype=np.uint32), JOINS)
    joins = np.empty((len(tile), 4), np.uint32)
    joins[:, 0], joins[:, 2] = tile, np.minimum(tile + 1, n_tiles - 1)
    joins[:, 1] = rng.integers(1, LABELS + HALO_LABELS + 1, len(tile))
    joins[:, 3] = rng.integers(1, LABELS + HALO_LABELS + 1, len(tile))
    return joins


def simulate(folder: Path, n_tiles: int) -> dict[str, tuple[float, float]]:
    """Go through the bookkeeping of a run of `n_tiles`."""
    steps, rng = Steps(), np.random.default_rng(0)
    side = round(n_tiles ** (1 / 3))
    shape = (64 * side, 512 * side, 512 * -(-n_tiles // side**2))
    n_files = min(n_tiles, MAX_FILES)
    times = n_tiles / n_files
    with steps.step("plan: tiles, seams, pyramid, regions"):
        spec = RunSpec(grid=TileGrid.regular(shape, (64, 512, 512), (16, 16, 16)))
        assert spec.grid.n_tiles >= n_tiles
        regions = spec.pyramid.regions()
        todo = list(range(regions.n_tiles))
        batches = shrinking_batches(range(n_tiles), 64)
        assert sum(map(len, batches)) == n_tiles <= len(todo)
    with steps.step("neighbours of every tile", n_tiles / min(n_tiles, 20_000)):
        for index in range(min(n_tiles, 20_000)):
            assert len(list(spec.seams.contacts(index))) <= 3
    with steps.step("records written", times):
        stage = Stage.create(folder / "stage", {"fingerprint": "synthetic"}, n_tiles)
        for index in range(n_files):
            stage.write_record(TileRecord(index, LABELS, LABELS + HALO_LABELS))
    with steps.step("what is done listed", times):
        assert len(stage.done()) == n_files
    with steps.step("records read", times):
        for index in range(n_files):
            stage.read_record(index)
    joins = [synthetic_joins(n_tiles, rng)]
    n_labels = np.full(n_tiles, LABELS, np.int64)
    with steps.step("joins to relabeling"):
        relabeling = build_relabeling(n_labels, n_labels + HALO_LABELS, joins)
    with steps.step("relabeling saved, fingerprinted and loaded"):
        relabeling.save(stage)
        relabeling.digest()
        relabeling = Relabeling.load(stage)
    with steps.step("tables of all tiles", n_tiles / min(n_tiles, TABLES)):
        for index in rng.integers(0, n_tiles, min(n_tiles, TABLES)):
            assert relabeling.table(index).max() <= relabeling.n_objects
    stage.remove()
    return steps.found


def main(folder: str | None = None, *sizes: str) -> None:
    """Simulate every size in a process of its own and print the table."""
    if sizes and sizes[0] == "one":
        print(json.dumps(simulate(Path(str(folder)), int(sizes[1]))))
        return
    wanted = [int(float(n)) for n in sizes] or [10**4, 10**5, 10**6]
    found = []
    for n in wanted:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            command = [sys.executable, __file__, place, "one", str(n)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout))
    print("| step | " + " | ".join(f"{n:.0e} tiles" for n in wanted) + " | grows with |")
    print("|---|" + "---|" * len(wanted) + "---|")
    for step in found[0]:
        cells = [f"{one[step][0]:.2f} s, {one[step][1]:.0f} MiB" for one in found]
        growth = log(found[-1][step][0] / found[0][step][0]) / log(wanted[-1] / wanted[0])
        print(f"| {step} | " + " | ".join(cells) + f" | n^{growth:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
