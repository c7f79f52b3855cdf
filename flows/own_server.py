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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from flows.empty_database import discard_template, save_template, start_from_template
from flows.errors import ServerError

LOOPBACK = "127.0.0.1"
PORT_ATTEMPTS = 3
PRIVATE = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
ADVICE = "You can also start one yourself (`prefect server start`) and set PREFECT_API_URL."

# What the server has received and not yet written is lost when it stops. Measured with 3.8.8: of
# 200 task runs that ended just before, 162 were missing with the defaults, a transaction a state.
RECORDED_AT_ONCE = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "1000",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "1000",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.5",
}
_GUARD = Path(__file__).with_name("server_guard.py")
_DATABASE = "prefect.db"
_LOG = "server.log"
_LOG_TAIL_LINES = 20
_STOP_S = 20.0  # the guard itself forces the server after 5 s


class Guard(Protocol):
    """The process that started a server and will end it."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    def poll(self) -> int | None:
        """Return the exit status of the server, or None as long as it runs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedServer:
    """A server that was started, up or not yet.

    Attributes
    ----------
    guard : Guard
        Its parent.
    port : int
        Where it will listen.
    folder : Path
        Of its database and its log.
    is_fresh : bool
        Whether its database was made for it.
    """

    guard: Guard
    port: int
    folder: Path
    is_fresh: bool = True

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://{LOOPBACK}:{self.port}/api"

    @property
    def database(self) -> Path:
        """The file of the database."""
        return database_in(self.folder)

    def log_tail(self) -> str:
        """Return the last lines that the server wrote."""
        with suppress(OSError):
            text = (self.folder / _LOG).read_text(errors="replace")
            return "\n".join(text.rstrip().splitlines()[-_LOG_TAIL_LINES:])
        return "(no log)"


@contextmanager
def own_server(timeout_s: float) -> Iterator[str]:
    """Start a server with a database that goes with it, yield the URL of its API, stop the server.

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
    for _ in range(PORT_ATTEMPTS):
        with _guarded_server(free_port()) as server:
            if wait_until_up(server, deadline_s, timeout_s):
                yield server.url
                return
    raise no_free_port()


def database_in(folder: Path) -> Path:
    """Return where a server of that folder keeps its database."""
    return folder / _DATABASE


def no_free_port() -> ServerError:
    """Return the error of `PORT_ATTEMPTS` starts on ports that others took meanwhile."""
    return ServerError(
        f"No Prefect server could start on {LOOPBACK}: {PORT_ATTEMPTS} free ports were taken by"
        " other processes before it could listen. Try again, or start a server yourself"
        " (`prefect server start --port PORT`) and set PREFECT_API_URL."
    )


@contextmanager
def _guarded_server(port: int) -> Iterator[GuardedServer]:
    folder = Path(tempfile.mkdtemp(prefix="patchworks-prefect-"))
    read_end, write_end = os.pipe()  # neither end is inherited by programs that this process runs
    _PIPES.add(write_end)
    guard = None
    try:
        try:
            start_from_template(database_in(folder))
            guard = start_guard("input", folder, port, stdin=read_end)
        finally:
            os.close(read_end)
        yield GuardedServer(guard=guard, port=port, folder=folder)
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


def start_guard(
    way: str,
    folder: Path,
    port: int,
    *,
    stdin: int = subprocess.DEVNULL,
    descriptors: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start a guard that starts a server.

    Parameters
    ----------
    way : str
        How the guard learns that nobody uses the server; see `server_guard`.
    folder : Path
        Of the server's database and log.
    port : int
        Where the server listens.
    stdin : int
        The guard's standard input.
    descriptors : tuple of int
        Open files that the guard is given, by their numbers.
    """
    server = [sys.executable, "-m", "prefect", "server", "start"]
    command = [*map(str, descriptors), *server, "--host", LOOPBACK, "--port", str(port)]
    with (folder / _LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), way, str(folder), *command],
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            # Not the caller's folder: a `prefect.py` or `prefect.toml` there is not for the server.
            cwd=folder,
            env=_server_environment(folder, port),
            # Ctrl-C in the terminal is for the run, which still reports its end to the server.
            start_new_session=True,
        )


def _server_environment(folder: Path, port: int) -> dict[str, str]:
    # The password of a facility's server that may stand there is not for this one: the clients of
    # this run need not know it.
    kept = {k: v for k, v in os.environ.items() if k != "PREFECT_SERVER_API_AUTH_STRING"}
    return {
        **kept,
        **PRIVATE,
        # The pages of the UI ask this URL; `--port` alone would leave them at the default port.
        "PREFECT_API_URL": f"http://{LOOPBACK}:{port}/api",
        # A file per server. Measured with 3.8.8: of two servers started 3 s apart on one fresh
        # file, one ended in "Application startup failed", since both migrate it. And a home on a
        # network file system cannot carry SQLite's write-ahead log.
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database_in(folder)}",
        # No catalogue of block types (a block still registers its type when it is saved), and no
        # memo in the home of Prefect, which would tell other servers that theirs is not registered.
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        **RECORDED_AT_ONCE,
    }


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_until_up(server: GuardedServer, deadline_s: float, timeout_s: float) -> bool:
    """Wait for health; False where another process took the port first.

    Raises
    ------
    ServerError
        When the server ends early or is not up in time; with the tail of its log.
    """
    while time.monotonic() < deadline_s:
        status = server.guard.poll()
        if status is not None:
            tail = server.log_tail()
            if "already in use" in tail:
                return False
            if server.is_fresh:
                discard_template()
            raise ServerError(
                f"The Prefect server for {server.url} ended with status {status} while starting."
                f" {ADVICE} Its log ends:\n{tail}"
            )
        # Our own, and not whoever took the port meanwhile.
        if is_healthy(server.port) and _listens(server.guard.pid, server.port):
            if server.is_fresh:
                save_template(server.database)
            return True
        time.sleep(0.1)
    raise ServerError(
        f"The Prefect server for {server.url} was not up after {timeout_s:g} s. Allow it more"
        f" (`startup_timeout_s`) on a slow machine. {ADVICE} Its log ends:\n{server.log_tail()}"
    )


def is_healthy(port: int) -> bool:
    """Return whether a Prefect server answers there."""
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
