"""`segment_image`: the way from an image to its label image, as a flow on worker processes.

::

    convert ─► set up stage ─► estimate empty tiles ─► segment tiles ─► stitch ─► merge ─► pyramid
"""

# No `from __future__ import annotations`: a served flow is sent to the process of its run without
# this module, and would not find there what annotations that are mere text stand for.

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from prefect import flow

from flows.carry_out import ON_WORKERS, carry_out
from flows.cluster import ClusterSpec
from flows.job import BY_THREADS, Job, cluster_of, handed_over, start
from flows.parameters import Group, Labels, Run, Selection, Tiles, checked, split_keywords
from flows.run_names import named
from flows.segmenter_choice import SegmenterChoice, Threshold, as_shown, segmenter_of
from flows.work_place import place_of
from patchworks.auto_tile_shape import is_auto
from patchworks.conversion.collection import CollectionPlan, plan_images
from patchworks.conversion.plan import ConversionOptions, made_from
from patchworks.errors import InputError
from patchworks.geometry.tile_shape import TileShapeRule
from patchworks.io.channels import ChannelChoice
from patchworks.io.location import Location
from patchworks.io.source import kind_of
from patchworks.plan import PathLike, RunOptions, plan_run
from patchworks.readers.registry import is_zarr, open_reader
from patchworks.report import RunReport
from patchworks.run_plan import settle_finished
from patchworks.segmenters import Segmenter, check_sendable, resolve_segmenter
from patchworks.temporary import temporary_store

SEGMENT_GROUPS: dict[str, type[Group]] = {
    "selection": Selection,
    "tiles": Tiles,
    "labels": Labels,
    "run": Run,
}
"""The groups of the form, by the name of the flow's parameter."""

SegmenterSpec = Segmenter | str | Mapping[str, Any]


def segment_image(
    image: Any,
    *,
    segmenter: SegmenterSpec,
    tile_shape: TileShapeRule | None = None,
    overlap: int | Sequence[int] | None = None,
    channel: ChannelChoice = 0,
    level: int = 0,
    use_gpu: bool = False,
    max_workers: int | None = None,
    write_to: PathLike | None = None,
    output_component: str = "labels",
    pyramid_levels: int | None = None,
    pyramid_downscale: int = 2,
    sequential_labels: bool = False,
    skip_empty: bool = False,
    empty_threshold: float | None = None,
    stage_dir: PathLike | None = None,
    keep_stage: bool = False,
    stitch: str = "auto",
    connectivity: int = 1,
    slice_wise: bool = False,
    link_time: bool = False,
    link_iou: float = 0.25,
    resume: bool = True,
    overwrite: bool = False,
    convert_to: PathLike | None = None,
    cluster: ClusterSpec | Mapping[str, Any] | PathLike | None = None,
    retries: int = 3,
    retry_delay_s: float = 2.0,
    tile_timeout_s: float | None = None,
) -> RunReport:
    """Segment an image as a Prefect flow on worker processes.

    Writes the same bytes as `patchworks.tile_process`. Uses the Prefect server that is configured,
    or starts one on loopback that ends with the run.

    Parameters
    ----------
    image : path, URL, zarr.Array, dask.array.Array, numpy.ndarray or xarray.DataArray
        As in `patchworks.tile_process`; a microscope file (TIFF, Imaris, CZI, ...) is converted
        first.
    segmenter : str, mapping or callable
        ``"threshold"``, ``{"name": "threshold", "value": 400}``, ``"package.module:function"``,
        ``{"import": "package.module:factory", "kwargs": {...}}``, or a function.
    use_gpu : bool
        Segment on worker processes of their own, one for each GPU.
    max_workers : int, optional
        Worker processes; one per core by default. With `use_gpu`, GPUs to use; all by default.
    convert_to : path, optional
        Where the OME-Zarr image goes if `image` is a file; by default beside it.
    cluster : ClusterSpec, mapping, path of a YAML file or address, optional
        Where the tasks run; by default worker processes of this machine.
    retries, retry_delay_s : int, float
        How often a task is tried again after an error that may heal, and seconds before the first
        of these; each further one waits twice as long.
    tile_timeout_s : float, optional
        Seconds that one tile may take before its worker is ended and a new one tries again: the
        only way out of a call into a driver that hangs.
    tile_shape, overlap, channel, level, write_to, output_component, pyramid_levels, \
pyramid_downscale, sequential_labels, skip_empty, empty_threshold, stage_dir, keep_stage, stitch, \
connectivity, slice_wise, link_time, link_iou, resume, overwrite
        As in `patchworks.tile_process`.

    Returns
    -------
    RunReport
        Where the labels are, how many objects, what was done, seconds per step.

    Raises
    ------
    InputError, TargetExistsError, TargetNotWritableError
        Before any work, and before a server or worker is started.
    TargetInUseError
        If another run is writing there.
    SegmenterError
        If the function fails on a tile; the tiles that are done are kept, and the same call goes
        on from there.
    """
    keywords = dict(locals())
    beside = ("image", "segmenter", "convert_to", "cluster", "use_gpu", "max_workers")
    for name in (*beside, "sequential_labels"):  # labels are 1..N in any case
        del keywords[name]
    groups = split_keywords(keywords, SEGMENT_GROUPS)
    job = plan_segmentation(
        image,
        resolve_segmenter(segmenter),
        groups,
        cluster=cluster_of(cluster, max_workers=max_workers, use_gpu=use_gpu),
        convert_to=convert_to,
    )
    if job.is_done and job.plan is not None:
        return settle_finished(job.plan, keep_stage=keep_stage)
    asked = {"image": job.image, "segmenter": as_shown(segmenter), "convert_to": convert_to}
    report: RunReport = start(segment_image_flow, job, {**asked, **groups, "cluster": job.cluster})
    return report


