"""The table artifact of a run: what each step took, did and had to do again."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType, TaskRun
from prefect.client.schemas.sorting import TaskRunSort
from prefect.tasks import Task

from flows import tasks
from flows.artifacts.desk import ask, publish
from flows.artifacts.units import bytes_text, count_text, seconds_text

TASKS_OF_STEP: Mapping[str, tuple[str, ...]] = {
    "convert": ("set up conversion", "convert regions", "finish conversion"),
    "set up stage": ("set up stage",),
    "estimate empty tiles": (
        *("choose threshold of empty tiles", "map maxima", "estimate empty tiles"),
    ),
    "segment": ("segment tiles",),
    "stitch": ("judge seams", "stitch"),
    "merge": ("merge",),
    "pyramid": (
        *("build pyramid", "finish pyramid"),
        *("set up levels", "add level", "finish levels"),
    ),
    "draw overview": ("draw overview",),
}
"""Names of the tasks that carry out a step."""

PAGE = 200
"""Task runs that the server hands out at a time."""

SETTLE_WITHIN_S = 6.0
"""How long the server may take to note down the last task runs and how they ended."""

QUIET_S = 2.0
"""Where nobody knows how many task runs there are: nothing new for so long means that is all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """What one step of a run took and did.

    Parameters
    ----------
    step : str
        Name of the step.
    seconds : float
        Wall time.
    n_tiles, n_bytes : int
        Tiles or regions worked on, and bytes written; 0 where nobody counted.
    n_task_runs, n_cached, n_retries : int
        Task runs on the server; those whose result was there already; tries beyond the first.
    """

    step: str
    seconds: float
    n_tiles: int = 0
    n_bytes: int = 0
    n_task_runs: int = 0
    n_cached: int = 0
    n_retries: int = 0


def step_rows(
    flow_run_id: UUID | str | None,
    seconds: Mapping[str, float],
    *,
    n_tiles: Mapping[str, int] | None = None,
    n_bytes: Mapping[str, int] | None = None,
    n_expected: int | None = None,
) -> list[StepRow]:
    """Return a row per step, in the order of `seconds`; other tasks follow with rows of their own.

    Parameters
    ----------
    flow_run_id : UUID or str, optional
        Whose task runs are counted; none are if it is None or the server does not answer.
    seconds : mapping of str to float
        Wall time per step, as in `RunReport.seconds`.
    n_tiles, n_bytes : mapping of str to int, optional
        Tiles or regions, and bytes, per step.
    n_expected : int, optional
        How many task runs there are: those of the last second reach the server later than this
        question, which is repeated until they are there.
    """
    runs: list[TaskRun] = []
    if flow_run_id is not None:
        owner = UUID(str(flow_run_id))
        runs = (
            ask(lambda client: _settled_runs(client, owner, n_expected), "the table of steps") or []
        )
    step_of = dict(_steps_of_functions())
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        function = _function_of(run.task_key)
        step = step_of.get(function, function.replace("_", " "))
        counted[step].update(_counts_of(run))
    tiles, sizes = n_tiles or {}, n_bytes or {}
    return [
        StepRow(
            step=step,
            seconds=seconds.get(step, 0.0),
            n_tiles=tiles.get(step, 0),
            n_bytes=sizes.get(step, 0),
            n_task_runs=counted[step]["task runs"],
            n_cached=counted[step]["cached"],
            n_retries=counted[step]["retries"],
        )
        for step in dict.fromkeys([*seconds, *counted])
    ]


def publish_table(rows: Sequence[StepRow], *, flow_run_id: UUID | None = None) -> UUID | None:
    """Publish the table artifact ``steps``, with a line of totals; return its id, if it has one."""
    total = StepRow(
        step="total",
        seconds=sum(row.seconds for row in rows),
        n_bytes=sum(row.n_bytes for row in rows),
        n_task_runs=sum(row.n_task_runs for row in rows),
        n_cached=sum(row.n_cached for row in rows),
        n_retries=sum(row.n_retries for row in rows),
    )
    table = json.dumps([_cells(row) for row in [*rows, total]])
    return publish("table", "steps", table, "What each step took and did.", flow_run_id=flow_run_id)


def _cells(row: StepRow) -> dict[str, str]:
    return {
        "step": row.step,
        "time": seconds_text(row.seconds) if row.seconds else "",
        "tiles": count_text(row.n_tiles) if row.n_tiles else "",
        "bytes": bytes_text(row.n_bytes) if row.n_bytes else "",
        "task runs": count_text(row.n_task_runs),
        "cached": count_text(row.n_cached),
        "retries": count_text(row.n_retries),
    }


def _settled_runs(
    client: SyncPrefectClient, flow_run_id: UUID, n_expected: int | None
) -> list[TaskRun]:
    """Return all task runs of a flow run, once the server has noted down how they ended.

    Task runs travel to it as events, and arrive after the tasks have returned.
    """
    begin = last_news = time.monotonic()
    n_before = 0
    while True:
        runs = list(_task_runs(client, flow_run_id))
        now = time.monotonic()
        if len(runs) != n_before:
            n_before, last_news = len(runs), now
        is_all = now - last_news >= QUIET_S if n_expected is None else len(runs) >= n_expected
        is_settled = is_all and all(run.state and run.state.is_final() for run in runs)
        if is_settled or now - begin > SETTLE_WITHIN_S:
            return runs
        time.sleep(0.25)


def _task_runs(client: SyncPrefectClient, flow_run_id: UUID) -> Iterator[TaskRun]:
    whose = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    for offset in count(step=PAGE):
        page = client.read_task_runs(
            flow_run_filter=whose, sort=TaskRunSort.ID_DESC, limit=PAGE, offset=offset
        )
        yield from page
        if len(page) < PAGE:
            return


def _counts_of(run: TaskRun) -> dict[str, int]:
    # A task run that crashed is not tried again under its own id: another one is submitted.
    crashed = run.state_type == StateType.CRASHED
    return {
        "task runs": 1,
        "cached": int(run.state_name == "Cached"),
        "retries": max(0, run.run_count - 1) + crashed,
    }


def _steps_of_functions() -> Iterator[tuple[str, str]]:
    """Yield the name of each task's function, by which the server knows it, with its step."""
    known = [task for task in vars(tasks).values() if isinstance(task, Task)]
    for step, names in TASKS_OF_STEP.items():
        yield from ((_function_of(task.task_key), step) for task in known if task.name in names)


def _function_of(task_key: str) -> str:
    return task_key.rpartition("-")[0] or task_key
