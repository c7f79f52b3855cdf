"""What interrupted runs have left beside their outputs, and nobody has gone on with for long.

::

    image.zarr.stage/<run>            staged labels of a run
    .image.zarr.<8 hex>.stage         what a conversion keeps
    .image.zarr.<8 hex>.partial       an image that is not whole
    .image.zarr.<8 hex>.old           one that was replaced, if the new one is there

Nothing of a run that lives is ever touched: whoever removes holds the lock of the output
meanwhile, as a run would, and a lock that another holds is left alone.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patchworks.errors import TargetInUseError, TargetNotWritableError
from patchworks.io.location import Location
from patchworks.io.run_lock import RunLock, lock_path_of
from patchworks.io.stage import Stage

logger = logging.getLogger(__name__)

HIDDEN = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>stage|partial|old)")
STAGES = ".stage"
Fate = Literal["removed", "would be removed", "in use", "not removed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """Something that an interrupted run has left.

    Parameters
    ----------
    path : Path
        The folder.
    place : Path
        The output that it was to become, or was kept for.
    n_bytes : int
        Size of all files in it.
    age_s : float
        Seconds since any of them was written.
    """

    path: Path
    place: Path
    n_bytes: int
    age_s: float

    def lock(self) -> RunLock:
        """Return the lock of the output."""
        above = self.place.parent
        store = Location(str(above.parent)) if above.name == "labels" else None
        return RunLock(lock_path_of(Location(str(self.place)), store), str(self.place), "clean-up")


def find_remains(folder: Path, *, older_than_s: float) -> list[Remains]:
    """Return what interrupted runs have left in a folder and below it, sorted by path.

    Parameters
    ----------
    folder : Path
        Where to look; the insides of zarr stores are looked at for label images only.
    older_than_s : float
        Seconds for which nothing in it may have been written.
    """
    with _looking_into(folder):
        if not folder.is_dir():
            logger.warning("%s is no folder: nothing can be found there", folder)
    found = []
    for path, place in _candidates(folder):
        with _looking_into(path):  # its run may have ended since it was listed
            found.append(_measured(path, place))
    return sorted(
        [remains for remains in found if remains.age_s >= older_than_s],
        key=lambda remains: remains.path,
    )


def remove(remains: Remains, *, older_than_s: float, dry_run: bool = False) -> Fate:
    """Remove what a run has left, unless it is in use after all.

    Parameters
    ----------
    remains : Remains
        What was found.
    older_than_s : float
        Seconds for which nothing in it may have been written; looked at once more.
    dry_run : bool
        Only say what would be done. Nothing is written, not even a lock.
    """
    lock = remains.lock()
    if dry_run:
        return "in use" if lock.is_held() else "would be removed"
    # A folder that is gone holds no output, and no lock; it is not made again for one.
    held = lock if lock.path.parent.is_dir() else nullcontext()
    try:
        with held:
            if _measured(remains.path, remains.place).age_s < older_than_s:
                return "in use"  # a run went on from it, and ended, since it was found
            shutil.rmtree(remains.path)
    except TargetInUseError:
        return "in use"
    except (OSError, TargetNotWritableError):
        return "not removed"
    if remains.path.parent.name.endswith(STAGES):
        with suppress(OSError):  # another run's stage is in it
            remains.path.parent.rmdir()
    return "removed"


def _candidates(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield folders that runs have made, each with the output it was for."""
    with _looking_into(folder):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                with _looking_into(Path(entry.path)):
                    yield from _candidates_at(Path(entry.path))


def _candidates_at(path: Path) -> Iterator[tuple[Path, Path]]:
    hidden = HIDDEN.fullmatch(path.name)
    if hidden is not None:
        place = path.with_name(hidden["name"])
        # Without the new one, the old one is all there is.
        if hidden["kind"] != "old" or place.exists():
            yield path, place
    elif path.name.endswith(STAGES):
        yield from _stages(path)
    elif _is_group(path):
        yield from _candidates(path / "labels")
    else:
        yield from _candidates(path)


@contextmanager
def _looking_into(folder: Path) -> Iterator[None]:
    """Let a folder that cannot be looked into hide no other; one that is gone held nothing."""
    try:
        yield
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s cannot be looked into: %s", folder, error.strerror or error)


def _stages(folder: Path) -> Iterator[tuple[Path, Path]]:
    for path in folder.iterdir():
        said = Stage(path).manifest()
        labels = said.get("labels")
        if "fingerprint" in said and isinstance(labels, str) and "://" not in labels:
            yield path, Path(labels)


def _is_group(path: Path) -> bool:
    return any((path / mark).exists() for mark in ("zarr.json", ".zgroup", ".zarray"))


def _measured(path: Path, place: Path) -> Remains:
    n_bytes, newest = 0, path.stat().st_mtime
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):
                status = (Path(folder) / name).stat()
                n_bytes += status.st_size
                newest = max(newest, status.st_mtime)
    return Remains(path=path, place=place, n_bytes=n_bytes, age_s=time.time() - newest)
