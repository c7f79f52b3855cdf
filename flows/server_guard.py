"""Run one command and end it, with all of its children, as soon as nobody uses it any more.

A script of the standard library alone, so that it starts at once. Two ways to be told:

    input   one owner ──pipe──► guard ──child──► command
            The owner keeps the write end of a pipe whose read end is this script's standard input.
            The operating system closes the write end whenever the owner ends, be it by SIGKILL, so
            end of input means: stop.

    leases  users ──lock──► leases/* ◄──polls── guard, nobody's child ──child──► command
            Each user holds a lock on a file of its own in `leases/`. The operating system lets go
            of a lock whenever its holder ends. No lock left means: stop. A command that was up
            and ends while it is in use is started again.

The command leads a process group of its own.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

GRACE_S = 5.0
POLL_S = 0.5
MAX_RESTARTS = 5
HEARTBEAT_S = 5.0

LEASES = "leases"
TURN_LOCK = "turn.lock"
"""Held by whoever starts, joins or stops the command; never removed."""
SERVER_RECORD = "server.json"
"""What runs, and where. Its time of change is a sign of life; it goes with the command."""


def try_lock(path: Path) -> int | None:
    """Lock a file, made if it is missing, for as long as the returned descriptor is open.

    Returns
    -------
    int or None
        The descriptor, or None where another holds the lock.

    Raises
    ------
    OSError
        The file cannot be opened, or the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def held_leases(folder: Path, *, remove_others: bool) -> list[str]:
    """Name the leases that somebody holds.

    Parameters
    ----------
    folder : Path
        The folder of `leases/`.
    remove_others : bool
        Remove the files that nobody holds. Only for who has the turn: a lease that is being taken
        is not held yet.
    """
    held = []
    for lease in (folder / LEASES).iterdir():
        with suppress(FileNotFoundError):
            descriptor = os.open(lease, os.O_RDWR)
            try:
                # Shared, so that two who look at once do not take each other for the holder.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if remove_others:
                    lease.unlink()
            except BlockingIOError:
                held.append(lease.name)
            finally:
                os.close(descriptor)
    return held


def run_for_owner(folder: Path, command_line: Sequence[str]) -> int:
    """Run a command; when standard input ends, stop it and remove `folder`.

    A command that ends by itself leaves the folder, with its log, to the owner.

    Returns
    -------
    int
        The command's exit status, as `subprocess` gives it.
    """
    command = _start(command_line)
    owner_gone = threading.Event()

    def stop_at_end_of_input() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        owner_gone.set()
        _stop(command)

    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    try:
        return command.wait()
    finally:
        _stop(command)
        if owner_gone.is_set():
            shutil.rmtree(folder, ignore_errors=True)


def run_while_leased(folder: Path, reports: int, lock: int, command_line: Sequence[str]) -> int:
    """Run a command until no lease is held, detached from who started this script.

    Started again, at most 5 times, where it ends while it is in use.

    Parameters
    ----------
    folder : Path
        The folder of `leases/`.
    reports : int
        Descriptor that takes a line of JSON when the command has started and when it has ended.
    lock : int
        Descriptor of a lock that is held for as long as this guard or the command lives.
    command_line : sequence of str
        The command.
    """
    if os.fork():
        os._exit(0)
    command = _start(command_line, keep_open=(lock,))
    _report(reports, guard=os.getpid(), command=command.pid)
    n_starts = 1
    try:
        while _is_used(folder):
            with suppress(subprocess.TimeoutExpired):
                command.wait(POLL_S)
            if command.poll() is not None:
                # It was up, and somebody killed it: its users try again for a minute.
                if n_starts > MAX_RESTARTS or not (folder / SERVER_RECORD).exists():
                    break
                _stop(command)
                command = _start(command_line, keep_open=(lock,))
                n_starts += 1
            _show_life(folder / SERVER_RECORD)
        return command.poll() or 0
    finally:
        _report(reports, status=command.poll())
        _stop(command)
        # Who would start another waits for `lock`: no other record can be here yet.
        with suppress(OSError):
            (folder / SERVER_RECORD).unlink()


def _is_used(folder: Path) -> bool:
    """Look for a held lease; keep the turn where there is none.

    The turn then ends with this process: nobody may join a command that is about to be stopped.
    """
    try:
        turn = try_lock(folder / TURN_LOCK)
        if turn is None:
            return True  # somebody joins, or waits for the command to come up
        used = True
        try:
            used = bool(held_leases(folder, remove_others=True))
        finally:
            if used:
                os.close(turn)
    except FileNotFoundError:
        return False  # somebody removed the folder
    except OSError:
        return True
    return used


def _show_life(record: Path) -> None:
    with suppress(OSError):
        if abs(time.time() - record.stat().st_mtime) >= HEARTBEAT_S:
            os.utime(record)


def _report(reports: int, **words: int | None) -> None:
    with suppress(OSError):
        os.write(reports, json.dumps(words).encode() + b"\n")


def _start(command_line: Sequence[str], keep_open: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    # A guard that is asked to end must not leave its command behind: out through `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return subprocess.Popen(
        command_line,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=keep_open,
        preexec_fn=_end_with_parent,  # safe: no thread has been started yet
    )


def _end_with_parent() -> None:
    """Have Linux end this process when the guard is killed; elsewhere it stays."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        with suppress(OSError):
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _stop(command: subprocess.Popen[bytes]) -> None:
    """End the command's whole process group: asked first, forced after `GRACE_S`."""
    # "No such process": nobody is left. macOS says "not permitted" of a group of zombies.
    with suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
        os.killpg(command.pid, signal.SIGTERM)
        command.wait(GRACE_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(command.pid, signal.SIGKILL)


def main(way: str, folder: str, *rest: str) -> int:
    """Run `input FOLDER COMMAND...` or `leases FOLDER REPORTS LOCK COMMAND...`."""
    if way == "input":
        return run_for_owner(Path(folder), rest)
    reports, lock, *command_line = rest
    return run_while_leased(Path(folder), int(reports), int(lock), command_line)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
