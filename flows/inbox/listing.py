"""What lies in an inbox: names, sizes and times, of a local folder or of a prefix in a bucket."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from patchworks.errors import SourceNotFoundError
from patchworks.io.location import Location

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file or a folder of an inbox, as it was when looked at.

    Parameters
    ----------
    path : str
        Below the inbox, with ``/`` between its parts.
    is_folder : bool
        Whether it is a folder.
    n_bytes : int
        Size of a file; 0 for a folder.
    stamp : str
        Changes when the file is written to: its modification time, or an object's tag.
    modified : float
        When that was, in seconds since 1970; 0 where the store does not say.
    """

    path: str
    is_folder: bool = False
    n_bytes: int = 0
    stamp: str = ""
    modified: float = 0.0

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def is_hidden(self) -> bool:
        """Whether it is none of the microscope's: hidden, as unfinished copies often are."""
        return self.name.startswith((".", "~$"))

    @property
    def is_utf8(self) -> bool:
        """Whether the ledger and the parameters of a run can hold the path."""
        try:
            self.path.encode()
        except UnicodeEncodeError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Listing:
    """The folder or prefix of an inbox, read anew at each call.

    Parameters
    ----------
    location : Location
        Where it is.
    warned : set of str
        What was warned of: each pass and each watcher says it once, not at every look.
    """

    location: Location
    warned: set[str] = field(default_factory=set, compare=False, repr=False)

    def check(self) -> None:
        """Raise SourceNotFoundError if there is no such folder; a prefix may hold nothing yet."""
        if self.location.is_local and not self.location.path.is_dir():
            raise SourceNotFoundError(
                f"inbox={self.location}: there is no such folder; make it, or give another inbox="
            )

    def entries(self, folder: str = "") -> list[Entry]:
        """Return what lies directly in a folder below the inbox, sorted by name."""
        found = self._local(folder) if self.location.is_local else self._remote(folder)
        return sorted(found, key=lambda entry: entry.path)

    def files_below(self, folder: str) -> list[Entry]:
        """Return all files in a folder and in the folders in it."""
        found: list[Entry] = []
        for entry in self.entries(folder):
            found += self.files_below(entry.path) if entry.is_folder else [entry]
        return found

    def entry(self, path: str) -> Entry | None:
        """Return a file or folder by its path below the inbox, or None."""
        parent = str(PurePosixPath(path).parent)
        siblings = self.entries("" if parent == "." else parent)
        return next((entry for entry in siblings if entry.path == path), None)

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading."""
        if self.location.is_local:
            return (self.location.path / path).open("rb")
        filesystem, root = self.location.filesystem()
        file: IO[bytes] = filesystem.open(f"{root}/{path}", "rb")
        return file

    def place(self, path: str) -> Location:
        """Return the absolute path or URL of something in the inbox."""
        return Location(f"{self.location.url.rstrip('/')}/{path}")

    def warn_once(self, path: str, problem: str) -> None:
        """Say why something in the inbox is left alone, so that all else goes on."""
        place = os.fsencode(str(self.place(path))).decode("utf-8", "backslashreplace")
        text = f"{place}: left alone: {problem}"
        if text not in self.warned:
            self.warned.add(text)
            logger.warning("%s", text)

    def _local(self, folder: str) -> Iterable[Entry]:
        try:
            with os.scandir(self.location.path / folder) as scanned:
                for each in scanned:
                    try:
                        yield from _of_disk(each, folder)
                    except FileNotFoundError:  # it was renamed or removed meanwhile
                        continue
                    except OSError as error:
                        self.warn_once(_joined(folder, each.name), error.strerror or str(error))
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError as error:
            if not folder:
                raise
            self.warn_once(folder, error.strerror or str(error))

    def _remote(self, folder: str) -> Iterable[Entry]:
        filesystem, root = self.location.filesystem()
        top = f"{root}/{folder}".rstrip("/")
        try:
            listed = filesystem.ls(top, detail=True)
        except FileNotFoundError:
            return
        for each in listed:
            name = PurePosixPath(str(each["name"]).rstrip("/")).name
            if name and str(each["name"]).rstrip("/") != top:  # some list the prefix itself
                yield _of_object(each, _joined(folder, name))


def _of_disk(each: os.DirEntry[str], folder: str) -> Iterable[Entry]:
    path = _joined(folder, each.name)
    if each.is_dir():
        if not each.is_symlink():  # it may lead back here
            yield Entry(path=path, is_folder=True)
        return
    status = each.stat()
    yield Entry(
        path=path,
        n_bytes=status.st_size,
        stamp=str(status.st_mtime_ns),
        modified=status.st_mtime,
    )


def _of_object(each: dict[str, Any], path: str) -> Entry:
    if each["type"] == "directory":
        return Entry(path=path, is_folder=True)
    times = [each[key] for key in ("LastModified", "mtime", "updated", "created") if each.get(key)]
    tags = [str(each[key]) for key in ("ETag", "etag", "md5Hash") if each.get(key)]
    return Entry(
        path=path,
        n_bytes=int(each.get("size") or 0),
        stamp=" ".join([*tags, *map(str, times)]),
        modified=_seconds(times[0]) if times else 0.0,
    )


def _seconds(time: Any) -> float:
    if isinstance(time, datetime):
        return time.timestamp()
    if isinstance(time, str):
        return datetime.fromisoformat(time).timestamp()
    return float(time)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def same_place(one: Location, other: Location) -> bool:
    """Whether two locations are the same folder or prefix, however they are written."""
    if one.is_local and other.is_local:
        return one.path.resolve() == other.path.resolve()
    return one == other


def below(inbox: Location, place: Location) -> str | None:
    """Return the path of a place below an inbox, or None if it lies elsewhere.

    Examples
    --------
    >>> below(Location("s3://scans/in"), Location("s3://scans/in/results"))
    'results'
    """
    if inbox.is_local and place.is_local:
        here, there = inbox.path.resolve(), place.path.resolve()
        is_inside = there.is_relative_to(here) and there != here
        return Path(there.relative_to(here)).as_posix() if is_inside else None
    prefix = f"{inbox.url.rstrip('/')}/"
    return place.url.removeprefix(prefix) if place.url.startswith(prefix) else None
