"""A Prefect server on loopback that ends with the process that started it.

    this process ──pipe──► server_guard.py ──► python -m prefect server start

The guard is why the server is gone after a SIGKILL too.
"""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.empty_database import discard_template, save_template, start_from_template
from flows.errors import ServerError

LOOPBACK = "127.0.0.1"
PRIVATE = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}

_GUARD = Path(__file__).with_name("server_guard.py")
_LOG_TAIL_LINES = 20
_PORT_ATTEMPTS = 3
_STOP_S = 20.0  # the guard itself forces the server after 5 s


@dataclass(frozen=True, slots=True, kw_only=True)
class _GuardedServer:
    """A server that was started, up or not yet."""

    guard: subprocess.Popen[bytes]
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/api"

    @property
    def database(self) -> Path:
        return self.folder / "prefect.db"

    def log_tail(self) -> str:
        text = (self.folder / "server.log").read_text(errors="replace")
        return "\n".join(text.rstrip().splitlines()[-_LOG_TAIL_LINES:])


@contextmanager
def own_server(timeout_s: float) -> Iterator[str]:
    """Start a server, yield the URL of its API, stop the server.

    Parameters
    ----------
    timeout_s : float
        Seconds for the server to come up. On two cores it takes 6 to 7, and 11 the first time.

    Raises
    ------
    ServerError
        When the server ends early or is not up in time; with the tail of its log.
    """
    deadline_s = time.monotonic() + timeout_s
    for _ in range(_PORT_ATTEMPTS):
        with _guarded_server(_free_port()) as server:
            if _wait_until_up(server, deadline_s, timeout_s):
                yield server.url
                return
    raise ServerError(
        f"No Prefect server could start on {LOOPBACK}: {_PORT_ATTEMPTS} free ports were taken by"
        " other processes before it could listen. Try again, or start a server yourself"
        " (`prefect server start --port PORT`) and set PREFECT_API_URL."
    )


@contextmanager
def _guarded_server(port: int) -> Iterator[_GuardedServer]:
    folder = Path(tempfile.mkdtemp(prefix="patchworks-prefect-"))
    read_end, write_end = os.pipe()  # neither end is inherited by programs that this process runs
    _PIPES.add(write_end)
    guard = None
    try:
        try:
            guard = _start_guard(folder, port, read_end)
        finally:
            os.close(read_end)
        yield _GuardedServer(guard=guard, port=port, folder=folder)
    finally:
        # A forked copy of this process that unwinds here has no pipe, and stops nothing.
        if write_end in _PIPES:
            _PIPES.remove(write_end)
            os.close(write_end)
            if guard is not None:
                _await_end(guard)
            shutil.rmtree(folder, ignore_errors=True)


# A process forked without exec holds a copy of the write end, which would keep the server alive
# after its owner: the copy is closed in the child at once.
_PIPES: set[int] = set()


def _close_pipes_in_child() -> None:
    while _PIPES:
        os.close(_PIPES.pop())


os.register_at_fork(after_in_child=_close_pipes_in_child)


def _start_guard(folder: Path, port: int, read_end: int) -> subprocess.Popen[bytes]:
    start_from_template(folder / "prefect.db")
    command = ["-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(folder), sys.executable, *command],
            stdin=read_end,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Not the caller's folder: a `prefect.py` or `prefect.toml` there is not for the server.
            cwd=folder,
            env=_server_environment(folder, port),
            # Ctrl-C in the terminal is for the run, which still reports its end to the server.
            start_new_session=True,
        )


def _server_environment(folder: Path, port: int) -> dict[str, str]:
    return {
        **os.environ,
        **PRIVATE,
        # The pages of the UI ask this URL; `--port` alone would leave them at the default port.
        "PREFECT_API_URL": f"http://{LOOPBACK}:{port}/api",
        # A file per server. Measured with 3.8.8: of two servers started 3 s apart on one fresh
        # file, one ended in "Application startup failed", since both migrate it. And a home on a
        # network file system cannot carry SQLite's write-ahead log.
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        # No catalogue of block types (a block still registers its type when it is saved), and no
        # memo in the home of Prefect, which would tell other servers that theirs is not registered.
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_until_up(server: _GuardedServer, deadline_s: float, timeout_s: float) -> bool:
    """Wait for health; False where another process took the port first."""
    while time.monotonic() < deadline_s:
        status = server.guard.poll()
        if status is not None:
            tail = server.log_tail()
            if "already in use" in tail:
                return False
            discard_template()
            raise ServerError(
                f"The Prefect server for {server.url} ended with status {status} while starting."
                f" {_ADVICE} Its log ends:\n{tail}"
            )
        # Our own, and not whoever took the port meanwhile.
        if _is_healthy(server.port) and _listens(server.guard.pid, server.port):
            save_template(server.database)
            return True
        time.sleep(0.1)
    raise ServerError(
        f"The Prefect server for {server.url} was not up after {timeout_s:g} s. Allow it more"
        f" (`startup_timeout_s`) on a slow machine. {_ADVICE} Its log ends:\n{server.log_tail()}"
    )


_ADVICE = "You can also start one yourself (`prefect server start`) and set PREFECT_API_URL."


def _is_healthy(port: int) -> bool:
    # http.client knows no proxies, and this is loopback.
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _listens(guard_pid: int, port: int) -> bool:
    try:
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for process in psutil.Process(guard_pid).children(recursive=True)
            for connection in process.net_connections("inet")
        )
    except psutil.NoSuchProcess:
        return False


def _await_end(guard: subprocess.Popen[bytes]) -> None:
    try:
        guard.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
