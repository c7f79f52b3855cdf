"""`plan_run`: what a run will do and cost, before it; with a probe, from calls of the function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, prod
from typing import Any

from patchworks import occupancy
from patchworks import plan as plans
from patchworks.auto_tile_shape import GPU_SHARE, gpu_limits, is_auto, layout_of, tile_budget
from patchworks.emptiness import Emptiness
from patchworks.engine import Engine, Workers, choose_workers
from patchworks.errors import InputError, TargetExistsError
from patchworks.execution.gpus import visible_gpus
from patchworks.execution.machine import Memory, available_cores
from patchworks.geometry.apart import resolve_grid_apart
from patchworks.geometry.auto_tile_shape import Limit, Proposal, TileBudget, propose_tile_shape
from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.tile_shape import TileShapeRule, halve_until
from patchworks.halo_choice import HALOS, CutPart, HaloChoice, choose_halo
from patchworks.io.image_source import ImageSource
from patchworks.io.source import kind_of
from patchworks.io.tile_reader import TileReader
from patchworks.memory import fitted, memory_need
from patchworks.pipeline import RunPlan, prepare_segmenter
from patchworks.plan import PathLike, RunOptions
from patchworks.probe import GROWTH, Probe, probe_function
from patchworks.run import finite_number
from patchworks.run_plan import is_finished
from patchworks.run_proposal import RunProposal
from patchworks.segmenters import Segmenter
from patchworks.temporary import temporary_store

PART_VOXELS = 2**23
"""Voxels of the part of an image on which overlaps are tried, at most."""

LOOKED_AT = 64
"""Tiles in which it is looked for signal, to tell how many have some."""


def plan_run(
    image: Any,
    fn: Segmenter,
    *,
    probe: bool = False,
    probe_seconds: float = 60.0,
    tile_shape: TileShapeRule | None = None,
    overlap: int | Sequence[int] | None = None,
    use_gpu: bool = False,
    max_workers: int | None = None,
    engine: Engine = "auto",
    write_to: PathLike | None = None,
    overwrite: bool = False,
    **options: Any,
) -> RunProposal:
    """Return what a run of `tile_process` will do and cost; nothing is written.

    Labels of another run, which are where this one's would go, are told, not refused.

    Parameters
    ----------
    image, fn, use_gpu, max_workers, engine, write_to, overwrite
        As in `patchworks.tile_process`.
    probe : bool
        Call the function on a few real pieces of the image, measure its time and memory, and
        propose the tile shape, the overlap and the size of batches that suit it. The function runs
        in this process. The overlap is the smallest with which a part of the image that is cut in
        tiles gives the objects of the same part as a whole.
    probe_seconds : float
        How long a probe may take, about.
    tile_shape, overlap
        As in `patchworks.tile_process`; what is given is kept, and only its cost is told. With a
        probe, None and ``"auto"`` are what it proposes.
    **options
        Other keywords of `patchworks.tile_process` that decide what is done: ``channel``,
        ``level``, ``skip_empty``, ``stitch``, ...

    Raises
    ------
    InputError, TargetNotWritableError, MemoryBudgetError, ClientError
        What `tile_process` would raise before any work.
    SegmenterError
        If the function fails on the smallest piece.

    Examples
    --------
    >>> import numpy as np
    >>> from patchworks.segmenters import threshold
    >>> image = np.zeros((256, 256), "uint8")
    >>> image[100:140, 100:140] = 200
    >>> plan_run(image, threshold(100), tile_shape=(128, 128), overlap=8).n_tiles
    4
    """
    seconds = finite_number("probe_seconds", probe_seconds)
    if seconds is None or seconds <= 0:
        raise InputError(f"probe_seconds={probe_seconds!r}: expected a number above 0")
    workers = choose_workers(max_workers, engine, use_gpu=use_gpu)
    is_stored = write_to is not None or kind_of(image) == "path"
    asked = RunOptions(
        tile_shape=tile_shape,
        overlap=overlap,
        write_to=write_to if is_stored else temporary_store(),
        is_temporary=not is_stored,
        place=workers.place,
        overwrite=True,  # planning replaces nothing
        **options,
    )
    planned = plans.plan_run(image, fn, asked)  # every check, before the function is called
    if probe:
        found = _Proposing(planned, workers, asked, seconds).proposal()
    else:
        found = _proposal(planned, workers, None, None, "")
    plan = replace(found.plan, may_replace=overwrite)
    return replace(found, plan=plan, existing=_existing(plan))


def _existing(plan: RunPlan) -> str:
    """Return what is there already where the labels of a run go, and what a run makes of it."""
    if is_finished(plan):
        return f"{plan.target.location}: the labels of this very run; it returns at once"
    try:
        plan.target.check(plan.fingerprint, overwrite=False)
    except TargetExistsError:
        advice = "a run needs another name (output_component=, --name) or overwrite"
        then = "it is replaced" if plan.may_replace else advice
        return f"{plan.target.location}: a label image of another run is there; {then}"
    return ""


class _Proposing:
    """From a plan with assumptions to one with measurements."""

    def __init__(
        self, planned: RunPlan, workers: Workers, asked: RunOptions, max_seconds: float
    ) -> None:
        self.planned = planned
        self.workers = workers
        self.asked = asked
        self.max_seconds = max_seconds
        self.source = planned.source
        self.segmenter = prepare_segmenter(planned.segmenter, planned.source)

    @property
    def apart(self) -> tuple[int, ...]:
        """Axes that the function does not see."""
        return self.planned.spec.grid.apart

    @property
    def is_free(self) -> bool:
        """Whether the tile shape is to be proposed."""
        return self.asked.tile_shape is None or is_auto(self.asked.tile_shape)

    def proposal(self) -> RunProposal:
        """Probe the function, choose a halo, then tiles, and say what they cost."""
        place, use_gpu = self.workers.place, self.workers.place.gpu is not None
        probe = probe_function(
            self.source,
            self.segmenter,
            self._largest_piece(),
            max_seconds=self.max_seconds / 2,
            budget_bytes=place.memory_bytes // 2,
            apart=self.apart,
            gpus=visible_gpus() if use_gpu else (),
        )
        halo = self._choose_halo(probe)
        overlap = None if halo is None or self.asked.overlap is not None else halo.halo
        if overlap is not None and not self.is_free:
            tile = self.planned.spec.grid.tile_shape
            overlap = tuple([min(h, t) for h, t in zip(overlap, tile, strict=True)])
        options = self.asked if overlap is None else replace(self.asked, overlap=overlap)
        grid, reason = self.planned.spec.grid, ""
        if self.is_free:
            found = self._propose(probe, options)
            grid, reason = self._grid(found.tile_shape, options), found.reason
        elif overlap is not None:
            grid = self._grid(grid.tile_shape, options)
        plan = plans.plan_on_grid(self.source, self.planned.segmenter, grid, options)
        plan = replace(plan, need=probe.need)
        return _proposal(plan, self.workers, probe, halo, reason)

    def _largest_piece(self) -> tuple[int, ...]:
        """Return the shape of the largest piece to call the function on."""
        grid = self.planned.spec.grid
        if not self.is_free:
            return max((tile.read.shape for tile in _some_tiles(grid)), key=prod)
        layout = layout_of(self.source, self.asked.overlap, self.apart)
        place = self.workers.place
        budget = tile_budget(place, self.source.voxel_bytes, len(self.source.shape), 1)
        return layout.read_shape(propose_tile_shape(layout, budget).tile_shape)

    def _propose(self, probe: Probe, options: RunOptions) -> Proposal:
        need, place, itemsize = probe.need, self.workers.place, self.source.voxel_bytes
        ram = tile_budget(
            replace(place, gpu=None), itemsize, len(self.source.shape), ceil(need.bytes_per_voxel)
        )
        memory, *others = ram.limits
        limits = [replace(memory, n_bytes=memory.n_bytes - need.fixed_bytes), *others]
        if place.gpu is not None and need.gpu_bytes_per_voxel > 0:
            limits.append(
                Limit(
                    what=f"GPU memory, {place.gpu}",
                    n_bytes=int(GPU_SHARE * place.gpu.free_bytes) - need.gpu_fixed_bytes,
                    bytes_per_voxel=ceil(need.gpu_bytes_per_voxel),
                )
            )
        else:
            limits += gpu_limits(place, itemsize)
        measured = GROWTH * probe.largest.n_voxels
        what = f"{GROWTH} times the largest piece that was measured ({probe.ended})"
        limits.append(Limit(what=what, n_bytes=measured, bytes_per_voxel=1))
        if probe.failed_voxels is not None:
            largest = probe.largest.n_voxels
            limits.append(Limit(what=probe.ended, n_bytes=largest, bytes_per_voxel=1))
        budget = TileBudget(limits=tuple(limits), n_workers=place.n_workers)
        return propose_tile_shape(layout_of(self.source, options.overlap, self.apart), budget)

    def _grid(self, tile_shape: tuple[int, ...], options: RunOptions) -> TileGrid:
        return resolve_grid_apart(
            self.source.shape,
            self.source.dtype,
            self.apart,
            tile_shape=tile_shape,
            overlap=options.overlap,
            chunks=None,
            storage_chunks=None,
        )

    def _choose_halo(self, probe: Probe) -> HaloChoice | None:
        """Try overlaps on the part of the image with most in it; None if it holds no object."""
        if self.planned.spec.grid.n_tiles == 1 and not self.is_free:
            return None
        best = max(probe.full, key=lambda piece: piece.n_objects)
        if best.n_objects == 0:
            return None
        a_voxel = max(best.seconds, 1e-9) / best.n_voxels
        in_time = self.max_seconds / 2 / a_voxel / (2 * len(HALOS))
        n_voxels = int(min(PART_VOXELS, in_time, probe.largest.n_voxels))
        centre = tuple([(a + b) // 2 for a, b in zip(best.box.start, best.box.stop, strict=True)])
        extents = [1 if a in self.apart else n for a, n in enumerate(self.source.shape)]
        shape = halve_until(tuple(extents), max(n_voxels, 2**14))
        box = Box.around(centre, shape, Box.whole(self.source.shape))
        is_cut = _cut_axes(self.source, self.planned.spec.grid, box, is_free=self.is_free)
        if not any(is_cut):
            return None
        part = CutPart(self.source, self.segmenter, box, self.planned.spec, is_cut)
        given = self.planned.spec.grid.halo if self.asked.overlap is not None else None
        if given is not None:
            axes = zip(given, box.shape, is_cut, strict=True)
            trial = part.try_halo(tuple([min(h, n // 4) if c else 0 for h, n, c in axes]))
            return HaloChoice(halo=given, box=box, trials=(trial,), n_cut=part.n_cut())
        scale = self.source.calibration.scale
        return choose_halo(part, scale if all(s > 0 for s in scale) else None)


def _cut_axes(source: ImageSource, grid: TileGrid, box: Box, *, is_free: bool) -> tuple[bool, ...]:
    """Return the axes along which tiles meet, and the part is long enough to be cut."""
    axes = zip(source.calibration.axes, grid.dims, grid.tile_shape, box.shape, strict=True)
    return tuple(
        [axis.is_space and (is_free or n > 1) and t > 1 and size >= 16 for axis, n, t, size in axes]
    )


def _some_tiles(grid: TileGrid) -> list[Any]:
    n = min(grid.n_tiles, LOOKED_AT)
    return [grid[(2 * i + 1) * grid.n_tiles // (2 * n)] for i in range(n)]


def _proposal(
    plan: RunPlan, workers: Workers, probe: Probe | None, halo: HaloChoice | None, reason: str
) -> RunProposal:
    """Return what a plan costs."""
    if workers.are_threads:
        memory, n_cores = Memory.of_this_process(), available_cores()
        plan, n_calls = fitted(plan, workers.executor.n_workers, memory, n_cores)
        need, available = memory_need(plan, n_calls, n_cores), memory.available_bytes
    else:
        place = workers.place
        need, available = memory_need(plan, place.n_calls, place.n_regions), place.memory_bytes
    n_occupied, is_counted = _count_occupied(plan)
    return RunProposal(
        plan=plan,
        workers=workers,
        probe=probe,
        halo=halo,
        reason=reason,
        n_occupied=n_occupied,
        is_counted=is_counted,
        projected_bytes=need.projected_bytes,
        available_bytes=available,
    )


def _count_occupied(plan: RunPlan) -> tuple[int, bool]:
    """Return how many tiles will be segmented, and whether they were counted or estimated."""
    grid = plan.spec.grid
    if not plan.spec.skip_empty:
        return grid.n_tiles, True
    emptiness = Emptiness.of(plan.source)
    if emptiness is None:
        threshold = occupancy.sample_threshold(plan)
    else:
        threshold = emptiness.choose_threshold(plan.spec.empty_threshold)
    reader = TileReader(plan.source, grid, 0, None if emptiness is None else emptiness.maxima)
    is_known = emptiness is not None and emptiness.maxima.is_complete
    tiles = list(grid) if is_known else _some_tiles(grid)
    n_found = sum(reader.is_signal(tile, threshold) for tile in tiles)
    return round(n_found * grid.n_tiles / len(tiles)), len(tiles) == grid.n_tiles
