"""What the state of a run says of its image."""

from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled, State

from flows.inbox.sub_runs import outcome_of

RAISED = "Flow run encountered an exception: "


@pytest.mark.parametrize(
    "state, kind",
    [
        (Scheduled(), "going on"),
        (Pending(), "going on"),
        (Running(), "going on"),
        (Completed(), "done"),
        (Crashed(message="no heartbeat"), "crashed"),
        (Cancelled(message="by a person"), "failed"),
        (Cancelled(message="Deployment 1 no longer exists, cancelled run."), "crashed"),
        (Failed(message=f"{RAISED}SegmenterError: tile 3: no luck"), "failed"),
        (Failed(message=f"{RAISED}SourceNotFoundError: cut off"), "failed"),
        (Failed(message=f"{RAISED}TargetExistsError: another"), "failed"),
        (Failed(message=f"{RAISED}ServerError: no answer"), "crashed"),
        (Failed(message=f"{RAISED}ClientError: no worker came"), "crashed"),
        (Failed(message=f"{RAISED}TargetNotWritableError: disk full"), "crashed"),
        (Failed(message=f"{RAISED}ConnectError: refused"), "crashed"),
        (Failed(message=f"{RAISED}TargetInUseError: another run"), "busy"),
        (Failed(message="Validation of flow parameters failed with error: x"), "failed"),
    ],
)
def test_only_what_would_come_again_fails(state: State, kind: str) -> None:
    run = FlowRun(flow_id=uuid4(), state=state)
    assert outcome_of(run).kind == kind
    if kind == "failed":
        assert not outcome_of(run).reason.startswith(RAISED)
