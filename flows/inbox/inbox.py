"""An inbox with all that belongs to it: where results go, the ledger, the quarantine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flows.inbox.arrivals import Arrival, look, stem_of
from flows.inbox.ledger import Ledger
from flows.inbox.listing import Listing, below, same_place
from flows.inbox.memory import Memory
from flows.inbox.quarantine import Quarantine
from patchworks.errors import InputError
from patchworks.io.location import Location
from patchworks.io.run_lock import RunLock

RESULTS = "results"
QUARANTINE = "quarantine"
LEDGER = ".ledger"
FETCHED = ".fetched"


@dataclass(frozen=True, slots=True)
class Inbox:
    """A folder or prefix that microscopes write into, and where what becomes of its files goes.

    Parameters
    ----------
    listing : Listing
        The inbox.
    results : Location
        Where OME-Zarr images with their labels go.
    work_dir : Path
        Local folder of the ledger, the quarantine, and copies of files from a bucket.
    """

    listing: Listing
    results: Location
    work_dir: Path

    @classmethod
    def of(cls, inbox: str, results: str | None = None, work_dir: str | None = None) -> Inbox:
        """Return an inbox whose results and ledger lie in it, unless told otherwise.

        Raises
        ------
        InputError
            If the inbox is a URL and one of the others is missing, or results were to go into the
            inbox itself.
        SourceNotFoundError
            If there is no such folder.
        """
        location = Location.parse(inbox, "inbox")
        if not location.is_local and (results is None or work_dir is None):
            raise InputError(
                f"inbox={inbox}: a URL; say where the results go with results=, and give a local "
                f"folder for the ledger with work_dir="
            )
        listing = Listing(location)
        listing.check()
        place = Location.parse(results, "results") if results else location / RESULTS
        if same_place(location, place):
            raise InputError(
                f"results={results}: is the inbox itself, where each result would be a new image; "
                f"name a folder in it, such as {location / RESULTS}, or one elsewhere"
            )
        work = Location.parse(work_dir, "work_dir") if work_dir else location
        if not work.is_local:
            raise InputError(f"work_dir={work_dir}: a URL; give a local folder")
        return cls(listing, place, work.path)

    @property
    def ledger(self) -> Ledger:
        """What became of each image."""
        return Ledger(self.work_dir / LEDGER)

    @property
    def quarantine(self) -> Quarantine:
        """Why images failed."""
        return Quarantine(self.work_dir / QUARANTINE)

    @property
    def leave_out(self) -> set[str]:
        """Folders in the inbox that hold no arrivals."""
        others = (self.results, Location(str(self.work_dir / QUARANTINE)))
        return {path for other in others if (path := below(self.listing.location, other))}

    def lock(self, run: str = "") -> RunLock:
        """Return the right to go through the inbox; one pass at a time."""
        self.ledger.prepare()
        return RunLock(self.ledger.root / "pass.lock", f"inbox {self.listing.location}", run)

    def look(self, settle_s: float) -> list[Arrival]:
        """Look at the inbox once, and keep what was seen; the oldest image first."""
        seen = self.ledger.seen
        memory = Memory.load(seen)
        arrivals = look(
            self.listing, memory, now=time.time(), settle_s=settle_s, leave_out=self.leave_out
        )
        memory.save(seen)
        # Results of other settings may lie outside of `leave_out`.
        return [a for a in arrivals if not self.ledger.is_target(str(self.listing.place(a.path)))]

    def target_of(self, path: str) -> str:
        """Return where the OME-Zarr image of a file goes, and keep it from other files."""
        return self.ledger.give_target(self._targets(path), path)

    def _targets(self, path: str) -> Iterator[str]:
        """Yield names for a result: scan.ome.zarr, scan.czi.ome.zarr, scan.czi-2.ome.zarr, ..."""
        name = PurePosixPath(path).name
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        for stem in itertools.chain([stem_of(name), name], numbered):
            yield str(self.results / str(PurePosixPath(path).with_name(f"{stem}.ome.zarr")))
