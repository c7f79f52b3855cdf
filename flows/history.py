"""The Prefect server that keeps the history of runs: one per user and host, shared by their runs.

    run ──holds──► leases/PID-... ◄──polls── server_guard.py ──► python -m prefect server start
    run ──holds──► leases/PID-...                                 prefect.db, server.log

Whoever comes first starts the server, whoever comes later joins it, and the guard stops it when
nobody holds a lease any more, be it after a SIGKILL. Starting, joining and stopping take turns
(`turn.lock`), because two servers on one file damage each other's start.
"""

import fcntl
import json
import os
import platform
import signal
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from flows.crashed import report_dead_runs
from flows.empty_database import start_from_template
from flows.errors import HistoryError, HistoryWarning, ServerError
from flows.own_server import (
    PORT_ATTEMPTS,
    GuardedServer,
    database_in,
    free_port,
    is_healthy,
    no_free_port,
    own_server,
    start_guard,
    wait_until_up,
)
from flows.server_guard import LEASES, SERVER_RECORD, TURN_LOCK, held_leases, try_lock

DATA_DIR = "PATCHWORKS_DATA_DIR"
"""Environment variable: the folder of what patchworks keeps for this user."""

_SERVER_LOCK = "server.lock"
_SILENT_S = 20.0
_SIGN_OF_LIFE_S = 30.0  # the guard gives one every 5 s
_STOP_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnServer:
    """A server of patchworks' own, in use.

    Attributes
    ----------
    url : str
        Of its API.
    started : bool
        True where this very call started it.
    database : Path or None
        Where the history is kept; None where it goes with the run.
    """

    url: str
    started: bool
    database: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What `server.json` says of the server that runs."""

    url: str
    loopback: str
    host: str

    @classmethod
    def read(cls, folder: Path) -> "_Record | None":
        try:
            return cls(**json.loads((folder / SERVER_RECORD).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        part = folder / f"{SERVER_RECORD}.part"
        part.write_text(json.dumps(asdict(self)))
        part.replace(folder / SERVER_RECORD)

    @property
    def is_here(self) -> bool:
        return self.loopback == _loopback()

    def answers(self) -> bool:
        return is_healthy(urlsplit(self.url).port or 0)


def history_folder() -> Path:
    """Return the folder of the history: in `PATCHWORKS_DATA_DIR`, or in the user's data folder."""
    chosen = os.environ.get(DATA_DIR)
    data = Path(chosen).expanduser() if chosen else platformdirs.user_data_path("patchworks")
    return data.absolute() / "prefect"


def is_running(server: OwnServer) -> bool:
    """Return whether that server has not ended."""
    record = _Record.read(history_folder())
    return record is not None and record.url == server.url


@contextmanager
def server_with_history_if_possible(timeout_s: float) -> Iterator[OwnServer]:
    """Yield the server of the history, or one without, and a warning that says why.

    Parameters
    ----------
    timeout_s : float
        Seconds for a server to come up.

    Raises
    ------
    ServerError
        No server starts, whatever the folder.
    """
    with ExitStack() as stack:
        try:
            server = stack.enter_context(server_with_history(timeout_s))
        except HistoryError as error:
            warnings.warn(
                f"This run leaves no record in Prefect once it has ended. {error}",
                HistoryWarning,
                stacklevel=2,
            )
            url = stack.enter_context(own_server(timeout_s))
            server = OwnServer(url=url, started=True, database=None)
        yield server


@contextmanager
def server_with_history(timeout_s: float) -> Iterator[OwnServer]:
    """Yield the server of the history: the one that runs, or a new one.

    It lasts until its last user has left; the last one waits for its end.

    Parameters
    ----------
    timeout_s : float
        Seconds for a server to come up.

    Raises
    ------
    HistoryError
        The folder cannot be used, or no server starts on it.
    """
    folder = history_folder()
    with ExitStack() as stack:
        try:
            server = _join_or_start(folder, timeout_s, stack)
        except (OSError, ServerError) as error:
            raise HistoryError(
                f"The history of runs cannot be kept in {folder}. Mend that folder or move it away,"
                f" or name another one, on a local disk, in {DATA_DIR}. The reason: {error}"
            ) from error
        yield server


