"""A job → what came of it: workers, locks, the steps in order, and what people see of them."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
from prefect import Flow, get_run_logger
from prefect.context import FlowRunContext

from flows import conversion, tasks
from flows.artifacts import (
    publish_conversion,
    publish_failure,
    publish_result,
    publish_table,
    say_how_to_go_on,
    step_rows,
)
from flows.artifacts.result import max_picture_bytes
from flows.gpu_slots import gpu_slots
from flows.interrupts import interruptible
from flows.job import Job
from flows.owning import flow_run_id, owning
from flows.retries import retrying
from flows.runners import ClusterRunner, send_library_logs
from flows.segmentation import Segmentation
from flows.task_runs import Call, TaskRuns
from flows.warnings_of_run import warnings_of
from flows.workers import check_workers_see
from patchworks.conversion.run import ConversionReport
from patchworks.errors import PatchworksError
from patchworks.io.run_lock import RunLock
from patchworks.pipeline import RunPlan
from patchworks.report import RunReport
from patchworks.run_plan import is_finished, lock_of, settle_finished

ON_WORKERS: dict[str, Any] = {
    "task_runner": ClusterRunner(),
    "persist_result": False,
    "on_failure": [say_how_to_go_on],
    "on_crashed": [say_how_to_go_on],
}
"""Options of every flow; `carry_out` gives the runner the cluster that was asked for."""

PICTURE_S = 120.0
"""Time for the picture of the result, which nothing else waits for."""


@interruptible()
def carry_out(job: Job) -> Any:
    """Do what the job says in the flow run of this moment, and return its report.

    Raises
    ------
    PatchworksError
        If a step fails; what is done is kept, and the same job goes on from there.
    """
    send_library_logs("INFO")
    job.check()
    if job.is_done and job.plan is not None:
        get_run_logger().info("already done: %s", job.plan.target.location)
        return settle_finished(job.plan, keep_stage=job.run.keep_stage)
    with gpu_slots(job.cluster):
        return _take_steps(job)


def _take_steps(job: Job) -> Any:
    """Start the workers and take the steps of a job that is not done."""
    start = RunReport("", 0)
    with start.timed("start workers"):
        runs = TaskRuns(_workers_of(job), retrying(job.run.retries, job.run.retry_delay_s))
    report: Any = None
    if job.conversion is not None:
        with start.timed("convert"):
            report = conversion.convert(job.conversion, runs)
        if job.plan_later is None:
            _show_conversion(job, report, start.seconds)
    if job.pyramid is not None:
        report = conversion.add_levels(job.pyramid, runs)
    plan = job.plan if job.plan_later is None else job.plan_later()
    if plan is not None:
        report = _label(job, plan, runs, start.seconds)
    return report


def _workers_of(job: Job) -> ClusterRunner:
    context = FlowRunContext.get()
    runner = context.task_runner if context else None
    if not isinstance(runner, ClusterRunner):
        raise PatchworksError(
            f"the flow runs on {type(runner).__name__}; its tasks need a ClusterRunner: set the "
            f"cluster by the parameter `cluster`, not by the task runner"
        )
    _send_along(context.flow if context else None)
    runner.use(job.cluster)
    _ = runner.client  # starts the workers
    return runner


def _send_along(flow: Flow[..., Any] | None) -> None:
    """Have workers be sent what they cannot import: the flow, where a deployment names its file.

    Prefect sends the flow with each task, and gives a module that it loads from a file a name of
    its own. A worker that cannot import what it is sent says nothing: the run would wait for ever.
    """
    module = sys.modules.get(flow.fn.__module__) if flow else None
    package = __name__.partition(".")[0]
    if module is not None and not module.__name__.startswith(f"{package}."):
        cloudpickle.register_pickle_by_value(module)


def _label(job: Job, plan: RunPlan, runs: TaskRuns, before: dict[str, float]) -> RunReport:
    """Make the label image of a plan."""
    if job.run.resume and is_finished(plan):
        return settle_finished(plan, keep_stage=job.run.keep_stage)
    plan.target.make_private()
    with owning(lock_of(plan, flow_run_id())) as lock:
        if job.run.resume and is_finished(plan):  # by a run that held the lock until now
            return settle_finished(plan, keep_stage=job.run.keep_stage, lock=lock)
        plan.check_target()
        if not job.run.resume:
            plan.stage.remove()
        report = RunReport(str(plan.target.location), plan.spec.grid.n_tiles, seconds=before)
        steps = Segmentation(plan, runs, report, job.run)
        with _saying_how_to_go_on(plan, report):
            _make_labels(steps, lock)
        _show(job, steps)
        if not job.run.keep_stage:
            plan.stage.remove()
    get_run_logger().info("%s", report)
    return report


def _make_labels(steps: Segmentation, lock: RunLock) -> None:
    """Take the steps in order."""
    steps.set_up()
    check_workers_see(steps.runs.runner.client, steps.plan.stage.root)
    steps.estimate_empty_tiles()
    steps.segment()
    relabeling = steps.stitch()
    lock.check()
    steps.merge(relabeling)
    lock.check()
    steps.build_pyramid()


@contextmanager
def _saying_how_to_go_on(plan: RunPlan, report: RunReport) -> Iterator[None]:
    try:
        yield
    except (PatchworksError, KeyboardInterrupt) as error:
        n_done = plan.stage.n_done() if plan.stage.manifest() else 0
        error.add_note(
            f"{n_done} of {report.n_tiles} tiles are done and kept in {plan.stage.root}; the same "
            f"call goes on from there"
        )
        said = str(error) or "The run was interrupted."
        publish_failure(said, n_done=n_done, n_total=report.n_tiles, stage=str(plan.stage.root))
        raise


def _show_conversion(job: Job, report: ConversionReport, seconds: dict[str, float]) -> None:
    publish_table(step_rows(flow_run_id(), seconds, n_bytes={"convert": report.n_bytes}))
    publish_conversion(report, None, warnings_of(flow_run_id()), source=job.image)


def _show(job: Job, steps: Segmentation) -> None:
    """Publish what people look at: the picture, the counts, the table of the steps."""
    report = steps.report
    with report.timed("draw overview"):
        arguments = {
            "stage": steps.stage,
            "labels": report.labels,
            "max_bytes": max_picture_bytes(),
        }
        call = Call(task=tasks.draw_overview, arguments=arguments, limit_s=PICTURE_S)
        picture = steps.runs.one_or_none(call)
    report.warnings = warnings_of(flow_run_id())
    rows = step_rows(
        flow_run_id(),
        report.seconds,
        n_tiles=steps.n_tiles_of,
        n_bytes=steps.n_bytes_of,
        n_expected=steps.runs.n_submitted + 1,  # the stage is set up in this process
    )
    publish_table(rows)
    publish_result(
        report,
        None if picture is None else base64.b64decode(picture),
        report.warnings,
        n_bytes=steps.n_bytes_written,
        image=job.image,
    )
