"""Who holds a lock: a process that others can look up, on this machine or by name on another."""

from __future__ import annotations

import getpass
import json
import os
import platform
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil

_PARSED: dict[str, Callable[[Any], Any]] = {"pid": int, "started": float}


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """A process that holds, or held, a lock.

    Parameters
    ----------
    host, user : str
        Where it runs, and for whom.
    machine : str
        What tells the processes of two hosts of one name apart: the boot and the container. Empty
        where the system does not say.
    pid : int
        Its process.
    started : float
        When that process was started, on the system's own scale; 0 if that is not known.
    token : str
        Of this lock alone.
    run : str
        What the caller calls the run, such as the id of a flow run; may be empty.
    since : str
        When the lock was made: UTC, ISO 8601.
    """

    host: str
    user: str
    machine: str
    pid: int
    started: float
    token: str
    run: str
    since: str

    @classmethod
    def of_this_process(cls, run: str = "") -> LockOwner:
        """Return this process as the owner of a new lock."""
        return cls(
            host=platform.node(),
            user=_user(),
            machine=_machine(),
            pid=os.getpid(),
            started=start_of(os.getpid()),
            token=uuid.uuid4().hex,
            run=run,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> LockOwner | None:
        """Return the owner that a lock file names, or None if that cannot be made out."""
        try:
            found = json.loads(content)
            owner = cls(**{f.name: _PARSED.get(f.name, str)(found[f.name]) for f in fields(cls)})
        except (ValueError, TypeError, KeyError, OverflowError):
            return None
        return owner if 0 < owner.pid < 2**31 else None

    def to_bytes(self) -> bytes:
        """Return the content of a lock file."""
        return json.dumps(asdict(self), indent=1).encode()

    @property
    def is_here(self) -> bool:
        """Whether its process would be found by looking here."""
        return (self.host, self.machine) == (platform.node(), _machine())

    def is_running(self) -> bool:
        """Whether its process, not another that was given its number, is there; only if `is_here`.

        A process that this user may not look at counts as running.
        """
        try:
            started = start_of(self.pid)
        except ProcessLookupError:
            return False
        return started == self.started or 0 in (started, self.started)

    def __str__(self) -> str:
        since = self.since.replace("T", " ").replace("+00:00", " UTC")
        run = f", run {self.run}" * bool(self.run)
        return f"user {self.user}, host {self.host}, process {self.pid}, since {since}{run}"


def start_of(pid: int) -> float:
    """Return when a process was started; 0 if this user may not know.

    Raises
    ------
    ProcessLookupError
        If there is no such process, or it has ended and only its parent has not looked.
    """
    if platform.system() == "Linux":
        return _start_since_boot(pid)
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied:
        return 0.0
    raise ProcessLookupError(pid)


def _start_since_boot(pid: int) -> float:
    # Not psutil's: on Linux its start times move whenever the clock is set, and it does not see the
    # processes of other users where /proc hides them. Either would declare a living owner dead.
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        with suppress(PermissionError):
            os.kill(pid, 0)
        return 0.0
    state, *numbers = stat.rpartition(b")")[2].split()
    if state in b"ZX":
        raise ProcessLookupError(pid)
    return float(numbers[18])


@cache
def _machine() -> str:
    """Return what no other machine or container says, though it may have the same host name."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _user() -> str:
    with suppress(KeyError, OSError, ImportError):  # in a container it may have no name
        return getpass.getuser()
    return "unknown"