def plan_segmentation(
    image: Any,
    segmenter: Segmenter,
    groups: Mapping[str, Mapping[str, Any]],
    *,
    cluster: ClusterSpec,
    convert_to: PathLike | None = None,
) -> Job:
    """Return the job of segmenting an image, after checking all that can be checked.

    Parameters
    ----------
    image, convert_to
        As in `segment_image`.
    segmenter : callable
        The function.
    groups : mapping
        What was asked for, sorted into the groups `SEGMENT_GROUPS`; what is left out is by default.
    cluster : ClusterSpec
        Where the tasks run.
    """
    target = converted_path(image, convert_to) if kind_of(image) == "path" else None
    if target is not None:
        reader = open_reader(image)
        is_made = made_from(Location.parse(target)).get("source") == reader.identity()
        reader.close()
        if not is_made:
            conversion = plan_images(image, target, ConversionOptions())
            return plan_after_conversion(conversion, segmenter, groups, cluster=cluster)
    store = image if target is None else target
    plan = plan_run(store, segmenter, run_options(store, groups, cluster))
    job = Job(
        image=plan.source.name,
        plan=plan,
        run=checked(Run, groups.get("run", {})),
        cluster=cluster,
    )
    job.check()
    return job


def plan_after_conversion(
    conversion: CollectionPlan,
    segmenter: Segmenter,
    groups: Mapping[str, Mapping[str, Any]],
    *,
    cluster: ClusterSpec,
) -> Job:
    """Return the job of converting an image and then segmenting it."""
    if conversion.is_collection:
        raise InputError(
            f"{conversion.place}: several images; convert them with convert_image, then segment "
            f"each, or say which one with scene="
        )
    if not hasattr(segmenter, "at_scale"):  # which makes another one of it, once there is an image
        check_sendable(segmenter, BY_THREADS)
    store = str(conversion.place)
    options = run_options(store, groups, cluster)
    job = Job(
        image=conversion.parts[0].reader.name,
        conversion=conversion,
        plan_later=partial(plan_run, store, segmenter, options),
        run=checked(Run, groups.get("run", {})),
        cluster=cluster,
    )
    job.check()
    return job


def run_options(
    image: Any, groups: Mapping[str, Mapping[str, Any]], cluster: ClusterSpec
) -> RunOptions:
    """Return the keywords of `patchworks.tile_process` that the groups hold.

    Parameters
    ----------
    image : path or array
        What is segmented.
    groups : mapping
        What was asked for.
    cluster : ClusterSpec
        Where, which decides about ``"auto"`` tiles.
    """
    given: dict[str, Any] = {}
    for name in ("selection", "tiles", "labels"):
        given |= groups.get(name, {})
    given["stage_dir"] = groups.get("run", {}).get("stage_dir")
    if given.get("write_to") is None and kind_of(image) != "path":
        given |= {"write_to": temporary_store(), "is_temporary": True}
    if is_auto(given.get("tile_shape")):
        given["place"] = place_of(cluster)
    return RunOptions(**given)


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
    flow_run_name=named("segment", "image"),
    description="Run a segmentation function on an image of any size; one label image comes out.",
    **ON_WORKERS,
)
def segment_image_flow(
    image: str,
    segmenter: SegmenterChoice = Threshold(),
    convert_to: str | None = None,
    selection: Selection = Selection(),
    tiles: Tiles = Tiles(),
    labels: Labels = Labels(),
    run: Run = Run(),
    cluster: ClusterSpec = ClusterSpec(),
) -> RunReport:
    """Segment an image.

    Args:
        image: Path or URL of an OME-Zarr or zarr store, or of a microscope file, which is converted
            first.
        segmenter: The function that segments.
        convert_to: Where the OME-Zarr image of a file goes. None: beside it.
        selection: Which part of the image is segmented.
        tiles: How it is cut into tiles, and how their labels are joined.
        labels: Where the label image goes.
        run: How the run is carried out.
        cluster: Where its tasks run.
    """
    job = handed_over()
    if job is None:
        groups = {"selection": selection, "tiles": tiles, "labels": labels, "run": run}
        job = plan_segmentation(
            image,
            segmenter_of(segmenter),
            {name: dict(group) for name, group in groups.items()},
            cluster=cluster,
            convert_to=convert_to,
        )
    report: RunReport = carry_out(job)
    return report
