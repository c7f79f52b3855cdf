"""Which tiles of a run hold signal, over batches; the library and the flows share it all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from patchworks import emptiness
from patchworks.emptiness import Emptiness
from patchworks.pipeline import OCCUPANCY, THRESHOLD, RunPlan
from patchworks.steps.occupancy import is_occupied


def sample_threshold(plan: RunPlan) -> float:
    """Return the intensity above which a voxel is signal: the one given, or that of a sample."""
    if plan.spec.empty_threshold is not None:
        return float(plan.spec.empty_threshold)
    return emptiness.sampled_background(plan.source).threshold


def known_emptiness(plan: RunPlan) -> Emptiness | None:
    """Return what is known of the image's maxima, and put it where all workers find it.

    None where tiles are not to be left out, or the image lies in memory.
    """
    found = Emptiness.of(plan.source) if plan.spec.skip_empty else None
    if found is not None:
        found.take(emptiness.staged_map(plan.stage, plan.source))  # of a try that was interrupted
        emptiness.stage_map(plan.stage, found.maxima)
    return found


def map_maxima(plan: RunPlan, units: Sequence[int]) -> int:
    """Read units of the image for what its map does not know; returns how many voxels were read.

    What is learned goes to the stage.
    """
    known = emptiness.staged_map(plan.stage, plan.source)
    if known is None:
        return 0
    before = known.known.copy()
    n_read = Emptiness(plan.source, known).look_at(units)
    emptiness.stage_learned(plan.stage, units, known, before)
    return n_read


def stage_learned(plan: RunPlan, found: Emptiness) -> None:
    """Put what this process's reader has learned where the next try finds it."""
    found.take(plan.reader.maxima)
    with suppress(OSError):  # it can be learned again
        emptiness.stage_map(plan.stage, found.maxima)


def gather_maxima(plan: RunPlan, found: Emptiness) -> None:
    """Put together what batches have learned, for all workers and for other runs."""
    emptiness.gather_learned(plan.stage, found.maxima)
    emptiness.stage_map(plan.stage, found.maxima)
    plan.stage.remove_arrays(emptiness.LEARNED)
    found.keep()


def find_occupied(plan: RunPlan, threshold: float, tiles: Sequence[int]) -> list[tuple[int, bool]]:
    """Return for each tile whether it reads any voxel above `threshold`."""
    grid = plan.spec.grid
    return [(i, is_occupied(plan.reader, grid[i], threshold)) for i in tiles]


def save_occupancy(
    plan: RunPlan, threshold: float, found: Iterable[list[tuple[int, bool]]]
) -> np.ndarray:
    """Write which tiles hold signal, and what is, to the stage; returns bool on the tile grid."""
    occupied = np.zeros(plan.spec.grid.n_tiles, bool)
    for batch in found:
        for index, is_signal in batch:
            occupied[index] = is_signal
    occupied = occupied.reshape(plan.spec.grid.dims)
    plan.stage.write_array(THRESHOLD, np.array(threshold))
    plan.stage.write_array(OCCUPANCY, occupied)
    return occupied
