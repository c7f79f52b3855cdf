"""`process inbox`: a flow that takes new images from an inbox, with one sub-run for each.

::

    every few minutes, or on an event ─► pass over the inbox ─► process image (a run each)
"""

# No `from __future__ import annotations`: a served flow is sent to the process of its run without
# this module, and would not find there what annotations that are mere text stand for.

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client

from flows.artifacts.desk import publish
from flows.errors import ServerError
from flows.inbox.inbox import Inbox
from flows.inbox.intake import PROCESS, Intake, Taking
from flows.inbox.ledger import Ledger
from flows.inbox.settings import Settings
from flows.inbox.sub_runs import PrefectRuns
from flows.owning import flow_run_id, owning
from flows.run_names import named
from flows.runners import send_library_logs
from patchworks.errors import TargetInUseError

SILENCE_S = 1800.0
"""Seconds that the server may be away before a pass gives up; the next one goes on."""

LONGEST_STAY_S = 240.0
"""Seconds that a pass stays, at most, for files that have not settled."""

_MOST_ROWS = 100


@dataclass(frozen=True)
class InboxReport:
    """What a pass over an inbox came to.

    Parameters
    ----------
    inbox : str
        Its path or URL.
    n_done, n_quarantined : int
        Images that ended so during the pass.
    n_unsettled : int
        Images that are still written to, or not complete; the next pass looks at them.
    """

    inbox: str
    n_done: int = 0
    n_quarantined: int = 0
    n_unsettled: int = 0


@flow(
    name="process inbox",
    flow_run_name=named("look into", "inbox"),
    description="Convert and segment what microscopes have written into a folder, each image once.",
    persist_result=False,
)
def process_inbox_flow(
    inbox: str,
    results: str | None = None,
    work_dir: str | None = None,
    taking: Taking = Taking(),
    settings: Settings = Settings(),
) -> InboxReport:
    """Process the images that have arrived in an inbox.

    Args:
        inbox: Folder that microscopes write into, or URL of a prefix in a bucket.
        results: Where OME-Zarr images with their labels go. None: the folder results in the inbox.
        work_dir: Local folder of the ledger and of the quarantine. None: the inbox itself.
        taking: When images are taken, and how many at once.
        settings: How images are processed that have no settings file beside them.
    """
    log = get_run_logger()
    send_library_logs("INFO")
    send_library_logs("INFO", "flows.inbox")
    place = Inbox.of(inbox, results, work_dir)
    with ExitStack() as held:
        try:
            held.enter_context(owning(place.lock(flow_run_id())))
        except TargetInUseError as error:
            log.info("nothing to do, for another pass is on: %s", error)
            return InboxReport(inbox)
        return _pass(place, taking, settings)


def _pass(inbox: Inbox, taking: Taking, settings: Settings) -> InboxReport:
    """Go through the inbox until nothing is left to do at the moment."""
    log = get_run_logger()
    with get_client(sync_client=True) as client:
        runs = PrefectRuns(client)
        runs.check(settings.deployment or PROCESS)
        intake = Intake(inbox, runs, taking, settings)
        heard = time.monotonic()
        # One that has just come is waited for: the next pass may be minutes away.
        settled_by = heard + min(taking.settle_s, LONGEST_STAY_S) + taking.poll_s
        while True:
            try:
                standing = intake.step()
            except ServerError as error:
                if time.monotonic() - heard > SILENCE_S:
                    raise
                log.warning("%s; the pass waits for it", error)
            else:
                heard = time.monotonic()
                may_settle = bool(standing.n_unsettled) and time.monotonic() < settled_by
                if not (standing.has_work or may_settle):
                    break
            time.sleep(taking.poll_s)
    if intake.n_done or intake.n_quarantined:
        _publish(inbox)
    report = InboxReport(
        str(inbox.listing.location), intake.n_done, intake.n_quarantined, standing.n_unsettled
    )
    log.info("%s", report)
    return report


def _publish(inbox: Inbox) -> None:
    publish(
        "table",
        "inbox",
        json.dumps(rows_of(inbox.ledger)),
        f"The latest images of {inbox.listing.location}.",
    )


def rows_of(ledger: Ledger) -> list[dict[str, str]]:
    """Return a row for each of the latest images: what became of it, and where or why."""
    failed, done = (ledger.latest(state, _MOST_ROWS) for state in ("quarantined", "done"))
    return [
        *[{"image": r.path, "state": "quarantined", "result": r.reason} for r in failed],
        *[{"image": r.path, "state": "done", "result": r.target} for r in done],
    ]
