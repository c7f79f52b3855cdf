"""What the server knows of a flow's runs, for tests."""

import time
from collections import Counter

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun

RECORDED_WITHIN_S = 20.0


def latest_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return max(client.read_flow_runs(limit=200), key=lambda run: run.created)


def task_runs(n_expected: int = 1) -> list[TaskRun]:
    """Task runs of the latest flow run; what workers tell arrives a little late."""
    run = latest_run()
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    deadline = time.monotonic() + RECORDED_WITHIN_S
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=wanted, limit=200)
            if len(found) >= n_expected and all(r.state and r.state.is_final() for r in found):
                return found
            if time.monotonic() > deadline:
                return found
            time.sleep(0.2)


def states(prefix: str) -> Counter[str]:
    """How many task runs of the latest flow run, whose name begins so, are in which state."""
    return Counter(run.state_name for run in task_runs() if run.name.startswith(prefix))
