"""`build_pyramid`: levels, and the metadata of an image, for an array in a store, as a flow.

::

    set up levels ─► add level 1 ─► add level 2 ─► ... ─► finish levels
"""

# No `from __future__ import annotations`: a served flow is sent to the process of its run without
# this module, and would not find there what annotations that are mere text stand for.

from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows.carry_out import ON_WORKERS, carry_out
from flows.cluster import ClusterSpec
from flows.conversion import PyramidReport
from flows.job import Job, cluster_of, handed_over, start
from flows.parameters import Group, Pyramid, Run, checked, split_keywords
from flows.run_names import named
from patchworks.conversion.pyramid import plan_addition
from patchworks.io.location import Location
from patchworks.plan import PathLike

PYRAMID_GROUPS: dict[str, type[Group]] = {"pyramid": Pyramid, "run": Run}
"""The groups of the form, by the name of the flow's parameter."""


def build_pyramid(
    store: PathLike,
    *,
    base: str = "0",
    axes: str | None = None,
    n_levels: int | None = None,
    downscale: int = 2,
    pixel_size: Mapping[str, float] | None = None,
    max_workers: int | None = None,
    cluster: ClusterSpec | Mapping[str, Any] | PathLike | None = None,
    retries: int = 3,
    retry_delay_s: float = 2.0,
) -> PyramidReport:
    """Add a pyramid, and the metadata that make it an OME-Zarr image, as a Prefect flow.

    Writes the same bytes as `patchworks.plugins.ome_zarr.add_pyramid`.

    Parameters
    ----------
    store : path or URL
        A zarr group that holds the array.
    max_workers, cluster, retries, retry_delay_s
        As in `flows.segment_image`.
    base, axes, n_levels, downscale, pixel_size
        As in `add_pyramid`.

    Returns
    -------
    PyramidReport
        How many levels there are now.

    Raises
    ------
    PatchworksError
        As `add_pyramid` does; what can be checked before work, before a server is started.
    """
    keywords = dict(locals())
    for name in ("store", "cluster", "max_workers"):
        del keywords[name]
    groups = split_keywords(keywords, PYRAMID_GROUPS)
    job = plan_levels(store, groups, cluster=cluster_of(cluster, max_workers=max_workers))
    asked = {"store": str(store), **groups, "cluster": job.cluster}
    report: PyramidReport = start(build_pyramid_flow, job, asked)
    return report


def plan_levels(
    store: PathLike, groups: Mapping[str, Mapping[str, Any]], *, cluster: ClusterSpec
) -> Job:
    """Return the job of adding levels, after checking all that can be checked."""
    plan = plan_addition(Location.parse(store, "store"), **groups.get("pyramid", {}))
    run = checked(Run, groups.get("run", {}))
    job = Job(image=str(store), pyramid=plan, run=run, cluster=cluster)
    job.check()
    return job


@flow(
    name="build pyramid",
    flow_run_name=named("build pyramid of", "store"),
    description="Add a pyramid, and the metadata that make it an OME-Zarr image, to an array.",
    **ON_WORKERS,
)
def build_pyramid_flow(
    store: str,
    pyramid: Pyramid = Pyramid(),
    run: Run = Run(),
    cluster: ClusterSpec = ClusterSpec(),
) -> PyramidReport:
    """Add a pyramid to an array in a store.

    Args:
        store: Path or URL of the zarr group that holds the array.
        pyramid: Which levels are added.
        run: How the run is carried out.
        cluster: Where its tasks run.
    """
    job = handed_over()
    if job is None:
        job = plan_levels(store, {"pyramid": dict(pyramid), "run": dict(run)}, cluster=cluster)
    report: PyramidReport = carry_out(job)
    return report
