"""`segment_image`: the way from an image to its label image, as a flow on worker processes.

::

    convert ─► set up stage ─► estimate empty tiles ─► segment tiles ─► stitch ─► merge ─► pyramid
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import flow, get_run_logger
from prefect.context import FlowRunContext

from flows import tasks
from flows.batches import batches_of, results_of
from flows.convert_image import carry_out_conversion
from flows.runners import local_dask_runner, send_library_logs
from flows.server import prefect_server
from patchworks import pipeline
from patchworks.conversion.collection import plan_images
from patchworks.conversion.plan import ConversionOptions, ConversionPlan, made_from
from patchworks.errors import InputError, PatchworksError
from patchworks.geometry.tile_shape import TileShapeRule
from patchworks.io.location import Location
from patchworks.io.source import kind_of
from patchworks.pipeline import RunPlan
from patchworks.plan import PathLike, RunOptions, check_reachable, plan_run
from patchworks.readers.registry import is_zarr, open_reader
from patchworks.report import RunReport
from patchworks.run_plan import is_finished, settle_finished
from patchworks.segmenters import Segmenter, name_of, resolve_segmenter
from patchworks.steps.merge import Relabeling
from patchworks.temporary import temporary_store

SegmenterSpec = Segmenter | str | Mapping[str, Any]


def segment_image(
    image: Any,
    *,
    segmenter: SegmenterSpec,
    tile_shape: TileShapeRule | None = None,
    overlap: int | Sequence[int] | None = None,
    channel: int | None = 0,
    level: int = 0,
    max_workers: int | None = None,
    write_to: PathLike | None = None,
    output_component: str = "labels",
    pyramid_levels: int | None = None,
    pyramid_downscale: int = 2,
    skip_empty: bool = False,
    empty_threshold: float | None = None,
    stage_dir: PathLike | None = None,
    keep_stage: bool = False,
    stitch: str = "auto",
    connectivity: int = 1,
    resume: bool = True,
    overwrite: bool = False,
    convert_to: PathLike | None = None,
) -> RunReport:
    """Segment an image as a Prefect flow on worker processes of this machine.

    Writes the same bytes as `patchworks.tile_process`. Uses the Prefect server that is configured,
    or starts one on loopback that ends with the run.

    Parameters
    ----------
    image : path, URL, zarr.Array, dask.array.Array or numpy.ndarray
        As in `patchworks.tile_process`; a microscope file (TIFF, Imaris, CZI, ...) is converted
        first.
    segmenter : str, mapping or callable
        ``"threshold"``, ``{"name": "threshold", "value": 400}``, ``"package.module:function"``,
        ``{"import": "package.module:factory", "kwargs": {...}}``, or a function.
    max_workers : int, optional
        Worker processes; one per core by default.
    convert_to : path, optional
        Where the OME-Zarr image goes if `image` is a file; by default beside it.
    tile_shape, overlap, channel, level, write_to, output_component, pyramid_levels, \
pyramid_downscale, skip_empty, empty_threshold, stage_dir, keep_stage, stitch, connectivity, \
resume, overwrite
        As in `patchworks.tile_process`.

    Returns
    -------
    RunReport
        Where the labels are, how many objects, what was done, seconds per step.

    Raises
    ------
    InputError, TargetExistsError, TargetNotWritableError
        Before any work, and before a server or worker is started.
    SegmenterError
        If the function fails on a tile; the tiles that are done are kept, and the same call goes
        on from there.
    """
    function = resolve_segmenter(segmenter)
    stored = write_to is not None or kind_of(image) == "path"
    options = RunOptions(
        tile_shape=tile_shape,
        overlap=overlap,
        channel=channel,
        level=level,
        write_to=write_to if stored else temporary_store(),
        is_temporary=not stored,
        output_component=output_component,
        pyramid_levels=pyramid_levels,
        pyramid_downscale=pyramid_downscale,
        skip_empty=skip_empty,
        empty_threshold=empty_threshold,
        stage_dir=stage_dir,
        stitch=stitch,
        connectivity=connectivity,
        overwrite=overwrite,
    )
    store, conversion = _conversion_of(image, convert_to)
    plan = None if conversion else plan_run(store, function, options)
    if plan is not None:
        check_reachable(plan)
        if resume and is_finished(plan):
            return settle_finished(plan, keep_stage=keep_stage)
    with prefect_server():
        runner = local_dask_runner(n_workers=max_workers)
        on_workers = segment_image_flow.with_options(task_runner=runner)  # type: ignore[arg-type]
        report: RunReport = on_workers(
            image=plan.source.name if plan is not None else os.fspath(image),
            segmenter=name_of(segmenter) if callable(segmenter) else segmenter,
            convert_to=None if conversion is None else str(conversion.place),
            run=_Run(function, options, plan, conversion, keep_stage=keep_stage, resume=resume),
        )
    return report


class _Run:
    """What the flow works on, beside what it shows as its parameters."""

    def __init__(
        self,
        function: Segmenter,
        options: RunOptions,
        plan: RunPlan | None,
        conversion: ConversionPlan | None,
        *,
        keep_stage: bool,
        resume: bool,
    ) -> None:
        self.function = function
        self.options = options
        self.plan = plan
        self.conversion = conversion
        self.keep_stage = keep_stage
        self.resume = resume


def _conversion_of(image: Any, convert_to: PathLike | None) -> tuple[Any, ConversionPlan | None]:
    """Return the image to segment, and its conversion if it is a file that is not converted."""
    target = converted_path(image, convert_to) if kind_of(image) == "path" else None
    if target is None:
        return image, None
    options = ConversionOptions()
    reader = open_reader(image)
    if made_from(Location.parse(target)).get("source") == reader.identity():
        reader.close()
        return target, None
    return target, plan_images(image, target, options).parts[0]


def converted_path(image: PathLike, convert_to: PathLike | None = None) -> PathLike | None:
    """Return where a file's OME-Zarr image goes, or None if `image` is a store already."""
    location = Location.parse(image, "image")
    if not location.is_local or is_zarr(location):
        return None
    if convert_to is not None:
        return convert_to
    path = location.path
    if set(path.name) & set("*?["):
        raise InputError(f"{path}: a pattern; say where the OME-Zarr image goes with convert_to=")
    name = path.name.removesuffix(path.suffix) if not path.is_dir() else path.name
    return path.with_name(f"{name.removesuffix('.ome')}.ome.zarr")


