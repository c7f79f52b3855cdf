"""The runs of single images on the Prefect server: asked for, and looked after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from flows.errors import ServerError
from flows.inbox.intake import Outcome
from patchworks import errors
from patchworks.errors import InputError

_AT_A_TIME = 200  # the most that a server returns
_TAG = "inbox"
_RAISED = "Flow run encountered an exception: "


class PrefectRuns:
    """Sub-runs of a deployment, each in a process of its own on whatever worker takes it.

    Parameters
    ----------
    client : SyncPrefectClient
        Of the server, kept open: one that has connected once waits for a server that starts anew.
    """

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    def check(self, deployment: str) -> None:
        """Raise InputError if there is no such deployment on the server."""
        with _server_asked():
            try:
                self.client.read_deployment_by_name(deployment)
            except ObjectNotFound as error:
                raise _no_deployment(deployment) from error

    def start(
        self, deployment: str, parameters: Mapping[str, Any], *, name: str, idempotency_key: str
    ) -> str:
        """Ask for a run of a deployment, as a part of the flow run of this moment.

        Raises
        ------
        InputError
            If there is no such deployment, or it does not take these parameters.
        ServerError
            If the server does not answer.
        """
        with _server_asked():
            try:
                run: Any = run_deployment(
                    deployment,
                    parameters=dict(parameters),
                    flow_run_name=name,
                    timeout=0,
                    tags=[_TAG],
                    idempotency_key=idempotency_key,
                )
            except ObjectNotFound as error:
                raise _no_deployment(deployment) from error
            except PrefectHTTPStatusError as error:
                if error.response.status_code not in (409, 422):
                    raise
                raise InputError(f"{deployment}: {error.response.text}") from error
        return str(run.id)

    def outcomes(self, runs: Sequence[str]) -> dict[str, Outcome]:
        """Return what the server knows of each run; one that it does not know is left out.

        Raises
        ------
        ServerError
            If the server does not answer.
        """
        found: dict[str, Outcome] = {}
        for start in range(0, len(runs), _AT_A_TIME):
            ids = [UUID(run) for run in runs[start : start + _AT_A_TIME]]
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=ids))
            with _server_asked():
                answer = self.client.read_flow_runs(flow_run_filter=wanted, limit=_AT_A_TIME)
            found |= {str(run.id): outcome_of(run) for run in answer}
        return found


def outcome_of(run: FlowRun) -> Outcome:
    """Return what a flow run's state says of the image.

    A worker that asks a server which is busy cancels its run: the deployment were no longer there.
    """
    state = run.state
    if state is None or not state.is_final():
        return Outcome("going on")
    message = state.message or ""
    if state.type == StateType.FAILED:
        return _outcome_of_failed(message)
    if state.type == StateType.CANCELLED and not message.startswith("Deployment "):
        return Outcome("failed", f"somebody cancelled its run. {message}".strip())
    return Outcome("done") if state.type == StateType.COMPLETED else Outcome("crashed", message)


def _outcome_of_failed(message: str) -> Outcome:
    if not message.startswith(_RAISED):
        return Outcome("failed", message or "its run failed; see its page")
    message = message.removeprefix(_RAISED)
    kind = getattr(errors, message.partition(":")[0], Exception)
    if kind is errors.TargetInUseError:
        return Outcome("busy", message)
    return Outcome("failed" if will_come_again(kind) else "crashed", message)


def will_come_again(kind: type[BaseException]) -> bool:
    """Whether the same image has the same error again: not so if a server or worker was away.

    Examples
    --------
    >>> will_come_again(errors.SegmenterError), will_come_again(errors.ClientError)
    (True, False)
    """
    ours = issubclass(kind, errors.PatchworksError) and not kind.heals
    return ours and kind is not errors.ClientError


def _no_deployment(name: str) -> InputError:
    return InputError(
        f"there is no deployment {name!r} on this server; run `patchworks deploy`, or correct "
        f"deployment= in the settings"
    )


@contextmanager
def _server_asked() -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500:
            raise
        raise ServerError(f"the Prefect server does not answer: {error!r}") from error
