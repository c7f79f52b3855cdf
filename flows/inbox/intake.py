"""One step of work on an inbox: what ended is entered, what settled is claimed and begun.

Every step can be cut off anywhere and taken again: what was entered counts, and a sub-run that was
asked for twice, by the same name, is made once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from pydantic import Field

from flows.inbox.arrivals import Arrival
from flows.inbox.fetch import forget_copy, source_of
from flows.inbox.inbox import Inbox
from flows.inbox.ledger import Record
from flows.inbox.settings import Settings, digest_of, settings_files, settings_of
from flows.parameters import Group
from flows.run_names import last_part
from patchworks.errors import InputError, PatchworksError

logger = logging.getLogger(__name__)

PROCESS = "process image/cpu"
"""The deployment that processes an image, unless settings name another one."""

BUSY_S = 60.0
"""Seconds until an image that another run is at work on is asked for again."""


class Taking(Group):
    """When images are taken from the inbox, and how many at once."""

    limit: int = Field(default=2, ge=1, le=1000)
    """How many images are processed at once."""
    settle_s: float = Field(default=60.0, ge=0, le=86_400)
    """Seconds for which nothing of an image may have changed: more than the longest pause that a
    microscope or a copying program makes while it writes."""
    give_up_s: float = Field(default=86_400.0, gt=0)
    """Seconds after which an image that is not complete, such as a set of files of which one is
    missing, is quarantined."""
    max_crashes: int = Field(default=3, ge=1, le=100)
    """How many runs of an image may end without a result (killed, the machine went down, the server
    was away) before it is quarantined."""
    trust_settings: bool = False
    """Let settings files in the inbox name functions to import, clusters, and places to write to:
    whoever may write to the inbox can then run code as the worker."""
    poll_s: float = Field(default=5.0, gt=0, le=3600)
    """Seconds between two looks while there is work."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of a sub-run.

    Parameters
    ----------
    kind : {"going on", "done", "failed", "crashed", "busy"}
        Failed runs would fail again; crashed ones ended without a word, or since a server or a
        worker was away; busy ones found that another run, which the server may take for dead, is at
        work on the same image.
    reason : str
        What it said.
    """

    kind: Literal["going on", "done", "failed", "crashed", "busy"]
    reason: str = ""


class SubRuns(Protocol):
    """What carries out the work on one image."""

    def start(
        self, deployment: str, parameters: Mapping[str, Any], *, name: str, idempotency_key: str
    ) -> str:
        """Start a run, and return its id; asked again with the same key, return the same.

        Raises
        ------
        InputError
            If there is no such deployment, or it does not take these parameters.
        """
        ...

    def outcomes(self, runs: Sequence[str]) -> Mapping[str, Outcome]:
        """Return what is known of each run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an inbox stands after a step.

    Parameters
    ----------
    n_open : int
        Images that are being processed.
    n_ready : int
        Images that wait for their turn.
    n_unsettled : int
        Images that are still written to, or not complete.
    """

    n_open: int
    n_ready: int
    n_unsettled: int

    @property
    def has_work(self) -> bool:
        """Whether to look again soon."""
        return bool(self.n_open or self.n_ready)


@dataclass(slots=True)
class Intake:
    """Takes images from an inbox, the oldest first, each once.

    Parameters
    ----------
    inbox : Inbox
        The inbox, whose lock the caller holds.
    runs : SubRuns
        What processes an image.
    taking : Taking
        When and how many.
    default : Settings
        For images without a settings file.
    n_done, n_quarantined : int
        Images that ended so since this object was made.
    """

    inbox: Inbox
    runs: SubRuns
    taking: Taking
    default: Settings
    n_done: int = 0
    n_quarantined: int = 0

    def step(self) -> Standing:
        """Take one step, and return how the inbox stands after it."""
        self._enter_what_ended()
        arrivals = self.inbox.look(self.taking.settle_s)
        self._take_up_again(arrivals)
        settled = [a for a in arrivals if a.quiet_s >= self.taking.settle_s]
        unknown = [a for a in settled if self.inbox.ledger.state_of(a.key) is None]
        incomplete = [a for a in unknown if a.waits_for]
        for arrival in incomplete:
            if arrival.quiet_s >= self.taking.give_up_s:
                self._give_up(arrival)
        ready = [a for a in unknown if not a.waits_for]
        n_left = self._start_next(ready)
        return Standing(
            n_open=len(self.inbox.ledger.keys("open")),
            n_ready=n_left,
            n_unsettled=len(arrivals) - len(settled) + len(incomplete),
        )

    def _enter_what_ended(self) -> None:
        begun = [record for record in self.inbox.ledger.records("open") if record.flow_run]
        outcomes = self.runs.outcomes([record.flow_run for record in begun])
        for record in begun:
            outcome = outcomes.get(record.flow_run, Outcome("crashed", "the server knows no more"))
            if outcome.kind == "done":
                self._done(record)
            elif outcome.kind == "failed":
                self._quarantine(record, outcome.reason)
            elif outcome.kind == "crashed":
                self._crashed(record, outcome.reason)
            elif outcome.kind == "busy":
                later = replace(record.waiting(), not_before=time.time() + BUSY_S)
                self.inbox.ledger.update(later)

    def _done(self, record: Record) -> None:
        self.inbox.quarantine.release(record.path)
        forget_copy(self.inbox, record.key)
        self.inbox.ledger.close(record, "done")
        self.n_done += 1
        logger.info("%s: done, %s", record.path, record.target)

    def _crashed(self, record: Record, reason: str) -> None:
        n_crashed = record.n_crashed + 1
        if n_crashed >= self.taking.max_crashes:
            self._quarantine(
                record, f"{n_crashed} runs ended without a result; the last one: {reason}"
            )
            return
        logger.warning("%s: its run ended without a result (%s); begun again", record.path, reason)
        self.inbox.ledger.update(replace(record.waiting(), n_crashed=n_crashed))

    def _quarantine(self, record: Record, reason: str) -> None:
        run = f"\n\nflow run {record.flow_run}" if record.flow_run else ""
        where = str(self.inbox.listing.place(record.path))
        self.inbox.quarantine.put(record.path, where, f"{reason}{run}")
        forget_copy(self.inbox, record.key)
        self.inbox.ledger.close(replace(record, reason=reason), "quarantined")
        self.n_quarantined += 1

    def _give_up(self, arrival: Arrival) -> None:
        record = self._record_of(arrival)
        if self.inbox.ledger.claim(record):
            waited = f"nothing changed for {arrival.quiet_s:.0f} s (give_up_s)"
            self._quarantine(record, f"{arrival.path}: {arrival.waits_for}; {waited}")

    def _take_up_again(self, arrivals: Sequence[Arrival]) -> None:
        """Open quarantined images again whose text was deleted, or whose settings are others."""
        ledger, quarantine = self.inbox.ledger, self.inbox.quarantine
        keys = ledger.keys("quarantined")
        for arrival in arrivals:
            if arrival.key not in keys or arrival.waits_for:
                continue
            record = ledger.read("quarantined", arrival.key)
            settings = digest_of(settings_files(self.inbox.listing, arrival.path))
            if record is None or (
                quarantine.holds(arrival.path) and record.settings in ("", settings)
            ):
                continue
            logger.info("%s: taken up again", arrival.path)
            again = replace(record.waiting(), settings=settings, n_crashed=0, reason="")
            quarantine.release(arrival.path)
            ledger.reopen(again)

    def _start_next(self, ready: Sequence[Arrival]) -> int:
        """Start what is open, then claim more, up to the limit; return how many are left."""
        ledger = self.inbox.ledger
        records = ledger.records("open")
        asked = [record for record in records if record.request is not None]
        # Of one without a run's id, the asking was cut off: the same question has the same answer.
        n_running = sum(bool(record.flow_run) or self._ask(record) for record in asked)
        n_waiting = len(records) - len(asked)
        for record in records:
            if record.not_before > time.time():
                n_waiting -= record.request is None  # it keeps nobody else waiting
            elif record.request is None and n_running < self.taking.limit:
                n_running += self._start(record)
                n_waiting -= 1
        n_left = len(ready)
        for arrival in ready:
            if n_running >= self.taking.limit or n_waiting:
                break
            record = self._record_of(arrival)
            n_running += ledger.claim(record) and self._start(record)
            n_left -= 1
        return n_left

    def _record_of(self, arrival: Arrival) -> Record:
        return Record(
            key=arrival.key,
            path=arrival.path,
            target=self.inbox.target_of(arrival.path),
            files=tuple([file.path for file in arrival.files]),
            modified=arrival.modified,
            settings=digest_of(settings_files(self.inbox.listing, arrival.path)),
        )

    def _start(self, record: Record) -> bool:
        """Start the sub-run of a claimed image; False if it was quarantined instead."""
        try:
            files = settings_files(self.inbox.listing, record.path)
            trusted = self.taking.trust_settings
            settings = settings_of(self.inbox.listing, files, self.default, trusted=trusted)
            source = source_of(self.inbox, record.path, record.files, record.key)
        except (PatchworksError, OSError) as error:
            self._quarantine(record, str(error))
            return False
        parameters = {"source": source, "target": record.target, **settings.parameters()}
        deployment = settings.deployment or PROCESS
        asking = record.asking({"deployment": deployment, "parameters": parameters})
        return self._ask(self.inbox.ledger.update(asking))

    def _ask(self, record: Record) -> bool:
        """Ask for the sub-run that a record is of; False if it was quarantined instead."""
        request = record.request or {}
        try:
            run = self.runs.start(
                request["deployment"],
                request["parameters"],
                name=f"process {last_part(record.path)}",
                idempotency_key=record.idempotency_key,
            )
        except InputError as error:
            self._quarantine(record, str(error))
            return False
        self.inbox.ledger.update(replace(record, flow_run=run))
        return True
