"""`patchworks watch`: looks at an inbox all the time, and emits an event for each settled image.

A trigger of the deployment starts a pass over the inbox. An event that is lost, since the server
was away, is emitted again as long as nobody has claimed the image.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from prefect.events import emit_event

from flows.inbox.arrivals import Arrival
from flows.inbox.inbox import Inbox
from patchworks.fingerprint import digest

SETTLED = "patchworks.inbox.image-settled"
"""The event's name."""

REMIND_S = 120.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Watcher:
    """Finds images that have settled and that nobody has claimed.

    Parameters
    ----------
    inbox : Inbox
        The inbox.
    settle_s : float
        Seconds for which nothing of an image may have changed.
    remind_s : float
        Seconds after which an image that nobody has claimed is said again.
    """

    inbox: Inbox
    settle_s: float
    remind_s: float = REMIND_S
    said: dict[str, float] = field(default_factory=dict)

    def look(self) -> list[Arrival]:
        """Return the images to say something of now, the oldest first."""
        now = time.monotonic()
        arrivals = self.inbox.look(self.settle_s)
        unclaimed = [
            arrival
            for arrival in arrivals
            if arrival.quiet_s >= self.settle_s
            and not arrival.waits_for
            and self.inbox.ledger.state_of(arrival.key) is None
        ]
        new = [a for a in unclaimed if now - self.said.get(a.key, -1e9) >= self.remind_s]
        keys = {arrival.key for arrival in unclaimed}
        self.said = {key: when for key, when in self.said.items() if key in keys}
        self.said |= {arrival.key: now for arrival in new}
        return new


def emit_settled(inbox: Inbox, arrival: Arrival) -> None:
    """Emit the event that an image has settled."""
    location = str(inbox.listing.location)
    emit_event(
        SETTLED,
        {
            "prefect.resource.id": f"patchworks.inbox.{digest('inbox', location)[:16]}",
            "prefect.resource.name": location,
        },
        payload={
            "inbox": location,
            "results": str(inbox.results),
            "work_dir": str(inbox.work_dir),
            "path": arrival.path,
            "n_files": len(arrival.files),
        },
    )


def watch(watcher: Watcher, *, every_s: float, say: Callable[[Arrival], None]) -> NoReturn:
    """Watch an inbox until Ctrl-C.

    Parameters
    ----------
    watcher : Watcher
        What looks.
    every_s : float
        Seconds between two looks.
    say : callable
        Gets each image that has settled.
    """
    watcher.inbox.ledger.prepare()
    while True:
        try:
            for arrival in watcher.look():
                say(arrival)
        except OSError as error:  # the file server is away: it comes back
            logger.warning("%s: %s", watcher.inbox.listing.location, error)
        time.sleep(every_s)
