"""What the library warned of in a flow run, wherever it ran: read back from the run's log."""

from __future__ import annotations

import logging
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterLevel

from flows.runners import LIBRARY_LOGGER

MAX_LINES = 20

logger = logging.getLogger(__name__)


def warnings_of(flow_run_id: str) -> tuple[str, ...]:
    """Return the distinct warnings of the library in a flow run, at most 20.

    Log lines arrive on the server some seconds late: the last ones may be missing.
    """
    if not flow_run_id:
        return ()
    wanted = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[UUID(flow_run_id)]),
        level=LogFilterLevel(ge_=logging.WARNING),
    )
    try:
        with get_client(sync_client=True) as client:
            lines = client.read_logs(log_filter=wanted, limit=200)
    except Exception as error:  # noqa: BLE001 - a report without them is better than none
        logger.warning("the run's log cannot be read back: %r", error)
        return ()
    ours = [line.message for line in lines if line.name.split(".")[0] == LIBRARY_LOGGER]
    return tuple(dict.fromkeys(ours))[:MAX_LINES]
