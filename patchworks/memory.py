"""What a run will need of memory, before it begins, and how it is made to fit.

Four things count: chunks that are kept for tiles that share them, tiles on their way (read ahead,
in the function, being staged), seam planes, and regions of the last pass. None grows with the
image. What the process holds already, the interpreter, what is imported, a model, comes on top.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from math import prod

from patchworks.errors import MemoryBudgetError
from patchworks.execution.machine import Memory, held_bytes
from patchworks.execution.overlap import io_threads
from patchworks.function_need import LABEL_BYTES
from patchworks.geometry.grid import TileGrid
from patchworks.io.tile_reader import KEPT_BYTES
from patchworks.joining import RECORDS_BYTES
from patchworks.pipeline import RunPlan

logger = logging.getLogger("patchworks")

RUNS_BYTES = 1
"""Per voxel while labels are staged, beside them: where they change."""

PLANES = 2
"""Planes of a seam that each of its two tiles keeps; while they are compared, as much again."""

REGION_BYTES = 10
"""Per voxel of a region in the last pass: labels, staged labels, levels, what is compressed.
Objects took 5, labels that change at every voxel 9."""

PROCESS_BYTES = 2**28
"""What a worker process holds before it begins: the interpreter, and what is imported."""

SLACK = 1 / 4
"""Of chunks that are kept: what their allocator cannot give back between the parts of them."""

THREADS_BYTES = 3 * 2**24
"""What threads, buffers of files and the allocator's slack take beside the voxels."""

SHARE = 0.8
"""Of the memory that is available, how much a run may plan with."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a run needs at its peak, and what they are computed from.

    Parameters
    ----------
    held_bytes : int
        What the process holds already.
    n_workers : int
        Function calls at a time.
    n_ahead : int
        Tiles read ahead.
    kept_bytes, decoding_bytes : int
        Decoded chunks that are kept, and those of a tile that is being put together.
    read_bytes, working_bytes, staging_bytes : int
        Of one tile: its voxels; what the function takes beside them; staging its labels.
    fixed_bytes : int
        What the function holds in any case.
    region_bytes : int
        Of all regions that the last pass holds at a time.
    joining_bytes : int
        Of the seam planes that are held while seams are judged.
    """

    held_bytes: int
    n_workers: int
    n_ahead: int
    kept_bytes: int
    decoding_bytes: int
    read_bytes: int
    working_bytes: int
    staging_bytes: int
    fixed_bytes: int
    region_bytes: int
    joining_bytes: int

    @property
    def more_bytes(self) -> int:
        """Bytes beside what is held, at the peak of segmenting, of judging seams, of writing."""
        segmenting = (
            self.kept_bytes
            + self.decoding_bytes
            + (self.n_ahead + self.n_workers) * self.read_bytes
            + self.n_workers * self.working_bytes
            # The call that goes on beside it has just begun.
            + max(0, self.staging_bytes - self.working_bytes)
        )
        most = max(segmenting, self.joining_bytes, self.region_bytes)
        return THREADS_BYTES + self.fixed_bytes + most

    @property
    def projected_bytes(self) -> int:
        """Bytes of the process at its peak."""
        return self.held_bytes + self.more_bytes


def memory_need(plan: RunPlan, n_workers: int, n_cores: int) -> MemoryNeed:
    """Return what a run needs in this process.

    Parameters
    ----------
    plan : RunPlan
        The run.
    n_workers, n_cores : int
        Function calls at a time; regions that are written at a time.
    """
    grid, itemsize = plan.spec.grid, plan.source.voxel_bytes
    halo = zip(grid.tile_shape, grid.halo, grid.shape, strict=True)
    n_voxels = prod([min(t + 2 * h, n) for t, h, n in halo])
    region = prod(plan.spec.pyramid.regions()[0].core.shape)
    joined = min(RECORDS_BYTES, _plane_bytes(grid) * grid.n_tiles)
    joined *= 2 + bool(plan.spec.linked)  # and those being compared; staged labels of slices
    n_workers = min(n_workers, grid.n_tiles)
    n_ahead = min(plan.n_ahead or io_threads(n_workers), grid.n_tiles - n_workers)
    return MemoryNeed(
        held_bytes=held_bytes(),
        n_workers=n_workers,
        n_ahead=n_ahead,
        kept_bytes=int((1 + SLACK) * plan.reader.cost.kept_bytes),
        decoding_bytes=plan.reader.cost.decoding_bytes,
        read_bytes=n_voxels * itemsize,
        working_bytes=int(n_voxels * plan.need.bytes_per_voxel),
        staging_bytes=int(n_voxels * plan.need.label_bytes + prod(grid.tile_shape) * RUNS_BYTES),
        fixed_bytes=plan.need.fixed_bytes,
        region_bytes=region * REGION_BYTES * min(n_cores, plan.spec.pyramid.regions().n_tiles),
        joining_bytes=joined * n_cores,
    )


def _plane_bytes(grid: TileGrid) -> int:
    """Return the bytes of the seam planes that a tile keeps, at most."""
    voxels = prod(grid.tile_shape)
    faces = [2 * voxels // t for t, n in zip(grid.tile_shape, grid.dims, strict=True) if n > 1]
    return PLANES * LABEL_BYTES * sum(faces)


def fitted(plan: RunPlan, n_workers: int, memory: Memory, n_cores: int) -> tuple[RunPlan, int]:
    """Return the plan and the number of function calls at a time that stay within the memory.

    First fewer chunks are kept and fewer tiles read ahead, which costs some time; then fewer tiles
    are worked on at a time.

    Parameters
    ----------
    plan : RunPlan
        The run.
    n_workers, n_cores : int
        Function calls at a time that are wanted; cores.
    memory : Memory
        What this machine, or container, lets the process have.

    Raises
    ------
    MemoryBudgetError
        If not even one tile at a time fits what the machine, or container, has in all.
    """
    budget = int(SHARE * memory.available_bytes)
    for kept, ahead in ((KEPT_BYTES, None), (KEPT_BYTES // 4, None), (KEPT_BYTES // 4, 1), (0, 1)):
        tried = replace(plan, kept_bytes=min(plan.kept_bytes, kept), n_ahead=ahead)
        need = memory_need(tried, n_workers, n_cores)
        if need.more_bytes <= budget:
            return tried, n_workers
    for fewer in range(n_workers - 1, 0, -1):
        need = memory_need(tried, fewer, n_cores)
        if need.more_bytes <= budget:
            logger.warning(
                "%d function calls at a time would need more than the %.1f GiB of memory that are "
                "available: %d at a time; smaller tiles would let all workers work",
                n_workers, memory.available_bytes / 2**30, fewer,
            )  # fmt: skip
            return tried, fewer
    text = (
        f"a tile of {plan.spec.grid.tile_shape} with overlap {plan.spec.grid.halo} needs about "
        f"{need.projected_bytes / 2**30:.1f} GiB of memory"
    )
    if need.projected_bytes > memory.limit_bytes:
        raise MemoryBudgetError(
            f"{text}, and there are {memory.limit_bytes / 2**30:.1f} GiB in all; give smaller "
            f"tiles with tile_shape=, or tile_shape='auto'"
        )
    logger.warning(
        "%s, and %.1f GiB are available: it may be ended for want of memory; give smaller tiles "
        "with tile_shape=", text, memory.available_bytes / 2**30,
    )  # fmt: skip
    return tried, 1
