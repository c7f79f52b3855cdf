"""What a run will need of memory, before it begins, and how it is made to fit.

Four things count: chunks that are kept for tiles that share them, tiles on their way (read ahead,
in the function, being staged), seam planes, and regions of the last pass. None grows with the
image.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from math import prod

from patchworks.errors import MemoryBudgetError
from patchworks.execution.machine import Memory
from patchworks.execution.overlap import io_threads
from patchworks.geometry.box import Box
from patchworks.geometry.tile_shape import WORKING_BYTES_PER_VOXEL
from patchworks.io.tile_reader import KEPT_BYTES
from patchworks.joining import RECORDS_BYTES
from patchworks.pipeline import RunPlan

logger = logging.getLogger("patchworks")

LABEL_BYTES = 4
"""Of a voxel of labels, as most functions return them."""

STAGING_BYTES = 8
"""Per voxel while labels are staged: the labels, what is staged of them, and where they change."""

REGION_BYTES = 16
"""Per voxel of a region in the last pass: labels, staged labels, levels, what is compressed."""

PROCESS_BYTES = 2**28
"""What imports, the interpreter and the allocator's slack take beside the voxels."""

SHARE = 0.8
"""Of the memory that is available, how much a run may plan with."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a run needs at its peak, and what they are computed from.

    Parameters
    ----------
    n_workers : int
        Function calls at a time.
    n_ahead : int
        Tiles read ahead, and as many being staged.
    kept_bytes : int
        Decoded chunks that are kept.
    read_bytes, working_bytes, staging_bytes : int
        Of one tile: its voxels; the function with what it is assumed to need; staging its labels.
    region_bytes : int
        Of all regions that the last pass holds at a time.
    joining_bytes : int
        Of the seam planes that are held while seams are judged.
    """

    n_workers: int
    n_ahead: int
    kept_bytes: int
    read_bytes: int
    working_bytes: int
    staging_bytes: int
    region_bytes: int
    joining_bytes: int

    @property
    def projected_bytes(self) -> int:
        """Bytes at the peak: of segmenting, of judging seams, or of the last pass."""
        reading = 2 * self.n_ahead * self.read_bytes  # what is decoded, and the tile made of it
        segmenting = (
            self.kept_bytes
            + reading
            + self.n_workers * self.working_bytes
            + self.n_ahead * self.staging_bytes
        )
        return PROCESS_BYTES + max(segmenting, self.joining_bytes, self.region_bytes)


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
    shared = plan.reader.shares_blocks
    kept_records = 2 + bool(plan.spec.linked)  # and those being compared; staged labels of slices
    whole = prod(Box.whole(grid.shape).shape) * itemsize
    return MemoryNeed(
        n_workers=min(n_workers, grid.n_tiles),
        n_ahead=plan.n_ahead or io_threads(n_workers),
        kept_bytes=min(plan.kept_bytes, whole) if shared else 0,
        read_bytes=n_voxels * itemsize,
        working_bytes=n_voxels * (itemsize + WORKING_BYTES_PER_VOXEL),
        staging_bytes=n_voxels * (LABEL_BYTES + STAGING_BYTES),
        region_bytes=region * REGION_BYTES * min(n_cores, plan.spec.pyramid.regions().n_tiles),
        joining_bytes=kept_records * RECORDS_BYTES * min(n_cores, grid.n_tiles),
    )


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
        if need.projected_bytes <= budget:
            return tried, n_workers
    for fewer in range(n_workers - 1, 0, -1):
        need = memory_need(tried, fewer, n_cores)
        if need.projected_bytes <= budget:
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
