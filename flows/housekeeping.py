"""`clean up`: a nightly flow that removes what interrupted runs have left and nobody went on with.

::

    free GPU slots ─► find what is old enough ─► hold the lock of its output ─► remove ─► report
"""

# No `from __future__ import annotations`: a served flow is sent to the process of its run without
# this module, and would not find there what annotations that are mere text stand for.

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger
from pydantic import Field

from flows.artifacts.desk import ask, publish
from flows.artifacts.units import bytes_text, seconds_text
from flows.facility.pools import free_forgotten_slots
from flows.runners import send_library_logs
from patchworks.errors import InputError
from patchworks.io.abandoned import Fate, Remains, find_remains, remove
from patchworks.io.location import Location

_DAY_S = 86_400.0
_MOST_ROWS = 500


@dataclass(frozen=True)
class CleanUpReport:
    """What a clean-up came to.

    Parameters
    ----------
    n_bytes : int
        Bytes that were removed, or would be.
    n_folders : dict of str to int
        Folders by what became of them: removed, would be removed, in use, not removed.
    """

    n_bytes: int = 0
    n_folders: dict[str, int] = field(default_factory=dict)


@flow(
    name="clean up",
    flow_run_name="clean up",
    description="Remove what interrupted runs have left behind; nothing of a run that lives.",
    persist_result=False,
)
def housekeeping_flow(
    folders: list[str],
    older_than_days: Annotated[float, Field(ge=0)] = 30.0,
    dry_run: bool = True,
) -> CleanUpReport:
    """Remove stages and unfinished images that nobody has gone on with; free forgotten GPU slots.

    Args:
        folders: Where to look; folders below them too. Those in a bucket (a URL) are left out.
        older_than_days: Days for which nothing in them may have been written.
        dry_run: Only report what would be removed.
    """
    log = get_run_logger()
    send_library_logs("INFO")
    if not dry_run:
        n_slots = ask(free_forgotten_slots, "forgotten GPU slots")
        log.info("%s GPU slots that nobody held were freed", n_slots or 0)
    places, remote = _places(folders)
    for url in remote:
        log.info("%s: left out, for only folders that this machine sees are looked into", url)
    if not places:
        log.info("folders=%s: none to look into", folders)
    age_s = older_than_days * _DAY_S
    ended: list[tuple[Remains, Fate]] = []
    for place in places:
        for remains in find_remains(place, older_than_s=age_s):
            fate = remove(remains, older_than_s=age_s, dry_run=dry_run)
            log.info("%s: %s", remains.path, fate)
            ended.append((remains, fate))
    report = report_of(ended)
    _publish(ended, report, dry_run=dry_run)
    log.info("%s", report)
    return report


def _places(folders: list[str]) -> tuple[list[Path], list[str]]:
    """Return the folders to look in, and the URLs that are none."""
    said = [folder for folder in folders if folder]
    remote = [folder for folder in said if not Location.parse(folder, "folders").is_local]
    places = [Path(folder).expanduser() for folder in said if folder not in remote]
    if not all(place.is_absolute() for place in places):
        raise InputError(f"folders={folders}: expected absolute paths of folders to look in")
    return places, remote


def report_of(ended: list[tuple[Remains, Fate]]) -> CleanUpReport:
    """Return the sums of what became of each folder."""
    gone = [remains for remains, fate in ended if fate in ("removed", "would be removed")]
    counts: Counter[str] = Counter(fate for _, fate in ended)
    return CleanUpReport(sum(remains.n_bytes for remains in gone), dict(counts))


def _publish(ended: list[tuple[Remains, Fate]], report: CleanUpReport, *, dry_run: bool) -> None:
    rows = [
        {
            "folder": str(remains.path),
            "size": bytes_text(remains.n_bytes),
            "not written for": seconds_text(remains.age_s),
            "fate": fate,
        }
        for remains, fate in ended[:_MOST_ROWS]
    ]
    done = "would be removed" if dry_run else "removed"
    said = f"{bytes_text(report.n_bytes)} {done}, in {len(ended)} folders that were found."
    publish("table", "clean-up", json.dumps(rows), said)
