"""`convert_image`: from any image file to a calibrated OME-Zarr image, as a flow.

::

    set up conversion ─► convert regions ─► build levels ─► finish conversion
"""

# No `from __future__ import annotations`: a served flow is sent to the process of its run without
# this module, and would not find there what annotations that are mere text stand for.

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import flow

from flows.carry_out import ON_WORKERS, carry_out
from flows.cluster import ClusterSpec
from flows.job import Job, cluster_of, handed_over, start
from flows.parameters import Conversion, Run, checked, split_keywords
from flows.run_names import named
from patchworks.conversion.collection import plan_images
from patchworks.conversion.plan import ConversionOptions
from patchworks.conversion.run import ConversionReport, run_images
from patchworks.plan import PathLike


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
    cluster: ClusterSpec | Mapping[str, Any] | PathLike | None = None,
    retries: int = 3,
    retry_delay_s: float = 2.0,
) -> ConversionReport:
    """Convert an image to OME-Zarr as a Prefect flow on worker processes.

    Writes the same bytes as `patchworks.plugins.ome_zarr.to_ome_zarr`. Uses the Prefect server that
    is configured, or starts one on loopback that ends with the run.

    Parameters
    ----------
    source : path, URL or glob pattern
        As in `to_ome_zarr`; the workers are other processes, so no array.
    max_workers : int, optional
        Worker processes; one per core by default.
    cluster, retries, retry_delay_s
        As in `flows.segment_image`.
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
    keywords = dict(locals())
    for name in ("source", "target", "cluster", "max_workers"):
        del keywords[name]
    groups = split_keywords(keywords, {"conversion": Conversion, "run": Run})
    job = plan_conversion_job(
        source, target, groups, cluster=cluster_of(cluster, max_workers=max_workers)
    )
    if job.is_done and job.conversion is not None:
        return run_images(job.conversion, progress=False)
    asked = {"source": job.image, "target": target, **groups, "cluster": job.cluster}
    report: ConversionReport = start(convert_image_flow, job, asked)
    return report


def plan_conversion_job(
    source: PathLike,
    target: PathLike,
    groups: Mapping[str, Mapping[str, Any]],
    *,
    cluster: ClusterSpec,
) -> Job:
    """Return the job of converting an image, after checking all that can be checked."""
    options = ConversionOptions(**groups.get("conversion", {}))
    job = Job(
        image=str(source),
        conversion=plan_images(source, target, options),
        run=checked(Run, groups.get("run", {})),
        cluster=cluster,
    )
    job.check()
    return job


@flow(
    name="convert image",
    flow_run_name=named("convert", "source"),
    description="Convert a microscope file to a calibrated OME-Zarr image with a pyramid.",
    **ON_WORKERS,
)
def convert_image_flow(
    source: str,
    target: str,
    conversion: Conversion = Conversion(),
    run: Run = Run(),
    cluster: ClusterSpec = ClusterSpec(),
) -> ConversionReport:
    """Convert an image.

    Args:
        source: Path of a microscope file, of a folder or pattern of TIFF files, or of a zarr store.
        target: Path or URL of the OME-Zarr store to make.
        conversion: How it is converted.
        run: How the run is carried out.
        cluster: Where its tasks run.
    """
    job = handed_over()
    if job is None:
        groups = {"conversion": dict(conversion), "run": dict(run)}
        job = plan_conversion_job(source, target, groups, cluster=cluster)
    report: ConversionReport = carry_out(job)
    return report
