"""One run at a time on an output: a lock file beside it that says who owns it.

::

    .<name>.lock             the owner, as JSON; its modification time is the owner's heartbeat
    .<name>.lock.<run>.tmp   the same before it gets its name; gone a moment later
    .<name>.lock.takeover    held for the moment in which a dead owner's lock is replaced

On the machine of the owner its process is looked up: a kill frees the output at once, and a
function that keeps the interpreter to itself for minutes, so that no heartbeat is made, does not.
From another machine or container only the heartbeat is seen: an owner that makes none for
`DEAD_AFTER_S` counts as dead. If it was only asleep, `RunLock.check` tells it so before it puts
anything in the output's place.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from patchworks.errors import TargetInUseError, TargetNotWritableError
from patchworks.fingerprint import digest
from patchworks.io.location import Location, outermost
from patchworks.io.lock_owner import LockOwner

HEARTBEAT_S = 15.0
DEAD_AFTER_S = 300.0
"""Seconds without a heartbeat after which an owner on another machine counts as dead."""

ABANDONED_AFTER_S = 60.0
"""Age at which a lock that cannot be read, or a takeover, must have been left by a crash."""

SETTLE_S = 0.05
"""How long a lock may be there before its content is, and two takeovers may be apart."""

_held: set[str] = set()  # tokens; a lock of this process with another one was left by a failed exit


class RunLock:
    """The right to write an output, as a context; each holder makes an object of its own.

    Leaving the context removes the lock file. A process that is killed leaves it, and the next one
    takes it over. Needs hard links or, where there are none, that a file is created exclusively.

    Parameters
    ----------
    path : Path
        The lock file; see `lock_path_of`.
    what : str
        The output, for messages.
    run : str
        What others are to call this run, such as the id of a flow run.
    advice : str
        What to do where no lock can be made.

    Attributes
    ----------
    previous : LockOwner or None
        On entering, the dead owner that the lock was taken over from.

    Raises
    ------
    TargetInUseError
        On entering, if another run holds the lock, in this process or any other.
    TargetNotWritableError
        On entering, if the lock file cannot be written.
    """

    def __init__(
        self, path: Path, what: str, run: str = "", *, advice: str = "give another target"
    ) -> None:
        self.path = path
        self.what = what
        self.run = run
        self.advice = advice
        self.previous: LockOwner | None = None
        self._owner: LockOwner | None = None
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._owner is not None:
            raise self._in_use(self._owner, 0.0)
        self._owner = LockOwner.of_this_process(self.run)
        _held.add(self._owner.token)
        try:
            self.previous = self._acquire(self._owner)
            self._ended = threading.Event()
            heart = threading.Thread(
                target=self._beat, args=(self._owner,), name="patchworks-lock", daemon=True
            )
            heart.start()
            self._heart = heart
        except BaseException:
            self._release(self._owner)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._owner is not None:
            self._release(self._owner)

    def check(self) -> None:
        """Raise TargetInUseError if the lock is no longer this run's.

        Somebody deleted it, or took it over while this machine was asleep.
        """
        found: LockOwner | None = None
        with suppress(OSError):
            found = _read(self.path)
        if found is not None and self._owner is not None and found.token == self._owner.token:
            return
        lost = f"was taken over by another run ({found})" if found else "is gone"
        raise TargetInUseError(
            f"{self.what}: the lock of this run, {self.path}, {lost}; this run stops here and puts "
            f"nothing in place. Call again when no other run is writing it"
        )

    def is_held(self) -> bool:
        """Whether a run that is alive seems to hold the lock; nothing is written to find out."""
        try:
            return not _is_dead(_read(self.path), time.time() - self.path.stat().st_mtime)
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Remove the lock file if a dead owner left it; one in use stays."""
        if self.path.exists():
            with suppress(TargetInUseError, TargetNotWritableError), self:
                pass

    def _acquire(self, owner: LockOwner) -> LockOwner | None:
        """Make the lock file; returns the dead owner whose lock it replaced, if any."""
        draft = self.path.with_name(f"{self.path.name}.{owner.token[:8]}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _create(draft, owner.to_bytes())
                return self._claim(owner, draft)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            in_cache = self.path.is_relative_to(_cache())
            advice = (
                "set XDG_CACHE_HOME to a folder that can be written" if in_cache else self.advice
            )
            raise TargetNotWritableError(
                f"{self.what}: cannot be written, for its lock {self.path} cannot be made "
                f"({error.strerror or error}); {advice}"
            ) from error

    def _claim(self, owner: LockOwner, draft: Path) -> LockOwner | None:
        """Give the draft the name of the lock; returns whose lock it replaced."""
        while not _link(draft, self.path):
            found, age = self._look(draft)
            if found is not None and found.token == owner.token:
                break  # a network file system did it, and was asked again
            if found is None and age < SETTLE_S:
                time.sleep(SETTLE_S / 5)  # given up a moment ago, or about to be written
            elif not _is_dead(found, age):
                raise self._in_use(found, age)
            elif self._take_over(owner, draft):
                return found
        return None

    def _look(self, draft: Path) -> tuple[LockOwner | None, float]:
        """Return the owner, and the seconds since its heartbeat.

        Both times are the file system's own: the clock of this machine may be minutes off the one
        that stamped the heartbeat.
        """
        try:
            return _read(self.path), _now(draft) - self.path.stat().st_mtime
        except FileNotFoundError:
            return None, 0.0
        except PermissionError:
            return None, _now(draft) - self.path.stat().st_mtime

    def _take_over(self, owner: LockOwner, draft: Path) -> bool:
        """Replace a dead owner's lock; False if another was quicker, or is at it."""
        mutex = self.path.with_name(f"{self.path.name}.takeover")
        try:
            _create(mutex, owner.token.encode())
        except FileExistsError:
            with suppress(FileNotFoundError):
                if _now(draft) - mutex.stat().st_mtime > ABANDONED_AFTER_S:
                    mutex.unlink()
            time.sleep(SETTLE_S / 5)
            return False
        try:
            if not _is_dead(*self._look(draft)):
                return False
            draft.replace(self.path)
        finally:
            mutex.unlink(missing_ok=True)
        # Two that remove the same abandoned takeover may both get here: the later one has the lock.
        time.sleep(SETTLE_S)
        found = _read(self.path)
        if found is not None and found.token == owner.token:
            return True
        _create(draft, owner.to_bytes())
        return False

    def _in_use(self, owner: LockOwner | None, age: float) -> TargetInUseError:
        who = "its lock cannot be read" if owner is None else str(owner)
        return TargetInUseError(
            f"{self.what}: another run is writing it ({who}; last heartbeat {max(0.0, age):.0f} s "
            f"ago); wait until it ends, stop it, or give another output. If it is certainly dead, "
            f"delete {self.path}"
        )

    def _beat(self, owner: LockOwner) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with suppress(OSError):
                found = _read(self.path)
                if found is not None and found.token != owner.token:
                    return  # taken over: that heartbeat is another's
                os.utime(self.path)

    def _release(self, owner: LockOwner) -> None:
        if os.getpid() != owner.pid:
            return  # a child that was forked off holds nothing
        self._ended.set()
        if self._heart is not None:
            self._heart.join(timeout=5)  # on a file system that hangs it may take for ever
        with suppress(OSError):  # what stays is found to be dead by the next run
            found = _read(self.path)
            if found is not None and found.token == owner.token:
                self.path.unlink()
        _held.discard(owner.token)
        self._owner = self._heart = None


@contextmanager
def waiting_for(lock: RunLock, within_s: float = 60.0) -> Iterator[RunLock]:
    """Hold a lock that others hold for moments only: wait for it.

    Raises
    ------
    TargetInUseError
        If it is still held after `within_s`.
    """
    deadline = time.monotonic() + within_s
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock)
                break
            except TargetInUseError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield lock


