"""What a run will do and cost, as it is told before the run."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from patchworks.engine import Workers
from patchworks.execution.machine import available_cores
from patchworks.halo_choice import HaloChoice
from patchworks.pipeline import RunPlan
from patchworks.probe import Probe
from patchworks.proposal_text import described

BATCH_S = 12.0
"""Seconds that a batch of tiles lasts in a flow: short enough to be done again, long enough to be
worth a task run."""


@dataclass(frozen=True, kw_only=True)
class RunProposal:
    """What a run will do and cost; printing it says it all.

    Parameters
    ----------
    plan : RunPlan
        The run, with the tiles that are proposed.
    workers : Workers
        What would call the function.
    probe : Probe, optional
        What calls of the function took; without it, its memory is assumed and its time unknown.
    halo : HaloChoice, optional
        What overlaps did, if they were tried.
    reason : str
        Why the tiles are not larger; empty where their shape was given.
    n_occupied : int
        Tiles with signal, of those that are segmented.
    is_counted : bool
        Whether that is a count; else it is an estimate from some of the tiles.
    projected_bytes, available_bytes : int
        Memory of each process at its peak, and what is there for it.
    existing : str
        What is there already where the labels go, and what a run makes of it; empty if nothing is.
    """

    plan: RunPlan
    workers: Workers
    probe: Probe | None
    halo: HaloChoice | None
    reason: str
    n_occupied: int
    is_counted: bool
    projected_bytes: int
    available_bytes: int
    existing: str = ""

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Core of a tile, in voxels: for ``tile_shape=``."""
        return self.plan.spec.grid.tile_shape

    @property
    def overlap(self) -> tuple[int, ...]:
        """Voxels of halo on each axis: for ``overlap=``."""
        return self.plan.spec.grid.halo

    @property
    def n_tiles(self) -> int:
        """Tiles of the image."""
        return self.plan.spec.grid.n_tiles

    @property
    def n_bytes(self) -> int:
        """Bytes of the image's voxels, uncompressed."""
        return prod(self.plan.source.shape) * self.plan.source.voxel_bytes

    @property
    def read_amplification(self) -> float:
        """How often each voxel is decoded, about."""
        return self.plan.reader.cost.amplification

    @property
    def function_s(self) -> float | None:
        """Seconds in the function, summed over all calls."""
        if self.probe is None:
            return None
        return self._n_read_voxels * self.probe.mean("seconds")

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole run, about: segmenting, and writing the labels."""
        if self.probe is None or self.function_s is None:
            return None
        n_cores = available_cores()
        n_voxels = prod(self.plan.spec.grid.shape)
        read_s = self.read_amplification * n_voxels * self.probe.mean("read_s", per="n_decoded")
        store_s = n_voxels * self.probe.mean("store_s")
        n_workers = min(self.workers.place.n_workers, self.n_tiles)
        segmenting = max(
            self.function_s / n_workers, (self.function_s + read_s + store_s) / n_cores
        )
        return segmenting + self._per_level * store_s / n_cores

    @property
    def result_bytes(self) -> int | None:
        """Bytes of the label image with all of its levels, about."""
        if self.probe is None:
            return None
        per_voxel = self.probe.mean("stored_bytes")
        return int(self._per_level * per_voxel * prod(self.plan.spec.grid.shape))

    @property
    def tiles_per_batch(self) -> int | None:
        """Tiles of a batch that lasts some seconds, about as the flow makes them."""
        if self.function_s is None or not self.n_occupied:
            return None
        a_tile = max(self.function_s / self.n_occupied, 1e-6)
        return max(1, min(self.n_tiles, round(BATCH_S / a_tile)))

    @property
    def _n_read_voxels(self) -> float:
        return self.plan.spec.grid.n_read_voxels * self.n_occupied / self.n_tiles

    @property
    def _per_level(self) -> float:
        """All levels' voxels, per voxel of level 0."""
        spec = self.plan.spec
        return float(sum(spec.pyramid_downscale ** (-2.0 * i) for i in range(spec.pyramid_levels)))

    def __str__(self) -> str:
        return described(self)
