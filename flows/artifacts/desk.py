"""The one way to the server for artifacts: short waits, and never an error."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.exceptions import MissingContextError
from prefect.logging.loggers import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.errors import ServerError

ANSWER_WITHIN_S = 10.0
"""How long the server may take to answer about an artifact."""

Answer = TypeVar("Answer")
Logger = logging.Logger | logging.LoggerAdapter[Any]


def current_flow_run() -> UUID | None:
    """Return the flow run that this code is a part of, if there is one."""
    found = flow_run.id
    return UUID(found) if found else None


def run_logger() -> Logger:
    """Return the run's logger, or one of this module's outside of any run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)


@contextmanager
def short_client(n_retries: int = 1) -> Iterator[SyncPrefectClient]:
    """Open a client that gives up early: Prefect's own may try for many minutes.

    Raises
    ------
    ServerError
        If no server is configured; Prefect would start one, which nobody would stop.
    """
    # A URL that was set after Prefect was imported stands, for new threads, in the environment.
    url = PREFECT_API_URL.value() or os.environ.get("PREFECT_API_URL")
    if not url:
        raise ServerError(
            "no Prefect server is configured, and none is started for artifacts alone: set "
            "PREFECT_API_URL"
        )
    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: n_retries}),
        get_client(httpx_settings={"timeout": ANSWER_WITHIN_S}, sync_client=True) as client,
    ):
        yield client


def ask(
    question: Callable[[SyncPrefectClient], Answer], what: str, logger: Logger | None = None
) -> Answer | None:
    """Return what the server answers, or None where it does not, after a warning in the log.

    Parameters
    ----------
    question : callable
        Gets a client.
    what : str
        What is left out without an answer, for the log.
    logger : logging.Logger, optional
        The run's by default.
    """
    try:
        with short_client() as client:
            return question(client)
    except Exception as error:  # noqa: BLE001 - whatever server and network say: the run goes on
        (logger or run_logger()).warning(
            "%s cannot be shown in the Prefect UI, the run goes on: %r", what, error
        )
        return None


def publish(
    kind: str,
    key: str,
    content: Any,
    description: str,
    *,
    flow_run_id: UUID | None = None,
    logger: Logger | None = None,
) -> UUID | None:
    """Create an artifact of a flow run; return its id, or None if that was not possible.

    Parameters
    ----------
    kind : {"markdown", "table", "progress"}
        Type of the artifact, as the UI knows it.
    key : str
        Lower case letters, digits and dashes.
    content
        JSON text of a table, markdown, or a percentage.
    description : str
        Markdown, shown beside or below the content.
    flow_run_id : UUID, optional
        The current flow run by default; without any, nothing is published.
    logger : logging.Logger, optional
        The run's by default.
    """
    owner = flow_run_id or current_flow_run()
    if owner is None:
        return None
    artifact = ArtifactCreate(
        key=key, type=kind, description=description, data=content, flow_run_id=owner
    )
    created = ask(lambda client: client.create_artifact(artifact), f"the artifact {key!r}", logger)
    return None if created is None else created.id