def lock_path_of(place: Location, store: Location | None = None) -> Path:
    """Return the lock file of an output: hidden, beside it, and never inside a zarr hierarchy.

    For ``image.zarr`` it is ``.image.zarr.lock``, for ``image.zarr/labels/nuclei``
    ``.image.zarr.labels-nuclei.lock``, both in the folder that holds ``image.zarr``. If that folder
    may not be written though the store in it may, or the output is a URL, it lies in the user's
    cache folder, and keeps off runs of this user and, unless they share the folder, this machine
    only. What is in memory is this process's own.

    Parameters
    ----------
    place : Location
        The output.
    store : Location, optional
        The group in which the output lies, if it is part of one.
    """
    if not place.is_local:
        owner = str(os.getpid()) if place.url.startswith("memory://") else ""
        return _in_cache(place, owner)
    around, rest = place.path.parent.resolve() / place.path.name, Path()
    if store is not None:
        around, rest = store.path.resolve(), place.path.relative_to(store.path)
    top = outermost(around)
    inside = (around.relative_to(top) / rest).parts
    if inside and not os.access(top.parent, os.W_OK):
        return _in_cache(Location(str(around / rest)))
    name = f"{top.name}.{'-'.join(inside)}" if inside else top.name
    return top.with_name(f".{name}.lock")


def _in_cache(place: Location, owner: str = "") -> Path:
    return _cache() / f"{place.name}-{digest('lock', place.url, owner)[:16]}.lock"


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "patchworks" / "locks"


def _is_dead(owner: LockOwner | None, age: float) -> bool:
    """Whether the owner of a lock is dead, `age` seconds after its heartbeat."""
    if owner is None:
        return age > ABANDONED_AFTER_S
    if not owner.is_here:
        return age > DEAD_AFTER_S
    if owner.pid == os.getpid() and owner.is_running():
        return owner.token not in _held
    return not owner.is_running()


def _read(path: Path) -> LockOwner | None:
    return LockOwner.from_bytes(path.read_bytes())


def _create(path: Path, content: bytes) -> None:
    """Write a file that must not be there; nothing stays of one that cannot be written."""
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _link(draft: Path, path: Path) -> bool:
    """Give a file another name; False if something has that name."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return False
    except OSError:  # no hard links here: for a moment the lock will be empty
        try:
            _create(path, draft.read_bytes())
        except FileExistsError:
            return False
    return True


def _now(draft: Path) -> float:
    """Return the time by the clock of the file system that holds a file."""
    os.utime(draft)
    return draft.stat().st_mtime
