"""Who owns an output: this flow run, once the run that died holding it is reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.context import FlowRunContext

from flows.crashed import report_crashed
from patchworks.io.run_lock import RunLock


@contextmanager
def owning(lock: RunLock) -> Iterator[RunLock]:
    """Hold the lock of an output; a run that died holding it is reported as crashed.

    Raises
    ------
    TargetInUseError
        If another run that is alive holds it.
    """
    with lock:
        if lock.previous is not None and lock.previous.run:
            report_crashed(UUID(lock.previous.run), "its process died; a later run goes on from it")
        yield lock


def flow_run_id() -> str:
    """Return the id of the flow run of this moment."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""