def _join_or_start(folder: Path, timeout_s: float, stack: ExitStack) -> OwnServer:
    if "?" in str(folder):
        raise OSError("SQLite's addresses cannot carry the question mark in its path.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # parameters and paths are nobody else's
    (folder / LEASES).mkdir(mode=0o700, exist_ok=True)
    silent_s = time.monotonic() + _SILENT_S
    while True:
        # Out of turn before anything is undone: the guard needs it to stop the server.
        with ExitStack() as attempt, _turn(folder, timeout_s):
            nobody_runs = not held_leases(folder, remove_others=True)
            attempt.callback(_await_end, folder)
            attempt.enter_context(_lease(folder))
            server = _joined(folder) or _started(folder, timeout_s, end_runs=nobody_runs)
            if server is not None:
                stack.enter_context(attempt.pop_all())
                return server
        if time.monotonic() > silent_s:
            raise ServerError(
                f"Its server holds {_SERVER_LOCK} and has not answered for {_SILENT_S:g} s."
            )
        time.sleep(1)


def _joined(folder: Path) -> OwnServer | None:
    """Return the server that runs here; None where there is none or it is silent."""
    record = _Record.read(folder)
    if record is None:
        return None
    if not record.is_here:
        # Not every network file system carries locks from host to host.
        if _is_locked(folder) or (record.host != platform.node() and _shows_life(folder)):
            raise ServerError(f"It is in use by the server of host {record.host}, {record.url}.")
        return None
    if not (_is_locked(folder) and record.answers()):
        return None
    return OwnServer(url=record.url, started=False, database=database_in(folder))


def _started(folder: Path, timeout_s: float, *, end_runs: bool) -> OwnServer | None:
    """Start the server; None where an earlier one is still there."""
    lock = try_lock(folder / _SERVER_LOCK)
    if lock is None:
        return None
    _LOCKS.add(lock)
    try:
        with suppress(FileNotFoundError):
            (folder / SERVER_RECORD).unlink()
        url = _start(folder, lock, timeout_s)
    finally:
        # Closed, not unlocked: the guard and the server keep the lock.
        _LOCKS.discard(lock)
        os.close(lock)
    if end_runs:
        report_dead_runs(url)
    return OwnServer(url=url, started=True, database=database_in(folder))


def _start(folder: Path, lock: int, timeout_s: float) -> str:
    database = database_in(folder)
    is_fresh = not database.exists()
    if is_fresh:
        for left_over in ("-wal", "-shm"):
            database.with_name(database.name + left_over).unlink(missing_ok=True)
        start_from_template(database)
    deadline_s = time.monotonic() + timeout_s
    try:
        for _ in range(PORT_ATTEMPTS):
            port = free_port()
            with _detached_guard(folder, port, lock) as guard:
                server = GuardedServer(guard=guard, port=port, folder=folder, is_fresh=is_fresh)
                if not wait_until_up(server, deadline_s, timeout_s):
                    continue
            _Record(url=server.url, loopback=_loopback(), host=platform.node()).write(folder)
            return server.url
    except ServerError:
        if is_fresh:
            database.unlink(missing_ok=True)
        raise
    raise no_free_port()


class _DetachedGuard:
    """A guard that is no child of this process, known by what it reports."""

    def __init__(self, reports: int) -> None:
        self._reports = reports
        self._unread = b""
        self._status: int | None = None
        self.pid = (self._next() or {}).get("guard", 0)
        os.set_blocking(reports, False)

    def poll(self) -> int | None:
        if self._status is None and (words := self._next()):
            self._status = words["status"]
        return self._status

    def _next(self) -> dict[str, int] | None:
        with suppress(BlockingIOError):
            while b"\n" not in self._unread:
                part = os.read(self._reports, 1024)
                if not part:
                    return {"status": -signal.SIGKILL}  # the guard, without a word
                self._unread += part
            line, _, self._unread = self._unread.partition(b"\n")
            words: dict[str, int] = json.loads(line)
            return words
        return None


@contextmanager
def _detached_guard(folder: Path, port: int, lock: int) -> Iterator[_DetachedGuard]:
    reports, reported = os.pipe()
    try:
        try:
            start_guard("leases", folder, port, descriptors=(reported, lock)).wait()
        finally:
            os.close(reported)
        yield _DetachedGuard(reports)
    finally:
        os.close(reports)


# A process forked without exec holds a copy of every lock, which would outlive its owner: the
# copies are closed in the child at once.
_LOCKS: set[int] = set()


def _close_locks_in_child() -> None:
    while _LOCKS:
        os.close(_LOCKS.pop())


os.register_at_fork(after_in_child=_close_locks_in_child)


def _unlock(lock: int) -> None:
    # A forked copy of this process that unwinds here holds nothing.
    if lock in _LOCKS:
        _LOCKS.remove(lock)
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


@contextmanager
def _turn(folder: Path, timeout_s: float) -> Iterator[None]:
    deadline_s = time.monotonic() + timeout_s
    while (turn := try_lock(folder / TURN_LOCK)) is None:
        if time.monotonic() > deadline_s:
            raise ServerError(f"Another process has held {TURN_LOCK} for {timeout_s:g} s.")
        time.sleep(0.05)
    _LOCKS.add(turn)
    try:
        yield
    finally:
        _unlock(turn)


@contextmanager
def _lease(folder: Path) -> Iterator[None]:
    """Be a user of the server; to be taken in turn."""
    path = folder / LEASES / f"{os.getpid()}-{uuid.uuid4().hex}"
    lease = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    _LOCKS.add(lease)
    try:
        fcntl.flock(lease, fcntl.LOCK_EX)
        yield
    finally:
        if lease in _LOCKS:
            path.unlink(missing_ok=True)
            _unlock(lease)


def _await_end(folder: Path) -> None:
    """Wait until the server has ended, or somebody else uses it."""
    deadline_s = time.monotonic() + _STOP_S
    with suppress(OSError):
        while _is_locked(folder) and time.monotonic() < deadline_s:
            if held_leases(folder, remove_others=False):
                return
            time.sleep(0.1)


def _is_locked(folder: Path) -> bool:
    """Whether a guard or its server lives."""
    lock = try_lock(folder / _SERVER_LOCK)
    if lock is None:
        return True
    os.close(lock)
    return False


def _shows_life(folder: Path) -> bool:
    turn = folder / TURN_LOCK
    os.utime(turn)  # both times by the clock of the file system's host
    # Opened, since only that makes a network file system look again.
    with (folder / SERVER_RECORD).open() as record:
        return turn.stat().st_mtime - os.fstat(record.fileno()).st_mtime < _SIGN_OF_LIFE_S


@cache
def _loopback() -> str:
    """Return what only the processes that share this one's loopback address say."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/net").readlink()))
    return " ".join(parts)
