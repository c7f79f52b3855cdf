"""What an engine runs: the steps over batches of tiles. The library and the flows share it all.

Every function takes a plan and indices and returns small records; voxels pass through storage.
Each may be run again at any time: what is done is left alone, and what is written is the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import cloudpickle
import numpy as np

from patchworks import emptiness
from patchworks.errors import PatchworksError, Patience
from patchworks.execution.machine import Memory, available_cores, limit_pools, return_free_memory
from patchworks.execution.overlap import Recall
from patchworks.function_need import FunctionNeed
from patchworks.halving import VoxelLimit
from patchworks.io.image_source import ImageSource
from patchworks.io.label_image import LabelImage, LabelTarget
from patchworks.io.stage import Stage
from patchworks.io.tile_reader import KEPT_BYTES, TileReader
from patchworks.joining import Joined, join_records, link
from patchworks.run import RunSpec
from patchworks.segmenters import Segmenter, StoredSegmenter, loaded, name_of, pickled
from patchworks.steps import levels
from patchworks.steps.merge import Relabeling, build_relabeling, gather_region
from patchworks.steps.pyramid import pool_labels
from patchworks.tile_stream import TileOutcome, TileWork

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

OCCUPANCY = "occupancy"
THRESHOLD = "threshold"
PLAN_FILE = "plan.pickle"
FUNCTION_FILE = "function.pickle"
MOST_PLANS = 4
"""Plans that a process keeps: of runs that go on side by side."""

RETURN_EVERY_S = 3.0
"""Seconds of segmenting after which free memory is given back: it takes some milliseconds."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run, ready to be worked on by any process that sees its stage.

    Parameters
    ----------
    spec : RunSpec
        Tiles, seams, levels.
    source : ImageSource
        The image.
    segmenter : callable
        The function, prepared; a `StoredSegmenter` in a plan that was read from its stage.
    stage : Stage
        Where tiles are staged.
    target : LabelTarget
        Where the label image goes.
    tiles_fingerprint, fingerprint : str
        What decides the stage, and the label image.
    segmenter_name, segmenter_digest : str
        What messages and metadata call the function, and what stands for it.
    may_replace : bool
        Whether a label image that another run made may be replaced.
    kept_bytes : int
        Decoded bytes that each process keeps for tiles that share them.
    n_ahead : int, optional
        Tiles read ahead in each process; by default it depends on the number of workers.
    need : FunctionNeed
        What the function takes of memory: assumed, unless a probe has measured it.
    by_index : bool
        Whether each process works on tiles in the order of their indices, as a flow's task runs do,
        not in the order in which the least is kept.
    """

    spec: RunSpec
    source: ImageSource
    segmenter: Segmenter
    stage: Stage
    target: LabelTarget
    tiles_fingerprint: str
    fingerprint: str
    segmenter_name: str
    segmenter_digest: str
    may_replace: bool = False
    kept_bytes: int = KEPT_BYTES
    n_ahead: int | None = None
    need: FunctionNeed = field(default_factory=FunctionNeed)
    by_index: bool = False

    @cached_property
    def reader(self) -> TileReader:
        """What reads the tiles of the grid, in this process."""
        share = Memory.of_this_process().limit_bytes // 8  # of a small worker
        known = emptiness.staged_map(self.stage, self.source) if self.spec.skip_empty else None
        kept_bytes = min(self.kept_bytes, share)
        by_index, n_cores = self.by_index, available_cores()
        return TileReader(
            self.source, self.spec.grid, kept_bytes, known, by_index=by_index, n_cores=n_cores
        )

    @cached_property
    def limit(self) -> VoxelLimit:
        """What this process knows of how many voxels the function has memory for."""
        return VoxelLimit()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("reader", "limit")}

    def check_target(self) -> None:
        """Raise TargetExistsError if another run's label image is there and may not be replaced.

        Once more when the lock is held, and when all is written: another run may have ended since
        this one was planned, or another program have put something there.
        """
        self.target.check(self.fingerprint, overwrite=self.may_replace)

    def label_image(self, relabeling: Relabeling) -> LabelImage:
        """Return the label image that the run writes."""
        return LabelImage(self.target, self.spec.pyramid, relabeling.dtype, self.fingerprint)


def save_plan(plan: RunPlan) -> None:
    """Write the plan and its function to its stage, for workers that are told only the stage."""
    function = plan.stage.root / FUNCTION_FILE
    plan.stage.write(FUNCTION_FILE, pickled(loaded(plan.segmenter)))
    plan = replace(plan, segmenter=StoredSegmenter(str(function)))
    plan.stage.write(PLAN_FILE, cloudpickle.dumps(plan))


@dataclass(frozen=True)
class FromStage(Generic[Result]):
    """A function of a plan and a batch that goes to a worker with the path of the plan's stage.

    Not bound to the plan: what is sent with a task is made anew for every task, a model too, and
    the scheduler of a Dask cluster makes it as well.

    Parameters
    ----------
    fn : callable
        Of a plan and indices; one of this module's.
    stage : str
        Where the plan was saved.
    """

    fn: Callable[[RunPlan, Sequence[int]], Result]
    stage: str

    def __call__(self, batch: Sequence[int]) -> Result:
        """Call the function in this process."""
        return self.fn(load_plan(self.stage), batch)


def load_plan(stage: str) -> RunPlan:
    """Return the plan of a stage: read once per process, so that a model is loaded once.

    Plans of runs that have ended are let go of, and their models with them.
    """
    path = Path(stage) / PLAN_FILE
    written_ns = path.stat().st_mtime_ns
    with _READING:
        kept = _PLANS.get(path)
        if kept is not None and kept[0] == written_ns:
            return kept[1]
        del kept
        for other in [p for p in _PLANS if p == path or not p.exists()]:
            del _PLANS[other]
        while len(_PLANS) >= MOST_PLANS:
            del _PLANS[next(iter(_PLANS))]
        plan: RunPlan = cloudpickle.loads(path.read_bytes())
        _PLANS[path] = written_ns, plan
        return plan


_PLANS: dict[Path, tuple[int, RunPlan]] = {}
_READING = threading.Lock()


def prepare_segmenter(segmenter: Segmenter, source: ImageSource) -> Segmenter:
    """Return the segmenter with what it wants to know of the whole image, computed once."""
    prepare = getattr(segmenter, "prepare", None)
    if prepare is None:
        return segmenter
    prepared: Segmenter = prepare(source.sample())
    logger.info("%s prepared: %s", name_of(segmenter), prepared)
    return prepared


def segment_tiles(
    plan: RunPlan, tiles: Sequence[int], *, max_failures: int = 1
) -> list[TileOutcome]:
    """Read, segment and stage tiles, one function call at a time; done ones are left alone.

    Parameters
    ----------
    plan : RunPlan
        The run.
    tiles : sequence of int
        Indices.
    max_failures : int
        How many tiles may fail before the rest is left: one bad tile need not keep the others from
        being done.

    Raises
    ------
    ImageReadError, SegmenterError, StageError
        Of one of the tiles that failed, one that may heal if there is any; all are in the log.
    """
    return list(segment_stream(plan, tiles, max_failures=max_failures))


def segment_stream(
    plan: RunPlan,
    tiles: Iterable[int],
    *,
    n_workers: int = 1,
    max_failures: int = 1,
    recall: Recall[Sequence[int]] | None = None,
) -> Iterator[TileOutcome]:
    """Read, segment and stage tiles in this process; yield what becomes of each.

    While tiles are segmented the next are read and the last are staged. Tiny tiles go through in
    groups: a thread that hands over to another costs more than they do.

    Parameters
    ----------
    plan, tiles, max_failures
        As in `segment_tiles`.
    n_workers : int
        Function calls at a time; one is made in the calling thread.
    recall : Recall, optional
        By which tiles that are not segmented yet are asked back, in groups.
    """
    limit_pools()
    occupied = plan.stage.read_array(OCCUPANCY) if plan.spec.skip_empty else None
    work = TileWork(
        _with_known_threshold(plan),
        plan.reader,
        loaded(plan.segmenter),
        plan.stage,
        occupied,
        plan.limit,
    )
    patience = Patience(max_failures)
    returned_s = time.monotonic()
    for found in work.outcomes(tiles, n_workers, plan.n_ahead, recall):
        with patience.part():
            if isinstance(found, PatchworksError):
                raise found
            yield found
        if time.monotonic() - returned_s > RETURN_EVERY_S:
            return_free_memory()
            returned_s = time.monotonic()
    patience.end()


def join_tiles(plan: RunPlan, tiles: Sequence[int]) -> Joined:
    """Return what tiles hold, and their joins with the tiles after them."""
    return join_records(plan.stage, plan.spec.seams, tiles, plan.spec.linked)


def relabel(plan: RunPlan, joined: Sequence[Joined]) -> Relabeling:
    """Return the relabeling of the run, and write it to the stage for all workers.

    Parameters
    ----------
    plan : RunPlan
        The run.
    joined : sequence of Joined
        Of all tiles, in any order.
    """
    n_labels, n_nodes = np.zeros((2, plan.spec.grid.n_tiles), np.int64)
    for part in joined:
        n_labels[part.tiles] = part.n_labels
        n_nodes[part.tiles] = part.n_nodes
    joins = [part.joins for part in joined]
    relabeling = build_relabeling(n_labels, n_nodes, joins)
    for axis in plan.spec.linked:  # whole objects, so after all that makes them whole
        joins.append(link(relabeling, joined, axis, plan.spec.link_iou))
        relabeling = build_relabeling(n_labels, n_nodes, joins)
    relabeling.save(plan.stage)
    return relabeling


def begin_label_image(plan: RunPlan, relabeling: Relabeling) -> list[int]:
    """Make the empty label image and return the regions that are still to be written."""
    image, state = plan.label_image(relabeling), relabeling.digest()
    pyramid = plan.spec.pyramid
    if not (image.is_begun() and plan.stage.regions_belong_to(state)):
        plan.check_target()  # in an object store what is there goes now
        image.create()
        plan.stage.begin_regions(state)
        return list(range(pyramid.regions().n_tiles))
    finished = plan.stage.finished_regions()
    todo = [i for i in range(pyramid.regions().n_tiles) if i not in finished]
    image.store.sweep()
    return todo


class RegionFinisher:
    """What writes regions of the label image that was begun, one after the other."""

    def __init__(self, plan: RunPlan) -> None:
        self.relabeling = Relabeling.load(plan.stage)
        self.writer = levels.RegionWriter(plan.label_image(self.relabeling), pool_labels)


def finish_regions(
    plan: RunPlan, regions: Sequence[int], spare: list[RegionFinisher] | None = None
) -> int:
    """Write regions of level 0, and of every level whose cells lie inside them.

    Those that are marked as written are left alone.

    Parameters
    ----------
    plan : RunPlan
        The run.
    regions : sequence of int
        Indices.
    spare : list, optional
        What has written other regions of this label image in this process, and will write more: its
        memory is used again.
    """
    try:
        finisher = (spare or []).pop()
    except IndexError:
        finisher = RegionFinisher(plan)
    grid = plan.spec.pyramid.regions()
    for index in regions:
        if plan.stage.has_region(index):
            continue
        region = grid[index].core
        labels = gather_region(plan.stage, plan.spec.grid, finisher.relabeling, region)
        if labels is not None:
            finisher.writer.write(region, labels.read, labels.labelled)
        plan.stage.mark_region(index)
    if spare is not None:
        spare.append(finisher)
    return len(regions)


def build_level(image: LabelImage, level: int, regions: Sequence[int]) -> int:
    """Write regions of a level that is made from the level above."""
    return levels.build_level(image, level, regions, pool_labels)


def publish(plan: RunPlan, relabeling: Relabeling, version: str) -> None:
    """Put the finished label image in its place, saying how it was made."""
    made = provenance(plan, relabeling.n_objects, version)
    plan.label_image(relabeling).publish(made, may_replace=plan.may_replace)


def provenance(plan: RunPlan, n_objects: int, version: str) -> dict[str, Any]:
    """Return what a label image says of its run; the same run always says the same."""
    grid, spec = plan.spec.grid, plan.spec
    return {
        "fingerprint": plan.fingerprint,
        "version": version,
        "n_objects": n_objects,
        "segmenter": plan.segmenter_name,
        "n_tiles": grid.n_tiles,
        "tile_shape": list(grid.tile_shape),
        "overlap": list(grid.halo),
        "stitch": spec.stitch,
        "connectivity": spec.connectivity,
        **({"linked_axes": list(spec.linked), "link_iou": spec.link_iou} if spec.linked else {}),
    }


def with_source(plan: RunPlan, source: ImageSource) -> RunPlan:
    """Return the plan with the image read from elsewhere, such as a copy in the stage."""
    return replace(plan, source=source)


def with_threshold(plan: RunPlan, threshold: float) -> RunPlan:
    """Return the plan with the intensity above which a voxel is signal."""
    return replace(plan, spec=replace(plan.spec, empty_threshold=threshold))


def _with_known_threshold(plan: RunPlan) -> RunSpec:
    """Return the tiles with the threshold that was found beside the occupancy, if one was."""
    found = plan.stage.read_array(THRESHOLD) if plan.spec.skip_empty else None
    return plan.spec if found is None else replace(plan.spec, empty_threshold=float(found))


def with_segmenter(plan: RunPlan, segmenter: Segmenter) -> RunPlan:
    """Return the plan with the function prepared for its image."""
    return replace(plan, segmenter=segmenter)
