"""Task runs that hang or whose worker died.

A call into a driver cannot be interrupted, but its process can be ended; and of a worker that died
nobody tells the server.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Crashed

logger = logging.getLogger(__name__)

RESTART_S = 60.0
"""Seconds that a worker may take to come back."""

ANSWER_S = 10.0
"""Seconds that the server may take to answer while a run ends."""


def has_begun(task_run_id: UUID, seconds: float) -> bool:
    """Return whether a task run has been running for so many seconds, by the server's word.

    One that only waits for a worker is not hung. A server that gives no answer says nothing.
    """
    try:
        with get_client(sync_client=True) as client:
            run = client.read_task_run(task_run_id)
    except Exception as error:  # noqa: BLE001 - it is looked at again in a moment
        logger.warning("task run %s cannot be looked at: %r", task_run_id, error)
        return False
    if run.state is None or not run.state.is_running() or run.start_time is None:
        return False
    began = min(run.start_time, run.state.timestamp)
    return datetime.now(UTC) - began > timedelta(seconds=seconds)


def report_lost(task_run_id: UUID, message: str) -> None:
    """Set a task run that lost its worker to Crashed: the server believes it running for ever."""
    try:
        with get_client(sync_client=True) as client:
            client.set_task_run_state(task_run_id, Crashed(message=message), force=True)
    except Exception as error:  # noqa: BLE001 - the run goes on whatever its page shows
        logger.warning("task run %s stays as it is shown: %r", task_run_id, error)


def report_left(task_run_ids: Iterable[UUID], message: str) -> None:
    """Set task runs that nobody will see to their end to Crashed; a silent server ends it soon."""
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": ANSWER_S}) as client,
        ):
            for task_run_id in task_run_ids:
                with suppress(PrefectHTTPStatusError):  # 404: it was never begun
                    client.set_task_run_state(task_run_id, Crashed(message=message), force=True)
    except Exception as error:  # noqa: BLE001 - the run ends whatever its page shows
        logger.warning("task runs stay as they are shown: %r", error)


def restart_worker_of(client: Any, future: Any) -> None:
    """End the worker processes that work on a future, forget it, and have them started anew."""
    addresses = [a for a, keys in client.processing().items() if future.key in keys]
    client.cancel([future], force=True)
    if not addresses:
        return
    logger.warning("ending the workers %s: their task hangs", addresses)
    try:
        client.restart_workers(addresses, timeout=RESTART_S, raise_for_error=False)
    except Exception as error:  # noqa: BLE001 - without a nanny nobody starts them anew
        logger.warning("the workers %s could not be started anew: %r", addresses, error)
