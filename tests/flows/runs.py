"""What the server knows of a flow's runs, for tests."""

import time
from collections import Counter

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.client.schemas.sorting import FlowRunSort

RECORDED_WITHIN_S = 20.0
# Task runs arrive one by one, each within about a second of what it tells.
UNCHANGED_FOR_S = 1.5


def latest_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)[0]


def task_runs(n_expected: int = 1) -> list[TaskRun]:
    """Task runs of the latest flow run, once all that is told of them has arrived."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[latest_run().id]))
    deadline = time.monotonic() + RECORDED_WITHIN_S
    told: set[tuple[object, ...]] = set()
    since = time.monotonic()
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=wanted, limit=200)
            if told != (told := {(r.id, r.state_name, r.run_count) for r in found}):
                since = time.monotonic()
            whole = len(found) >= n_expected and all(r.state and r.state.is_final() for r in found)
            if whole and time.monotonic() - since > UNCHANGED_FOR_S:
                return found
            if time.monotonic() > deadline:
                return found
            time.sleep(0.2)


def states(prefix: str) -> Counter[str]:
    """How many task runs of the latest flow run, whose name begins so, are in which state."""
    return Counter(run.state_name for run in task_runs() if run.name.startswith(prefix))
