"""The progress artifact of a step: a bar that moves, the rate, the time left."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from types import TracebackType
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactUpdate

from flows.artifacts.desk import ask, current_flow_run, publish, run_logger
from flows.artifacts.units import count_text, left_text, rate_text, seconds_text

MIN_INTERVAL_S = 2.0
MAX_INTERVAL_S = 30.0
N_UPDATES = 300
"""Updates until they come less often: the server keeps an event of each."""

PAUSE_S = 60.0
"""How long nothing is sent after the server did not take an update."""

WINDOW_S = 60.0
WINDOW_DONE = 20
"""The rate is that of the last minute, or of the last 20 done where they took longer."""


_SILENT = logging.getLogger(f"{__name__}.silent")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


class Rate:
    """How fast work goes, of late, and since the start.

    Parameters
    ----------
    now : float
        Time, in seconds, at the start.
    done : int
        Done before the start, and no merit of this run.
    """

    def __init__(self, now: float, done: int) -> None:
        self._first = (now, done)
        self._samples = deque([self._first])

    def add(self, now: float, done: int) -> None:
        """Note how much is done now."""
        self._samples.append((now, done))
        while len(self._samples) > 2:
            since, before = self._samples[1]
            if now - since < WINDOW_S or done - before < WINDOW_DONE:
                break
            self._samples.popleft()

    def lately(self) -> float:
        """Return the rate per second of the window."""
        return _per_second(self._samples[0], self._samples[-1])

    def overall(self) -> float:
        """Return the rate per second since the start."""
        return _per_second(self._first, self._samples[-1])


def _per_second(first: tuple[float, int], last: tuple[float, int]) -> float:
    return max(0, last[1] - first[1]) / max(last[0] - first[0], 1e-3)


class Progress:
    """A progress artifact of the current flow run, kept up to date.

    Outside of a flow run nothing is published. Whatever the server says, nothing is raised. Any
    thread may update it.

    Parameters
    ----------
    what : str
        The step; with the unit, which it may end in, it makes the artifact's key, such as
        ``segment-tiles``.
    unit : str
        What is counted, in the plural.
    total, done : int
        How many there are, and how many of them an earlier try had done.

    Examples
    --------
    >>> with Progress("segment", "tiles", total=4) as progress:
    ...     progress.update(2)
    ...     progress.update(4)
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int,
        done: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        named = what if what.endswith(unit) else f"{what} {unit}"
        self.key = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")
        self.unit, self.total = unit, total
        self._what, self._clock = what, clock
        self._done = self._done_before = done
        self._start = self._sent = clock()
        self._rate = Rate(self._start, done)
        self._lock = threading.Lock()
        self._flow_run_id = current_flow_run()
        self._logger = run_logger()
        self._paused_until, self._has_failed = 0.0, False
        self._artifact: UUID | None = None
        self._closed = False
        # The settings of this thread, which others do not have.
        self._context = copy_context()
        self._send()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, done: int) -> None:
        """Say how many are done, those of earlier tries included.

        Sent at most every 2 s, less often in a run of hours; the last one always.
        """
        with self._lock:
            if self._closed:
                return
            now = self._clock()
            is_news = done != self._done
            self._done = done
            interval = (now - self._start) / N_UPDATES
            interval = min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, interval))
            if now - self._sent >= interval or (is_news and done >= self.total):
                self._send()

    def close(self) -> None:
        """Say how it ended; what comes later is not shown."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._send()

    def text(self) -> str:
        """Return what the artifact says now.

        Examples
        --------
        >>> Progress("segment", "tiles", total=1234).text().replace("\u00a0", " ")
        '0 of 1 234 tiles'
        """
        share = f"{count_text(self._done)} of {count_text(self.total)} {self.unit}"
        seconds = self._sent - self._start
        n_new = self._done - self._done_before
        if self._done >= self.total:
            if n_new <= 0:
                return f"{share}, done before" if self.total else f"no {self.unit} to do"
            parts = [f"in {seconds_text(seconds)}", rate_text(self._rate.overall(), self.unit)]
        elif self._closed:
            parts = [f"stopped after {seconds_text(seconds)}"]
        elif n_new > 0:
            rate = self._rate.lately()
            left = (self.total - self._done) / max(rate, 1e-9)
            # The time left comes first: a card of the UI shows 40 characters.
            parts = [f"{left_text(left)} left", rate_text(rate, self.unit)]
        else:
            parts = []
        if self._done_before:
            parts.append(f"{count_text(self._done_before)} of them done before")
        return ", ".join([share, *parts])

    def _send(self) -> None:
        now = self._clock()
        self._sent = now
        self._rate.add(now, self._done)
        if self._flow_run_id is None or now < self._paused_until:
            return
        if not self._context.copy().run(self._publish):
            self._paused_until = now + PAUSE_S
            self._has_failed = True

    def _publish(self) -> bool:
        """Create or update the artifact; return whether the server took it."""
        percent = round(100 * min(1.0, max(0.0, self._done / self.total if self.total else 1)), 1)
        # One warning is enough for a server that stays away.
        logger = _SILENT if self._has_failed else self._logger
        if self._artifact is None:
            self._artifact = publish(
                *("progress", self.key, percent, self.text()),
                flow_run_id=self._flow_run_id,
                logger=logger,
            )
            return self._artifact is not None
        artifact, update = self._artifact, ArtifactUpdate(data=percent, description=self.text())

        def send(client: SyncPrefectClient) -> bool:
            client.update_artifact(artifact, update)
            return True

        return bool(ask(send, f"the progress of {self._what!r}", logger))
