"""What a flow run is to do: of a form or of live Python values, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prefect import Flow

from flows.cluster import ClusterSpec
from flows.conversion import converted
from flows.interrupts import interruptible
from flows.parameters import Run, shown
from flows.server import prefect_server
from patchworks.conversion.collection import CollectionPlan
from patchworks.conversion.pyramid import PyramidAddition
from patchworks.conversion.run import check_reachable as check_conversion_reachable
from patchworks.errors import InputError
from patchworks.execution.gpus import most_free, visible_gpus
from patchworks.pipeline import RunPlan
from patchworks.plan import PathLike, check_reachable
from patchworks.run import whole_number
from patchworks.run_plan import is_finished
from patchworks.segmenters import check_sendable

BY_THREADS = ", or call patchworks.tile_process with engine='threads'"
"""What else can be done with a function that cannot be sent to workers."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one flow run does.

    Parameters
    ----------
    image : str
        What is worked on, for people.
    conversion : CollectionPlan, optional
        Convert this first.
    plan : RunPlan, optional
        The plan from image to label image, if it can be made already.
    plan_later : callable, optional
        Makes it once the image is converted.
    pyramid : PyramidAddition, optional
        Add these levels.
    run : Run
        How the run is carried out.
    cluster : ClusterSpec
        Where.
    """

    image: str
    conversion: CollectionPlan | None = None
    plan: RunPlan | None = None
    plan_later: Callable[[], RunPlan] | None = None
    pyramid: PyramidAddition | None = None
    run: Run = field(default_factory=Run)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)

    def check(self) -> None:
        """Raise InputError if worker processes could not do it.

        They cannot where they do not see the input, or the output, or cannot be sent the function.
        """
        for part in self.conversion.parts if self.conversion else ():
            check_conversion_reachable(part)
        if self.plan is not None:
            check_reachable(self.plan)
            if not self.is_done:
                check_sendable(self.plan.segmenter, BY_THREADS)
        if self.pyramid is not None and self.pyramid.store.url.startswith("memory://"):
            raise InputError(
                f"{self.pyramid.store}: is in the memory of this process, and the workers are "
                f"other processes; give a path or a URL that they see too"
            )

    @property
    def is_done(self) -> bool:
        """Whether all of it is in its place already."""
        if self.conversion is not None and not converted(self.conversion):
            return False
        if self.plan_later is not None or self.pyramid is not None:
            return False
        return self.plan is None or (self.run.resume and is_finished(self.plan))


def cluster_of(
    cluster: ClusterSpec | Mapping[str, Any] | PathLike | None,
    *,
    max_workers: int | None = None,
    use_gpu: bool = False,
) -> ClusterSpec:
    """Return where the tasks run, of what a Python caller says.

    Raises
    ------
    InputError
        If `max_workers` or `use_gpu` are said beside a cluster that is not of this machine.
    ClientError, MissingExtraError
        If a GPU is asked for and there is none.
    """
    spec = ClusterSpec.parse(cluster)
    wanted: dict[str, Any] = {}
    most = None if max_workers is None else whole_number("max_workers", max_workers, 1, 2**16)
    if use_gpu:
        gpus = most_free(visible_gpus(), most)
        if spec.gpus == "none":
            wanted["gpus"] = "all" if most is None else [gpu.name for gpu in gpus]
    elif most is not None:
        wanted["n_workers"] = most
    if wanted and spec.kind != "local":
        raise InputError(
            f"max_workers={max_workers}, use_gpu={use_gpu} beside a cluster of kind "
            f"{spec.kind!r}: they size worker processes of this machine; say it in cluster="
        )
    return ClusterSpec.parse({**spec.model_dump(), **wanted}) if wanted else spec


_HANDED_OVER: ContextVar[Job | None] = ContextVar("patchworks_job", default=None)


@contextmanager
def _handed_over(job: Job) -> Iterator[None]:
    token = _HANDED_OVER.set(job)
    try:
        yield
    finally:
        _HANDED_OVER.reset(token)


def handed_over() -> Job | None:
    """Return the job that a Python caller handed to the flow that starts now, once.

    A form can hold neither an array nor a function: `start` hands them over beside the parameters.
    """
    job = _HANDED_OVER.get()
    _HANDED_OVER.set(None)
    return job


def start(flow: Flow[Any, Any], job: Job, parameters: Mapping[str, Any]) -> Any:
    """Run a job as a flow on a Prefect server, the configured one or an own one.

    Parameters
    ----------
    flow : Flow
        The flow; what `parameters` say of live values is only shown.
    job : Job
        What it does.
    parameters : mapping
        The form as if somebody had filled it in.

    Raises
    ------
    InputError
        Before a server is started, if a name of a file cannot be sent to it.
    """
    live = flow.with_options(validate_parameters=False)
    form = {name: shown(value) for name, value in parameters.items()}
    with interruptible(), prefect_server(announce=True), _handed_over(job):
        return live(**form)
