"""What became of each image of an inbox: a file per image, so that no kill loses or doubles one.

::

    .ledger/open/<key>.json           claimed; being processed
    .ledger/done/<key>.json           its label image is there
    .ledger/quarantined/<key>.json    it failed; the reason lies in quarantine/
    .ledger/targets/<digest>          which file a result's name was given to
    .ledger/seen.json                 see `flows.inbox.memory`

An image is claimed by making its file, which one only can do. A state changes by renaming it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from patchworks.errors import TargetNotWritableError
from patchworks.fingerprint import digest
from patchworks.io.stage import write_whole

logger = logging.getLogger(__name__)

State = Literal["open", "done", "quarantined"]
STATES: tuple[State, ...] = ("open", "done", "quarantined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of an image that was claimed.

    Parameters
    ----------
    key : str
        What tells the image from every other; see `Arrival.key`.
    path : str
        The file to open, below the inbox.
    target : str
        Path or URL of its OME-Zarr image.
    files : tuple of str
        All of its files, below the inbox.
    modified : float
        When it was written, in seconds since 1970; the order of work.
    settings : str
        Digest of the settings files that counted.
    token : str
        Of this claim: with `attempt` it names a sub-run, so that asking twice makes one.
    attempt : int
        Sub-runs that were asked for.
    request : dict, optional
        What the last one was asked for with; None while the image waits for its turn.
    flow_run : str
        Id of that one; empty until it is known.
    n_crashed : int
        How many of them ended without a word.
    not_before : float
        When it may be asked for again, in seconds since 1970.
    reason : str
        Why it is quarantined.
    """

    key: str
    path: str
    target: str
    files: tuple[str, ...] = ()
    modified: float = 0.0
    settings: str = ""
    token: str = field(default_factory=lambda: uuid4().hex)
    attempt: int = 0
    request: dict[str, Any] | None = None
    flow_run: str = ""
    n_crashed: int = 0
    not_before: float = 0.0
    reason: str = ""

    @property
    def idempotency_key(self) -> str:
        """What names the sub-run of this attempt on the server."""
        return f"patchworks-{self.token}-{self.attempt}"

    def asking(self, request: dict[str, Any]) -> Record:
        """Return the record of the next attempt, whose sub-run is about to be asked for."""
        return replace(self, attempt=self.attempt + 1, request=request, flow_run="")

    def waiting(self) -> Record:
        """Return the record of an image that waits for another attempt."""
        return replace(self, request=None, flow_run="")

    def to_bytes(self) -> bytes:
        """Return the content of its file."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Record:
        """Return the record in a file's content.

        Raises
        ------
        ValueError
            If it is none.
        """
        said: dict[str, Any] = json.loads(content)
        try:
            known = {f.name: said[f.name] for f in fields(cls) if f.name in said}
            return cls(**{**known, "files": tuple(said.get("files", ()))})
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Ledger:
    """The records of an inbox, on a file system with renaming.

    Parameters
    ----------
    root : Path
        Its folder.
    """

    root: Path

    def prepare(self) -> None:
        """Make the folders.

        Raises
        ------
        TargetNotWritableError
            If they cannot be made.
        """
        try:
            for name in (*STATES, "targets"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetNotWritableError(
                f"{self.root}: the ledger of the inbox cannot be written "
                f"({error.strerror or error}); give a folder that can with work_dir="
            ) from error

    @property
    def seen(self) -> Path:
        """Where it is kept what was seen in the inbox."""
        return self.root / "seen.json"

    def state_of(self, key: str) -> State | None:
        """Return what became of an image, or None if it was never claimed."""
        return next((state for state in STATES if self._file(state, key).exists()), None)

    def keys(self, state: State) -> set[str]:
        """Return the images in a state, from one look at its folder."""
        names = [entry.name for entry in os.scandir(self.root / state)]
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    def records(self, state: State) -> list[Record]:
        """Return the records in a state, the oldest image first."""
        found = [self.read(state, key) for key in self.keys(state)]
        there = [record for record in found if record is not None]
        return sorted(there, key=lambda record: (record.modified, record.path))

    def latest(self, state: State, n_most: int) -> list[Record]:
        """Return the records that came into a state last, the latest first."""
        with os.scandir(self.root / state) as scanned:
            files = [e for e in scanned if e.name.endswith(".json")]
        files.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
        found = [self.read(state, e.name.removesuffix(".json")) for e in files[:n_most]]
        return [record for record in found if record is not None]

    def read(self, state: State, key: str) -> Record | None:
        """Return a record; None if it is not there.

        One that cannot be read, after a power failure, is removed: its image counts as new, and if
        it is finished, its run returns at once.
        """
        path = self._file(state, key)
        try:
            return Record.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s is damaged (%s): its image counts as new", path, error)
            path.unlink(missing_ok=True)
            return None

    def claim(self, record: Record) -> bool:
        """Make the record of a new image; False if it was claimed before."""
        if self.state_of(record.key) is not None:
            return False
        draft = self.root / "open" / f".{record.key}.{uuid4().hex[:8]}.tmp"
        draft.write_bytes(record.to_bytes())
        try:
            return _named_once(draft, self._file("open", record.key))
        finally:
            draft.unlink(missing_ok=True)

    def update(self, record: Record) -> Record:
        """Write an open record anew, and return it."""
        write_whole(self._file("open", record.key), record.to_bytes())
        return record

    def close(self, record: Record, state: Literal["done", "quarantined"]) -> None:
        """Say what became of an image."""
        self.update(record)
        self._file("open", record.key).replace(self._file(state, record.key))

    def reopen(self, record: Record) -> None:
        """Take up a quarantined image again, with this record, which has to be a waiting one."""
        path = self._file("quarantined", record.key)
        write_whole(path, record.to_bytes())
        path.replace(self._file("open", record.key))

    def give_target(self, candidates: Iterator[str], path: str) -> str:
        """Return the first name of a result that no other file was given, and give it to a file.

        Parameters
        ----------
        candidates : iterator of str
            Names, the best first; they must not end before a free one.
        path : str
            The file, below the inbox; asked again, it gets the same name.
        """
        for target in candidates:
            owner = self._owner(target)
            draft = owner.with_name(f".{owner.name}.{uuid4().hex[:8]}.tmp")
            draft.write_text(path, encoding="utf-8")
            try:
                if _named_once(draft, owner) or owner.read_text(encoding="utf-8") == path:
                    return target
            finally:
                draft.unlink(missing_ok=True)
        raise AssertionError("the candidates ended")

    def is_target(self, place: str) -> bool:
        """Whether something is a result, by its path or URL: its name was given to a file."""
        return self._owner(place).exists()

    def _owner(self, target: str) -> Path:
        return self.root / "targets" / digest("target", target)[:32]

    def _file(self, state: State, key: str) -> Path:
        return self.root / state / f"{key}.json"


def _named_once(draft: Path, path: Path) -> bool:
    """Give a file another name; False if something has that name already."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return False
    except OSError:  # no hard links here
        try:
            with path.open("xb") as file:
                file.write(draft.read_bytes())
        except FileExistsError:
            return False
    return True
