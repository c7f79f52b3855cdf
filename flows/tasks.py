"""One Prefect task per stage of a run, thin over `patchworks.pipeline`.

What passes between tasks is the place of the stage, spans of indices and small records, never
voxels. A task may be run again at any time: tiles and regions that are done are left alone.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Generic, TypeVar

from prefect import task

from flows.batches import MAX_FAILURES, Batch
from flows.caching import CACHED, UNCACHED, StageOf
from flows.retries import retrying
from patchworks import joining, occupancy, pipeline
from patchworks.conversion import pyramid, regions
from patchworks.conversion.plan import ConversionPlan
from patchworks.conversion.pyramid import PyramidAddition
from patchworks.errors import PatchworksError, portable
from patchworks.lazy import make_readable
from patchworks.pipeline import RunPlan
from patchworks.plugins.overview import overview_of
from patchworks.run_plan import open_stage
from patchworks.segmenters.reach import warn_if_short
from patchworks.steps.merge import Relabeling

RETRYING = retrying(3, 2.0)
"""What a flow's own options replace."""

Held = TypeVar("Held")


class Opaque(Generic[Held]):
    """Keeps Prefect from walking through a plan in search of futures."""

    def __init__(self, held: Held) -> None:
        self.held = held


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


@task(
    name="set up conversion",
    task_run_name="set up conversion",
    tags=["convert"],
    **RETRYING,
    **UNCACHED,
)
def set_up_conversion(opaque: Opaque[ConversionPlan]) -> None:
    """Make the empty levels, or go on with those of an interrupted try."""
    with portably():
        regions.begin(opaque.held)


@task(
    name="convert regions",
    task_run_name="convert level {level}, regions {batch.span}",
    tags=["convert"],
    **RETRYING,
    **CACHED,
)
def convert_regions(stage: StageOf, level: int, batch: Batch) -> int:
    """Write a batch of regions of a level; returns how many bytes."""
    with portably():
        plan = regions.load_plan(stage.root, stage.attempt)
        return regions.write_regions(plan, level, batch.indices, max_failures=MAX_FAILURES)


@task(
    name="finish conversion",
    task_run_name="finish conversion, put image in place",
    tags=["convert"],
    **RETRYING,
    **UNCACHED,
)
def finish_conversion(stage: StageOf) -> None:
    """Write the image's metadata and put it in its place."""
    with portably():
        regions.publish(regions.load_plan(stage.root, stage.attempt))


@task(
    name="set up levels",
    task_run_name="set up levels",
    tags=["pyramid"],
    **RETRYING,
    **UNCACHED,
)
def set_up_levels(opaque: Opaque[PyramidAddition]) -> None:
    """Make the empty levels, or go on with those of an interrupted try."""
    with portably():
        pyramid.begin_addition(opaque.held)


@task(
    name="add level",
    task_run_name="add level {level}, regions {batch.span}",
    tags=["pyramid"],
    **RETRYING,
    **CACHED,
)
def add_level(stage: StageOf, level: int, batch: Batch) -> int:
    """Write a batch of regions of a level from the level above."""
    with portably():
        return pyramid.add_regions(pyramid.load_addition(stage.root), level, batch.indices)


@task(
    name="finish levels",
    task_run_name="finish levels, write metadata",
    tags=["pyramid"],
    **RETRYING,
    **UNCACHED,
)
def finish_levels(stage: StageOf) -> None:
    """Write the image's metadata: now it has a pyramid."""
    with portably():
        pyramid.finish_addition(pyramid.load_addition(stage.root))


@task(
    name="set up stage",
    task_run_name="set up stage",
    tags=["stage"],
    **RETRYING,
    **UNCACHED,
)
def set_up_stage(opaque: Opaque[RunPlan]) -> StageOf:
    """Make the stage, put the image where every worker can read it, prepare the function."""
    plan = opaque.held
    with portably():
        stage = open_stage(plan)
        plan = replace(make_readable(plan, by_other_processes=True), by_index=True)
        warn_if_short(plan.segmenter, plan.spec.grid)
        plan = pipeline.with_segmenter(
            plan, pipeline.prepare_segmenter(plan.segmenter, plan.source)
        )
        pipeline.save_plan(plan)
    return StageOf.of(stage.root, plan.tiles_fingerprint, plan.segmenter_digest, stage.id)


@task(
    name="choose threshold of empty tiles",
    task_run_name="choose threshold of empty tiles",
    tags=["estimate"],
    **RETRYING,
    **CACHED,
)
def choose_threshold(stage: StageOf) -> float:
    """Return the intensity above which a voxel is signal."""
    with portably():
        return occupancy.sample_threshold(pipeline.load_plan(stage.root))


@task(
    name="map maxima",
    task_run_name="map maxima, parts {batch.span}",
    tags=["estimate"],
    **RETRYING,
    **CACHED,
)
def map_maxima(stage: StageOf, batch: Batch) -> int:
    """Read parts of the image for the largest voxel of each small box; returns how many voxels."""
    with portably():
        return occupancy.map_maxima(pipeline.load_plan(stage.root), batch.indices)


