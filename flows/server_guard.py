"""Run one command and end it, with all of its children, as soon as the owner is gone.

A script of the standard library alone, so that it starts at once. The owner keeps the write end of
a pipe whose read end is this script's standard input. The operating system closes the write end
whenever the owner ends, be it by SIGKILL, so end of input means: stop.

    owner ──pipe──► guard ──child, in a process group of its own──► server
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

GRACE_S = 5.0


def _stop(command: subprocess.Popen[bytes]) -> None:
    """End the command's whole process group: asked first, forced after `GRACE_S`."""
    # "No such process": nobody is left. macOS says "not permitted" of a group of zombies.
    with suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
        os.killpg(command.pid, signal.SIGTERM)
        command.wait(GRACE_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(command.pid, signal.SIGKILL)


def main(folder: str, command_line: Sequence[str]) -> int:
    """Run `command_line`; when standard input ends, stop it and remove `folder`.

    A command that ends by itself leaves the folder, with its log, to the owner.

    Returns
    -------
    int
        The command's exit status, as `subprocess` gives it.
    """
    # A stopped guard must not leave its command behind: leave through `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    command = subprocess.Popen(command_line, stdin=subprocess.DEVNULL, start_new_session=True)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
