"""`process_image`: from a microscope file to its OME-Zarr image and its label image, as one flow.

::

    convert ─► estimate empty tiles ─► stage ─► segment ─► merge ─► pyramid
"""

# No `from __future__ import annotations`: a served flow is sent to the process of its run without
# this module, and would not find there what annotations that are mere text stand for.

from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows.carry_out import ON_WORKERS, carry_out
from flows.cluster import ClusterSpec
from flows.conversion import converted
from flows.job import Job, cluster_of, handed_over, start
from flows.parameters import (
    Conversion,
    Group,
    Labels,
    Run,
    Selection,
    Tiles,
    split_keywords,
)
from flows.run_names import named
from flows.segment_image import (
    SEGMENT_GROUPS,
    SegmenterSpec,
    plan_after_conversion,
    plan_segmentation,
)
from flows.segmenter_choice import SegmenterChoice, Threshold, as_shown, segmenter_of
from patchworks.conversion.collection import plan_images
from patchworks.conversion.plan import ConversionOptions
from patchworks.plan import PathLike
from patchworks.report import RunReport
from patchworks.run_plan import settle_finished
from patchworks.segmenters import Segmenter, resolve_segmenter

PROCESS_GROUPS: dict[str, type[Group]] = {"conversion": Conversion, **SEGMENT_GROUPS}
"""The groups of the form, by the name of the flow's parameter."""


def process_image(
    source: PathLike,
    target: PathLike,
    *,
    segmenter: SegmenterSpec,
    use_gpu: bool = False,
    max_workers: int | None = None,
    cluster: ClusterSpec | Mapping[str, Any] | PathLike | None = None,
    **keywords: Any,
) -> RunReport:
    """Convert an image to OME-Zarr and segment it, as one Prefect flow on worker processes.

    Parameters
    ----------
    source : path, URL or glob pattern
        As in `convert_image`.
    target : path or URL
        The OME-Zarr store to make; by default the labels go into it.
    segmenter : str, mapping or callable
        As in `segment_image`.
    use_gpu, max_workers, cluster
        As in `segment_image`.
    **keywords
        Those of `convert_image` and of `segment_image`. ``overwrite`` replaces both, the image and
        the label image.

    Returns
    -------
    RunReport
        Where the labels are, how many objects, what was done, seconds per step.

    Raises
    ------
    PatchworksError
        As `convert_image` and `segment_image` do; an unknown keyword is an InputError.
    """
    groups = split_keywords(keywords, PROCESS_GROUPS)
    job = plan_processing(
        source,
        target,
        resolve_segmenter(segmenter),
        groups,
        cluster=cluster_of(cluster, max_workers=max_workers, use_gpu=use_gpu),
    )
    if job.is_done and job.plan is not None:
        return settle_finished(job.plan, keep_stage=job.run.keep_stage)
    asked = {"source": str(source), "target": target, "segmenter": as_shown(segmenter)}
    report: RunReport = start(process_image_flow, job, {**asked, **groups, "cluster": job.cluster})
    return report


def plan_processing(
    source: PathLike,
    target: PathLike,
    segmenter: Segmenter,
    groups: Mapping[str, Mapping[str, Any]],
    *,
    cluster: ClusterSpec,
) -> Job:
    """Return the job of converting and segmenting, after checking all that can be checked."""
    conversion = plan_images(source, target, ConversionOptions(**groups.get("conversion", {})))
    if converted(conversion) and not conversion.is_collection:
        for part in conversion.parts:
            part.reader.close()
        return plan_segmentation(str(conversion.place), segmenter, groups, cluster=cluster)
    return plan_after_conversion(conversion, segmenter, groups, cluster=cluster)


@flow(
    name="process image",
    flow_run_name=named("process", "source"),
    description="Convert a microscope file to OME-Zarr and segment it; labels lie in its store.",
    **ON_WORKERS,
)
def process_image_flow(
    source: str,
    target: str,
    segmenter: SegmenterChoice = Threshold(),
    conversion: Conversion = Conversion(),
    selection: Selection = Selection(),
    tiles: Tiles = Tiles(),
    labels: Labels = Labels(),
    run: Run = Run(),
    cluster: ClusterSpec = ClusterSpec(),
) -> RunReport:
    """Convert an image and segment it.

    Args:
        source: Path of a microscope file, of a folder or pattern of TIFF files, or of a zarr store.
        target: Path or URL of the OME-Zarr store to make.
        segmenter: The function that segments.
        conversion: How the file is converted.
        selection: Which part of the image is segmented.
        tiles: How it is cut into tiles, and how their labels are joined.
        labels: Where the label image goes.
        run: How the run is carried out.
        cluster: Where its tasks run.
    """
    job = handed_over()
    if job is None:
        groups = {
            "conversion": conversion,
            "selection": selection,
            "tiles": tiles,
            "labels": labels,
            "run": run,
        }
        job = plan_processing(
            source,
            target,
            segmenter_of(segmenter),
            {name: dict(group) for name, group in groups.items()},
            cluster=cluster,
        )
    report: RunReport = carry_out(job)
    return report
