"""When a task is tried again, and when that would only cost time."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from patchworks.errors import may_heal

JITTER = 0.5
"""Share by which delays vary, so that workers do not all come back at once."""


def retry_if_it_may_heal(_: Any, task_run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Return whether a failed task is worth another try: a wrong shape never is."""
    failure = state.result(raise_on_failure=False)
    return not isinstance(failure, BaseException) or may_heal(failure)


def retrying(retries: int, delay_s: float) -> dict[str, Any]:
    """Return task options: so many retries, each after twice the delay of the one before.

    Examples
    --------
    >>> retrying(2, 5.0)["retry_delay_seconds"](2)
    [5.0, 10.0]
    """
    return {
        "retries": retries,
        "retry_delay_seconds": exponential_backoff(delay_s),
        "retry_jitter_factor": JITTER,
        "retry_condition_fn": retry_if_it_may_heal,
    }
