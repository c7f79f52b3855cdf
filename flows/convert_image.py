"""`convert_image`: from any image file to a calibrated OME-Zarr image, as a flow.

::

    set up conversion ─► convert regions ─► build levels ─► finish conversion
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect import flow, get_run_logger
from prefect.context import FlowRunContext

from flows import tasks
from flows.batches import batches_of, results_of
from flows.runners import local_dask_runner, send_library_logs
from flows.server import prefect_server
from patchworks.conversion import regions
from patchworks.conversion.collection import (
    CollectionPlan,
    begin_collection,
    is_whole,
    plan_images,
    publish_collection,
)
from patchworks.conversion.plan import ConversionOptions, ConversionPlan
from patchworks.conversion.run import (
    ConversionReport,
    Timed,
    check_reachable,
    is_finished,
    run_images,
    settle_failed,
    settle_finished,
    total_of,
)
from patchworks.errors import PatchworksError
from patchworks.plan import PathLike
from patchworks.run import whole_number


def convert_image(
    source: PathLike,
    target: PathLike,
    *,
    axes: str | None = None,
    pixel_size: Mapping[str, float] | None = None,
    n_levels: int | None = None,
    downscale: int = 2,
    chunks: Sequence[int] | None = None,
    shard: bool | None = None,
    channel_names: Sequence[str] | None = None,
    scene: int | str = 0,
    ngff_version: str = "0.5",
    reuse_pyramid: bool = False,
    overwrite: bool = False,
    codec: str = "blosc",
    reader: str | None = None,
    max_workers: int | None = None,
) -> ConversionReport:
    """Convert an image to OME-Zarr as a Prefect flow on worker processes of this machine.

    Writes the same bytes as `patchworks.plugins.ome_zarr.to_ome_zarr`. Uses the Prefect server that
    is configured, or starts one on loopback that ends with the run.

    Parameters
    ----------
    source : path, URL or glob pattern
        As in `to_ome_zarr`; the workers are other processes, so no array.
    max_workers : int, optional
        Worker processes; one per core by default.
    target, axes, pixel_size, n_levels, downscale, chunks, shard, channel_names, scene, \
ngff_version, reuse_pyramid, overwrite, codec, reader
        As in `to_ome_zarr`.

    Returns
    -------
    ConversionReport
        Where the image is and what was done; of all images together if there are several.

    Raises
    ------
    PatchworksError
        As `to_ome_zarr` does; what can be checked before work, before a server is started.
    """
    if max_workers is not None:
        max_workers = whole_number("max_workers", max_workers, 1, 2**16)
    options = ConversionOptions(
        axes=axes,
        pixel_size=pixel_size,
        n_levels=n_levels,
        downscale=downscale,
        chunks=chunks,
        shard=shard,
        channel_names=channel_names,
        scene=scene,
        ngff_version=ngff_version,
        reuse_pyramid=reuse_pyramid,
        codec=codec,
        reader=reader,
        overwrite=overwrite,
    )
    plan = plan_images(source, target, options)
    for part in plan.parts:
        check_reachable(part)
    if is_whole(plan) or (not plan.is_collection and is_finished(plan.parts[0])):
        return run_images(plan, progress=False)
    with prefect_server():
        runner = local_dask_runner(n_workers=max_workers)
        on_workers = convert_image_flow.with_options(task_runner=runner)  # type: ignore[arg-type]
        report: ConversionReport = on_workers(
            source=str(source), target=str(plan.place), run=tasks.Opaque(plan)
        )
    return report


@flow(
    name="convert image",
    flow_run_name="convert {source}",
    validate_parameters=False,
    persist_result=False,
)
def convert_image_flow(
    source: str,  # noqa: ARG001 - shown as what the run was asked for
    target: str,  # noqa: ARG001
    run: tasks.Opaque[CollectionPlan],
) -> ConversionReport:
    """Write level 0 region by region, then the other levels, then the metadata."""
    logger = get_run_logger()
    send_library_logs("INFO")
    _ = FlowRunContext.get().task_runner.client  # type: ignore[union-attr] # starts the workers
    plan = run.held
    begin_collection(plan)
    reports = [carry_out_conversion(part) for part in plan.parts]
    if plan.is_collection:
        publish_collection(plan)
    report = total_of(plan, reports)
    logger.info("%s", report)
    return report


def carry_out_conversion(plan: ConversionPlan) -> ConversionReport:
    """Submit the tasks of a conversion, batches of regions, in order."""
    if is_finished(plan):
        return settle_finished(plan)
    with Timed(plan) as timed:
        try:
            stage = results_of([tasks.set_up_conversion.submit(tasks.Opaque(plan))])[0]
            for level in plan.passes:
                batches = batches_of(regions.todo(plan, level))
                results_of([tasks.convert_regions.submit(stage, level, b) for b in batches])
            results_of([tasks.finish_conversion.submit(stage)])
        except PatchworksError as error:
            settle_failed(plan, error, all_ended=True)
            raise
        finally:
            plan.reader.close()
    return timed.made()
