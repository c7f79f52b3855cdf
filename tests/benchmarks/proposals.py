"""Print the tiles that tile_shape="auto" proposes, for machines and images that are not here.

    python tests/benchmarks/proposals.py

Machines are control groups in files, and cards in a fake NVML library; nothing is read or run.
"""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from patchworks.auto_tile_shape import tile_budget
from patchworks.errors import PatchworksError
from patchworks.execution.gpus import visible_gpus
from patchworks.execution.work_place import processes_here, threads_here
from patchworks.geometry.auto_tile_shape import TileLayout, propose_tile_shape
from tests.machines import pretend
from tests.nvml import GIB, FakeCard, FakeInstance, cards

MACHINES = {
    "laptop: 4 cores, 2 GiB free": {"gib": 2, "n_cores": 4},
    "container: 2 cores, 1 GiB": {"gib": 1, "n_cores": 2},
    "desktop: 16 cores, 64 GiB": {"gib": 64, "n_cores": 16},
    "server: 96 cores, 768 GiB": {"gib": 768, "n_cores": 96},
    "GPU of 24 GiB, 8 cores, 32 GiB": {
        "gib": 32, "n_cores": 8, "gpus": [FakeCard("GPU-1", "L4", 24 * GIB, 23 * GIB)],
    },
    "GPU of 8 GiB, 2 free": {
        "gib": 32, "n_cores": 8, "gpus": [FakeCard("GPU-1", "RTX 2070", 8 * GIB, 2 * GIB)],
    },
    "4 GPUs of 80 GiB, one with 5 free": {
        "gib": 512, "n_cores": 64, "gpus": cards(4, [79 * GIB, 5 * GIB, 79 * GIB, 79 * GIB]),
    },
    "2 MIG instances of 10 GiB": {
        "gib": 64, "n_cores": 16,
        "gpus": [FakeCard("GPU-1", instances=[FakeInstance("MIG-1"), FakeInstance("MIG-2")])],
    },
}  # fmt: skip

LIGHTSHEET = {"chunks": (64, 64, 64), "spacing": (1.0, 1.0, 1.0)}
IMAGES = {
    "2-D slide, chunks 512": ((60000, 80000), "uint8", {"chunks": (512, 512)}),
    "confocal 5:1, chunks 16x256x256": (
        (200, 4096, 4096), "uint16", {"chunks": (16, 256, 256), "spacing": (5.0, 1.0, 1.0)},
    ),
    "light sheet, chunks 64, shards 512": (
        (4000, 8000, 8000), "uint16", {**LIGHTSHEET, "shards": (512, 512, 512)},
    ),
    "time series, a plane a chunk": (
        (100, 60, 2048, 2048), "uint16",
        {"chunks": (1, 1, 2048, 2048), "is_tiled": (False, True, True, True),
         "spacing": (1.0, 3.0, 1.0, 1.0)},
    ),
    "small array in memory": ((64, 512, 512), "float32", {}),
}  # fmt: skip


def line(name: str, image: str) -> str:
    """Return one line of the table: tile, tiles, what its reads and memory are, and the reason."""
    shape, dtype, more = IMAGES[image]
    layout = TileLayout.of(shape, **more)
    gpus = visible_gpus() if MACHINES[name].get("gpus") else []
    place = processes_here(len(gpus), gpus) if len(gpus) > 1 else threads_here(len(gpus), gpus)
    budget = tile_budget(place, np.dtype(dtype).itemsize, len(shape))
    try:
        found = propose_tile_shape(layout, budget)
    except PatchworksError as error:
        return f"  {image:<36} {type(error).__name__}: {error}"
    read = prod(layout.read_shape(found.tile_shape))
    size, more_read = prod(found.tile_shape) / 2**20, read / prod(found.tile_shape)
    tile = " x ".join(map(str, found.tile_shape))
    return (
        f"  {image:<36} {tile:<22} {size:6.1f} Mvox  reads {more_read:4.2f}  "
        f"{found.n_tiles:>7} tiles / {place.n_workers} workers; {found.reason}"
    )


def main() -> None:
    """Print the table."""
    for name, facts in MACHINES.items():
        with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            pretend(Path(folder), patch, **facts)
            print(name)
            for image in IMAGES:
                print(line(name, image))


if __name__ == "__main__":
    main()