@flow(
    name="segment image",
    flow_run_name="segment {image}",
    validate_parameters=False,
    persist_result=False,
)
def segment_image_flow(
    image: str,  # noqa: ARG001
    segmenter: str | Mapping[str, Any],  # noqa: ARG001 - shown as what the run was asked for
    run: _Run,
    convert_to: str | None = None,  # noqa: ARG001
) -> RunReport:
    """Convert, set up the stage, find empty tiles, segment, stitch, merge, build the pyramid."""
    logger = get_run_logger()
    send_library_logs("INFO")
    start = RunReport("", 0)
    with start.timed("start workers"):
        _ = FlowRunContext.get().task_runner.client  # type: ignore[union-attr]
    plan = run.plan
    if run.conversion is not None:
        with start.timed("convert"):
            logger.info("%s", carry_out_conversion(run.conversion))
        plan = plan_run(str(run.conversion.place), run.function, run.options)
        if run.resume and is_finished(plan):
            return settle_finished(plan, keep_stage=run.keep_stage)
    if plan is None:
        raise PatchworksError("the flow was given neither a plan nor a file to convert")
    report = RunReport(str(plan.target.location), plan.spec.grid.n_tiles, seconds=start.seconds)
    if not run.resume:
        plan.stage.remove()
    try:
        carry_out(plan, report)
    except PatchworksError as error:
        logger.error("%s", error)
        error.add_note(
            f"{len(plan.stage.done())} of {report.n_tiles} tiles are done and kept in "
            f"{plan.stage.root}; the same call goes on from there"
        )
        raise
    if not run.keep_stage:
        plan.stage.remove()
    logger.info("%s", report)
    return report


def carry_out(plan: RunPlan, report: RunReport) -> None:
    """Submit the tasks of every step in order, and count what they did into `report`."""
    with report.timed("set up stage"):
        stage = tasks.set_up_stage(tasks.Opaque(plan))
    grid, pyramid = plan.spec.grid, plan.spec.pyramid
    if plan.spec.skip_empty and plan.stage.read_array(pipeline.OCCUPANCY) is None:
        with report.timed("estimate empty tiles"):
            threshold = results_of([tasks.choose_threshold.submit(stage)])[0]
            found = results_of(
                [
                    tasks.estimate_empty_tiles.submit(stage, threshold, b)
                    for b in batches_of(range(grid.n_tiles))
                ]
            )
            pipeline.save_occupancy(plan, found)
    with report.timed("segment"):
        done = set(plan.stage.done())
        todo = [i for i in range(grid.n_tiles) if i not in done]
        report.n_reused += len(done)
        batches = batches_of(todo)
        for outcomes in results_of([tasks.segment_tiles.submit(stage, b) for b in batches]):
            report.count(outcomes)
    with report.timed("stitch"):
        report.n_objects = results_of([tasks.stitch.submit(stage)])[0]
        relabeling = Relabeling.load(plan.stage)
    with report.timed("merge"):
        regions = pipeline.begin_label_image(plan, relabeling)
        batches = batches_of(regions)
        results_of([tasks.merge_regions.submit(stage, b) for b in batches])
    with report.timed("pyramid"):
        for level in range(pyramid.n_fused, pyramid.n_levels):
            batches = batches_of(range(pyramid.regions(level).n_tiles))
            results_of([tasks.build_level.submit(stage, level, b) for b in batches])
        results_of([tasks.finish_pyramid.submit(stage)])
