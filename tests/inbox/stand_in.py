"""A stand-in for the Prefect server: runs by idempotency key, which end when they are told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.inbox.inbox import Inbox
from flows.inbox.intake import Intake, Outcome, Standing, Taking
from flows.inbox.settings import Settings

DONE = Outcome("done")
AS_THE_FLOW = Settings()


class Runs:
    """What the server knows: outlives every pass."""

    def __init__(self, limit: int = 1000) -> None:
        self.by_key: dict[str, str] = {}
        self.asked: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.ended: dict[str, Outcome] = {}
        self.limit = limit

    def start(
        self, deployment: str, parameters: Mapping[str, Any], *, name: str, idempotency_key: str
    ) -> str:
        if idempotency_key not in self.by_key:
            run = f"run-{len(self.by_key)}"
            self.by_key[idempotency_key] = run
            self.asked[run] = (deployment, parameters)
            assert len(self.going_on) <= self.limit, "more at once than the limit"
        return self.by_key[idempotency_key]

    def outcomes(self, runs: Sequence[str]) -> dict[str, Outcome]:
        return {run: self.ended.get(run, Outcome("going on")) for run in runs}

    @property
    def going_on(self) -> list[str]:
        return [run for run in self.asked if run not in self.ended]

    @property
    def sources(self) -> list[str]:
        """Which image each run was asked for, in order."""
        return [str(parameters["source"]) for _, parameters in self.asked.values()]

    def end_oldest(self, outcome: Outcome = DONE) -> None:
        if self.going_on:
            self.ended[self.going_on[0]] = outcome


def intake(inbox: Inbox, runs: Runs, default: Settings = AS_THE_FLOW, **taking: Any) -> Intake:
    inbox.ledger.prepare()
    return Intake(inbox, runs, Taking(**{"settle_s": 0, "limit": 1000, **taking}), default)


def step(inbox: Inbox, runs: Runs, **taking: Any) -> Standing:
    return intake(inbox, runs, **taking).step()
