"""Runs whose process has died: without this they stay Running in the history for ever."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Crashed

from flows.configured import configured_url

_LOG = logging.getLogger(__name__)
_UNFINISHED = [kind for kind in StateType if kind not in TERMINAL_STATES]
_ANSWER_S = 10.0
_AT_A_TIME = 200  # the most that a server returns
_DEAD = (
    "Its process ended without a word (killed, or the machine went down); call it again to go on."
)


def report_crashed(flow_run_id: UUID, message: str) -> None:
    """Set a flow run, and its task runs, to Crashed, unless they have ended.

    Trouble with the server is logged and goes no further.

    Parameters
    ----------
    flow_run_id : UUID
        The flow run; one that this server does not know is left alone.
    message : str
        What the state says.
    """
    url = configured_url()
    if url is None:
        return  # no server, no record
    with _trouble_logged(f"flow run {flow_run_id}"), _client(url) as client:
        try:
            flow_run = client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            return
        _report(client, flow_run, message)


def report_dead_runs(url: str, *, within_s: float = 5.0) -> None:
    """Set every unfinished flow run that belongs to no deployment to Crashed, with its task runs.

    Parameters
    ----------
    url : str
        Of the API of a server that nobody's run uses: whatever is not finished there is dead.
    within_s : float
        Seconds after which this stops; what is left waits for the next call.
    """
    deadline_s = time.monotonic() + within_s
    with _trouble_logged("the runs that ended without a word"), _client(url) as client:
        dead = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)),
                deployment_id=FlowRunFilterDeploymentId(is_null_=True),
            ),
            limit=_AT_A_TIME,
        )
        for flow_run in dead:
            _report(client, flow_run, _DEAD, deadline_s)


def _report(
    client: SyncPrefectClient, flow_run: FlowRun, message: str, deadline_s: float = math.inf
) -> None:
    if flow_run.state is not None and flow_run.state.is_final():
        return
    for task_run_id in _unfinished_task_runs(client, flow_run.id):
        if time.monotonic() > deadline_s:
            return
        client.set_task_run_state(task_run_id, Crashed(message=message), force=True)
    # Last: a call that is cut short is taken up again, since the flow run is not finished.
    client.set_flow_run_state(flow_run.id, Crashed(message=message), force=True)


def _unfinished_task_runs(client: SyncPrefectClient, flow_run_id: UUID) -> Iterator[UUID]:
    unfinished = TaskRunFilterState(type=TaskRunFilterStateType(any_=_UNFINISHED))
    seen: set[UUID] = set()
    while True:
        found = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
            task_run_filter=TaskRunFilter(state=unfinished),
            limit=_AT_A_TIME,
        )
        new = [task_run.id for task_run in found if task_run.id not in seen]
        if not new:
            return
        seen.update(new)
        yield from new


@contextmanager
def _client(url: str) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": _ANSWER_S}) as client,
    ):
        yield client


@contextmanager
def _trouble_logged(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a run must not fail for the record of another one
        _LOG.warning("could not set %s to Crashed in Prefect: %r", what, error)
