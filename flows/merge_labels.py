"""`merge_labels`: labels that a user's own tiling made → one label image, as a flow.

::

    set up stage ─► stage tiles ─► stitch ─► merge ─► pyramid
"""

# No `from __future__ import annotations`: a served flow is sent to the process of its run without
# this module, and would not find there what annotations that are mere text stand for.

from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows.carry_out import ON_WORKERS, carry_out
from flows.cluster import ClusterSpec
from flows.job import Job, cluster_of, handed_over, start
from flows.parameters import Group, Labels, MergeInput, Run, checked, split_keywords
from flows.run_names import named
from patchworks.merge_tile_labels import plan_merge
from patchworks.plan import PathLike, RunOptions
from patchworks.report import RunReport
from patchworks.run_plan import settle_finished

MERGE_GROUPS: dict[str, type[Group]] = {"merge": MergeInput, "labels": Labels, "run": Run}
"""The groups of the form, by the name of the flow's parameter."""

DEFAULT_LEVELS = 5


def merge_labels(
    labeled: Any,
    write_to: PathLike,
    *,
    input_component: str = "labels",
    output_component: str = "labels",
    overlap: int = 0,
    sequential_labels: bool = False,
    connectivity: int = 1,
    max_workers: int | None = None,
    stage_dir: PathLike | None = None,
    keep_stage: bool = False,
    pyramid_levels: int = DEFAULT_LEVELS,
    resume: bool = True,
    overwrite: bool = False,
    cluster: ClusterSpec | Mapping[str, Any] | PathLike | None = None,
    retries: int = 3,
    retry_delay_s: float = 2.0,
) -> RunReport:
    """Make one label image of labels that were made tile by tile, as a Prefect flow.

    Writes the same bytes as `patchworks.merge_tile_labels`.

    Parameters
    ----------
    labeled : dask.array.Array, path or URL
        A Dask array with one block per tile, or a store in which the chunks of `input_component`
        are the tiles. Never changed.
    write_to : path or URL
        Where the label image goes.
    max_workers, cluster, retries, retry_delay_s
        As in `flows.segment_image`.
    input_component, output_component, overlap, sequential_labels, connectivity, stage_dir, \
keep_stage, pyramid_levels, overwrite
        As in `patchworks.merge_tile_labels`.
    resume : bool
        Go on from what an interrupted run left.

    Returns
    -------
    RunReport
        Where the labels are, how many objects, what was done, seconds per step.

    Raises
    ------
    PatchworksError
        As `patchworks.merge_tile_labels` does.
    """
    keywords = dict(locals())
    for name in ("labeled", "cluster", "max_workers", "sequential_labels"):
        del keywords[name]
    groups = split_keywords(keywords, MERGE_GROUPS)
    job = plan_merging(labeled, groups, cluster=cluster_of(cluster, max_workers=max_workers))
    if job.is_done and job.plan is not None:
        return settle_finished(job.plan, keep_stage=keep_stage)
    asked = {"labeled": job.image, **groups, "cluster": job.cluster}
    report: RunReport = start(merge_labels_flow, job, asked)
    return report


def plan_merging(
    labeled: Any, groups: Mapping[str, Mapping[str, Any]], *, cluster: ClusterSpec
) -> Job:
    """Return the job of a merge, after checking all that can be checked."""
    merge, labels, run = (dict(groups.get(name, {})) for name in MERGE_GROUPS)
    connectivity = merge.pop("connectivity", 1)
    options = RunOptions(**labels, connectivity=connectivity, stage_dir=run.get("stage_dir"))
    plan = plan_merge(labeled, options, **merge)
    job = Job(image=plan.source.name, plan=plan, run=checked(Run, run), cluster=cluster)
    job.check()
    return job


@flow(
    name="merge labels",
    flow_run_name=named("merge", "labeled"),
    description="Make one label image of labels that were made tile by tile.",
    **ON_WORKERS,
)
def merge_labels_flow(
    labeled: str,
    labels: Labels,
    merge: MergeInput = MergeInput(),
    run: Run = Run(),
    cluster: ClusterSpec = ClusterSpec(),
) -> RunReport:
    """Merge labels that were made tile by tile.

    Args:
        labeled: Path or URL of a store whose chunks are the tiles.
        labels: Where the label image goes; say it in write_to.
        merge: Which labels are merged.
        run: How the run is carried out.
        cluster: Where its tasks run.
    """
    job = handed_over()
    if job is None:
        groups = {"merge": dict(merge), "labels": dict(labels), "run": dict(run)}
        job = plan_merging(labeled, groups, cluster=cluster)
    report: RunReport = carry_out(job)
    return report
