"""One Prefect task per stage of a run, thin over `patchworks.pipeline`.

What passes between tasks is the path of the stage, indices and small records, never voxels. A task
may be run again at any time: tiles and regions that are done are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Generic, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from patchworks import pipeline
from patchworks.conversion import regions
from patchworks.conversion.plan import ConversionPlan
from patchworks.errors import PatchworksError, portable
from patchworks.lazy import make_readable
from patchworks.pipeline import RunPlan, TileOutcome
from patchworks.run_plan import open_stage
from patchworks.steps.merge import Relabeling

UNCACHED: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
"""The stage says what is done; a Prefect cache would be a second truth."""


@dataclass(frozen=True)
class Batch:
    """The tiles or regions of one task run."""

    indices: tuple[int, ...]

    @property
    def span(self) -> str:
        """The first and the last of them, for the task run's name."""
        first, last = self.indices[0], self.indices[-1]
        return f"{first}-{last}" if last > first else f"{first}"


Held = TypeVar("Held")


class Opaque(Generic[Held]):
    """Keeps Prefect from walking through a plan in search of futures."""

    def __init__(self, held: Held) -> None:
        self.held = held


@task(name="set up conversion", **UNCACHED)
def set_up_conversion(opaque: Opaque[ConversionPlan]) -> tuple[str, str]:
    """Make the empty levels, or go on with those of an interrupted try; returns the stage."""
    plan = opaque.held
    with portably():
        regions.begin(plan)
    return plan.stage.root.url, plan.attempt


@task(
    name="convert regions",
    task_run_name="convert level {level}, regions {batch.span}",
    **UNCACHED,
)
def convert_regions(stage: tuple[str, str], level: int, batch: Batch) -> int:
    """Write a batch of regions of a level; returns how many bytes."""
    with portably():
        return regions.write_regions(regions.load_plan(*stage), level, batch.indices)


@task(name="finish conversion", task_run_name="finish conversion, put image in place", **UNCACHED)
def finish_conversion(stage: tuple[str, str]) -> None:
    """Write the image's metadata and put it in its place."""
    with portably():
        regions.publish(regions.load_plan(*stage))


@contextmanager
def portably() -> Iterator[None]:
    """Let an error of patchworks' own leave without its causes, which need not be picklable."""
    try:
        yield
    except PatchworksError as error:
        failure = portable(error)
    else:
        return
    raise failure


@task(name="set up stage", **UNCACHED)
def set_up_stage(opaque: Opaque[RunPlan]) -> str:
    """Make the stage, put the image where every worker can read it, prepare the function."""
    plan = opaque.held
    open_stage(plan)
    plan = make_readable(plan, by_other_processes=True)
    plan = pipeline.with_segmenter(plan, pipeline.prepare_segmenter(plan.segmenter, plan.source))
    pipeline.save_plan(plan)
    return str(plan.stage.root)


@task(name="choose threshold of empty tiles", **UNCACHED)
def choose_threshold(stage: str) -> float:
    """Return the intensity above which a voxel is signal."""
    return pipeline.sample_threshold(pipeline.load_plan(stage))


@task(
    name="estimate empty tiles",
    task_run_name="estimate empty tiles {batch.span}",
    **UNCACHED,
)
def estimate_empty_tiles(stage: str, threshold: float, batch: Batch) -> list[tuple[int, bool]]:
    """Return for each tile whether it reads any voxel above the threshold."""
    return pipeline.find_occupied(pipeline.load_plan(stage), threshold, batch.indices)


@task(name="segment tiles", task_run_name="segment tiles {batch.span}", **UNCACHED)
def segment_tiles(stage: str, batch: Batch) -> list[TileOutcome]:
    """Read, segment and stage a batch of tiles."""
    with portably():
        return pipeline.segment_tiles(pipeline.load_plan(stage), batch.indices)


@task(name="stitch", **UNCACHED)
def stitch(stage: str) -> int:
    """Judge every seam, number the objects, and return how many there are."""
    plan = pipeline.load_plan(stage)
    joins = pipeline.join_tiles(plan, range(plan.spec.grid.n_tiles))
    return pipeline.relabel(plan, [joins]).n_objects


@task(name="merge", task_run_name="merge regions {batch.span}", **UNCACHED)
def merge_regions(stage: str, batch: Batch) -> int:
    """Write the merged labels of a batch of regions."""
    return pipeline.finish_regions(pipeline.load_plan(stage), batch.indices)


@task(
    name="build pyramid",
    task_run_name="build level {level}, {batch.span}",
    **UNCACHED,
)
def build_level(stage: str, level: int, batch: Batch) -> int:
    """Write regions of a level from the level above."""
    plan = pipeline.load_plan(stage)
    image = plan.label_image(Relabeling.load(plan.stage))
    return pipeline.build_level(image, level, batch.indices)


@task(name="finish pyramid", task_run_name="finish pyramid, put labels in place", **UNCACHED)
def finish_pyramid(stage: str) -> None:
    """Write the label image's metadata, put it in its place and register it."""
    plan = pipeline.load_plan(stage)
    pipeline.publish(plan, Relabeling.load(plan.stage), version("patchworks"))
