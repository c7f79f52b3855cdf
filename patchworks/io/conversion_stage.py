"""What a conversion keeps beside its target while it goes on: its plan, and what is written.

::

    .<name>.<fingerprint>.stage/plan.pickle     the plan, read by workers
    .<name>.<fingerprint>.stage/id              names this very stage
    .<name>.<fingerprint>.stage/results/        what the task runs of a flow returned
    .<name>.<fingerprint>.stage/done/0-17       region 17 of the pass that writes level 0 is written

On a local file system the folder is called ``done.<try>``, and the try that goes on renames it: a
worker of the try before, which is still at work, can then no longer mark a region whose chunks are
removed or replaced meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from patchworks.io.literal_store import remove_tree
from patchworks.io.location import Location

ID = "id"

BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "adl"}
"""Protocols of stores without folders: to ask for one makes the bucket, where there is none."""


@dataclass(frozen=True, slots=True)
class ConversionStage:
    """A folder on any file system; a location, so that it can be sent to any worker.

    Parameters
    ----------
    root : Location
        The folder.
    attempt : str
        Names the try whose marks are made here.
    """

    root: Location
    attempt: str = ""

    @classmethod
    def beside(cls, place: Location, fingerprint: str, attempt: str = "") -> ConversionStage:
        """Return the stage of what is written to `place`."""
        parent, _, name = place.url.rpartition("/")
        return cls(Location(f"{parent}/.{name}.{fingerprint[:8]}.stage"), attempt)

    @property
    def _done(self) -> str:
        return f"done.{self.attempt}" if self.attempt and self.root.is_local else "done"

    def _at(self, part: str = "") -> tuple[Any, str]:
        if self.root.is_local:  # `url_to_fs` takes "::" in a name for a chain of file systems
            return LocalFileSystem(), str(self.root.path / part)
        # Not from a listing that was made before: what it lacks would be taken for not done.
        place = self.root / part if part else self.root
        filesystem, path = url_to_fs(place.url, use_listings_cache=False)
        return filesystem, path

    def begin(self) -> None:
        """Make the stage anew."""
        self.remove()
        if self.root.is_local and self.exists():
            # Regions that an earlier try has marked would be taken for written in the new levels.
            raise FileExistsError(f"{self.root} is in the way and cannot be deleted")
        if self.root.url.partition("://")[0] not in BUCKETS:
            filesystem, path = self._at(self._done)
            filesystem.makedirs(path, exist_ok=True)
        self.write(ID, uuid4().hex.encode())

    @property
    def id(self) -> str:
        """What names this very stage: one that is begun anew in its place has another."""
        return self.read(ID).decode()

    def take_over(self) -> None:
        """Make the marks of an earlier try those of this one; that one can make none any more."""
        if self.root.is_local:
            for marks in self.root.path.glob("done*"):
                marks.rename(self.root.path / self._done)

    def exists(self) -> bool:
        """Whether the stage is there."""
        filesystem, path = self._at()
        return bool(filesystem.exists(path))

    def write(self, part: str, content: bytes) -> None:
        """Write a file of the stage, so that it is there as a whole or not at all."""
        filesystem, path = self._at(part)
        if not self.root.is_local:
            filesystem.pipe_file(path, content)  # object stores put whole objects
            return
        filesystem.pipe_file(f"{path}.tmp", content)
        filesystem.mv(f"{path}.tmp", path)

    def read(self, part: str) -> bytes:
        """Return a file of the stage."""
        filesystem, path = self._at(part)
        content: bytes = filesystem.cat_file(path)
        return content

    def mark(self, level: int, region: int) -> None:
        """Note that a region of the pass that writes `level` is written."""
        filesystem, path = self._at(f"{self._done}/{level}-{region}")
        filesystem.pipe_file(path, b"1")

    def is_marked(self, level: int, region: int) -> bool:
        """Return whether a region of the pass for `level` is written."""
        filesystem, path = self._at(f"{self._done}/{level}-{region}")
        return bool(filesystem.exists(path))

    def finished(self, level: int) -> set[int]:
        """Return the regions of the pass for `level` that are written."""
        if self.root.is_local:
            names = [mark.name for mark in self.root.path.glob("done*/*")]
        else:
            filesystem, path = self._at("done")
            if not filesystem.exists(path):
                return set()
            names = [entry.rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False)]
        pairs = [name.partition("-") for name in names]
        return {int(region) for first, _, region in pairs if first == str(level) and region}

    def remove(self) -> None:
        """Delete the stage."""
        if self.root.is_local:
            self.root.remove()
        elif self.exists():
            remove_tree(*self._at())
