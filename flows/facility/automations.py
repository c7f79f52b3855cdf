"""What the server does by itself, as code: dead runs, runs that never began, word of failures."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

OF_FLOW_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
PREFIX = "patchworks - "
DEAD_RUNS = "dead runs"
DEAD_AFTER_S = 600.0
"""Seconds without a heartbeat after which a run counts as dead: more than the server itself may be
away, for it takes its own absence for that of all runs."""

NOT_BEGUN_AFTER_S = 600.0
"""Seconds after which a run that a worker has taken has to have begun."""

_STILL = "prefect.flow-run."
_ENDED = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "TimedOut")
_IDLE = ("Paused", "Suspended", "Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot", "Late")
_TEXT = """\
{{ flow_run.name }} ({{ flow.name }}) has ended as {{ flow_run.state.name }}.

{{ flow_run.state.message }}

{{ flow_run|ui_url }}
"""


def automations(notify: Iterable[UUID], *, dead_after_s: float) -> list[AutomationCore]:
    """Return the automations of a facility.

    Parameters
    ----------
    notify : iterable of UUID
        Blocks that get word of failures.
    dead_after_s : float
        Seconds without a heartbeat after which a run counts as dead.
    """
    found = [
        _crashed(
            DEAD_RUNS,
            "A run whose process has sent no heartbeat is set to Crashed: it was killed, or its "
            "machine went down.",
            after={"heartbeat"},
            expect={"heartbeat", *_ENDED, *_IDLE},
            within_s=dead_after_s,
            message="Its process has sent no heartbeat (killed, or the machine went down).",
        ),
        _crashed(
            "runs that never began",
            "A run that a worker took and that has not begun is set to Crashed: the worker was "
            "killed between the two.",
            after={"Pending"},
            expect={"Running", *_ENDED, *_IDLE},
            within_s=NOT_BEGUN_AFTER_S,
            message="A worker took it, and it has not begun (the worker was killed).",
        ),
    ]
    blocks = list(notify)
    if blocks:
        found.append(_word_of_failures(blocks))
    return found


def dead_after_of(client: SyncPrefectClient) -> float:
    """Return after how many seconds without a heartbeat a run counts as dead on the server."""
    for automation in client.read_automations_by_name(f"{PREFIX}{DEAD_RUNS}"):
        if isinstance(automation.trigger, EventTrigger):
            return automation.trigger.within.total_seconds()
    return DEAD_AFTER_S


def _crashed(
    name: str, description: str, *, after: set[str], expect: set[str], within_s: float, message: str
) -> AutomationCore:
    return AutomationCore(
        name=f"{PREFIX}{name}",
        description=description,
        trigger=EventTrigger(
            match=OF_FLOW_RUNS,
            for_each={"prefect.resource.id"},
            after={f"{_STILL}{event}" for event in after},
            expect={f"{_STILL}{event}" for event in expect},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=within_s),
        ),
        actions=[
            ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)
        ],
    )


def _word_of_failures(blocks: Iterable[UUID]) -> AutomationCore:
    actions: list[ActionTypes] = [
        SendNotification(
            block_document_id=block,
            subject="patchworks: {{ flow_run.name }} has failed",
            body=_TEXT,
        )
        for block in blocks
    ]
    return AutomationCore(
        name=f"{PREFIX}word of failures",
        description="People are told of runs that have failed or crashed.",
        trigger=EventTrigger(
            match=OF_FLOW_RUNS,
            expect={f"{_STILL}Failed", f"{_STILL}Crashed", f"{_STILL}TimedOut"},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=actions,
    )


def ensure_automations(client: SyncPrefectClient, wanted: Iterable[AutomationCore]) -> None:
    """Make each automation, or bring it up to date; one that a person switched off stays off.

    Notifications to other blocks, of earlier calls or of people, stay.

    Parameters
    ----------
    client : SyncPrefectClient
        Of the server.
    wanted : iterable of AutomationCore
        The automations, known by their names.
    """
    for automation in wanted:
        there = client.read_automations_by_name(automation.name)
        if not there:
            client.create_automation(automation)
            continue
        actions = [*automation.actions, *_other_notifications(there[0], automation)]
        kept = {"enabled": there[0].enabled, "actions": actions}
        client.update_automation(there[0].id, automation.model_copy(update=kept))
        for double in there[1:]:
            client.delete_automation(double.id)


def _other_notifications(there: AutomationCore, wanted: AutomationCore) -> list[ActionTypes]:
    """Return the notifications of an automation that are not those of the wanted one."""
    ours = [a.block_document_id for a in wanted.actions if isinstance(a, SendNotification)]
    sent = [a for a in there.actions if isinstance(a, SendNotification)]
    return [action for action in sent if action.block_document_id not in ours]