@task(
    name="estimate empty tiles",
    task_run_name="estimate empty tiles {batch.span}",
    tags=["estimate"],
    **RETRYING,
    **CACHED,
)
def estimate_empty_tiles(stage: StageOf, threshold: float, batch: Batch) -> list[bool]:
    """Return for each tile whether it reads any voxel above the threshold."""
    with portably():
        plan = pipeline.load_plan(stage.root)
        return [bool(x) for _, x in occupancy.find_occupied(plan, threshold, batch.indices)]


@task(
    name="segment tiles",
    task_run_name="segment tiles {batch.span}",
    tags=["segment"],
    **RETRYING,
    **CACHED,
)
def segment_tiles(stage: StageOf, batch: Batch) -> dict[str, Any]:
    """Read, segment and stage a batch of tiles; returns how many came to what, seconds and bytes.

    `last_s` are those of the last tile: the first of a process may have loaded a model.
    """
    with portably():
        plan = pipeline.load_plan(stage.root)
        outcomes = pipeline.segment_tiles(plan, batch.indices, max_failures=MAX_FAILURES)
    found: dict[str, Any] = {"segmented": 0, "empty": 0, "reused": 0, "last_s": None}
    found |= {"n_bytes_decoded": 0, "n_bytes_needed": 0, "function_s": 0.0, "n_halvings": 0}
    for outcome in outcomes:
        found[outcome.status] += 1
        found["n_bytes_decoded"] += outcome.n_bytes
        found["n_bytes_needed"] += outcome.n_bytes_needed
        found["function_s"] += outcome.function_s
        found["n_halvings"] += outcome.n_halvings
        if outcome.status == "segmented":
            found["last_s"] = outcome.seconds
    return found


def joined_name(plan: RunPlan, batch: Batch) -> str:
    """Return under which name the stage keeps what a batch of tiles said."""
    return f"{batch.span}-{plan.spec.judging}"


@task(
    name="judge seams",
    task_run_name="judge seams of tiles {batch.span}",
    tags=["merge"],
    **RETRYING,
    **CACHED,
)
def judge_seams(stage: StageOf, batch: Batch) -> int:
    """Judge the seams of a batch of tiles; returns how many labels are joined there."""
    with portably():
        plan = pipeline.load_plan(stage.root)
        joined = pipeline.join_tiles(plan, batch.indices)
        joining.save_joined(plan.stage, joined_name(plan, batch), joined)
        return len(joined.joins)


@task(
    name="stitch",
    task_run_name="stitch",
    tags=["merge"],
    **RETRYING,
    **UNCACHED,
)
def stitch(stage: StageOf, batches: list[Batch]) -> int:
    """Give the objects their numbers, and return how many there are.

    The seams of a single batch are judged here, too.
    """
    with portably():
        plan = pipeline.load_plan(stage.root)
        if len(batches) == 1:
            parts = [pipeline.join_tiles(plan, batches[0].indices)]
        else:
            names = [joined_name(plan, batch) for batch in batches]
            found = [joining.load_joined(plan.stage, name) for name in names]
            parts = [part for part in found if part is not None]
        return pipeline.relabel(plan, parts).n_objects


@task(
    name="merge",
    task_run_name="merge regions {batch.span}",
    tags=["merge"],
    **RETRYING,
    **CACHED,
)
def merge_regions(stage: StageOf, batch: Batch) -> int:
    """Write the merged labels of a batch of regions."""
    with portably():
        return pipeline.finish_regions(pipeline.load_plan(stage.root), batch.indices)


@task(
    name="build pyramid",
    task_run_name="build level {level}, {batch.span}",
    tags=["pyramid"],
    **RETRYING,
    **CACHED,
)
def build_level(stage: StageOf, level: int, batch: Batch) -> int:
    """Write regions of a level from the level above."""
    with portably():
        plan = pipeline.load_plan(stage.root)
        image = plan.label_image(Relabeling.load(plan.stage))
        return pipeline.build_level(image, level, batch.indices)


@task(
    name="finish pyramid",
    task_run_name="finish pyramid, put labels in place",
    tags=["pyramid"],
    **RETRYING,
    **UNCACHED,
)
def finish_pyramid(stage: StageOf) -> None:
    """Write the label image's metadata, put it in its place and register it."""
    with portably():
        plan = pipeline.load_plan(stage.root)
        pipeline.publish(plan, Relabeling.load(plan.stage), version("patchworks"))


@task(
    name="draw overview",
    task_run_name="draw overview",
    tags=["overview"],
    **UNCACHED,
)
def draw_overview(stage: StageOf, labels: str, max_bytes: int) -> str:
    """Draw outlines of the objects over the image, small enough for a page; base64."""
    with portably():
        plan = pipeline.load_plan(stage.root)
        picture = overview_of(plan.source, labels, max_bytes=max_bytes)
    return base64.b64encode(picture).decode()
