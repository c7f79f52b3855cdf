"""The Prefect server of a run: the configured one, or an own one for as long as the run lasts.

PREFECT_API_URL set  ──► that server: checked, used, never stopped
nothing configured   ──► own_server: loopback, private, stopped at the end
"""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from prefect.client.base import ServerType
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_UI_URL,
    temporary_settings,
)

from flows.environment import environment
from flows.errors import ServerError
from flows.own_server import LOOPBACK, PRIVATE, own_server

_DRAIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefectServer:
    """A Prefect server that answers.

    Attributes
    ----------
    url : str
        Of the API, as `PREFECT_API_URL` wants it.
    ui_url : str
        What a person opens in a browser.
    owned : bool
        True where this very call started the server.
    """

    url: str
    ui_url: str
    owned: bool


@contextmanager
def prefect_server(
    *, startup_timeout_s: float = 90.0, answer_timeout_s: float = 10.0
) -> Iterator[PrefectServer]:
    """Yield a Prefect server, the one of this process and of the processes that it starts.

    A configured server (`PREFECT_API_URL` in the environment, a profile, settings) is used as it is
    and left alone. Without one, a server starts on loopback; nested and concurrent calls share it,
    and the last to leave stops it. It ends as well when this process is killed.

    An own server's database goes with it. To keep the history of runs, run `prefect server start`
    once and set `PREFECT_API_URL`.

    Parameters
    ----------
    startup_timeout_s : float
        Seconds that an own server may take to come up.
    answer_timeout_s : float
        Seconds that a running server may take to answer.

    Yields
    ------
    PrefectServer
        The server in use.

    Raises
    ------
    ServerError
        The configured server does not answer, or an own one does not come up.
    """
    with (
        _CURRENT.lease(startup_timeout_s, answer_timeout_s) as server,
        temporary_settings(
            {PREFECT_API_URL: server.url, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}
        ),
    ):
        yield server


class _CurrentServer:
    """The server of this process while anybody uses it.

    Counted, because the environment is one per process: of two threads that each set and restored
    it, the first to leave would take the server away from the other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._server: PrefectServer | None = None
        self._cleanup = ExitStack()

    @contextmanager
    def lease(self, startup_timeout_s: float, answer_timeout_s: float) -> Iterator[PrefectServer]:
        with self._lock:
            url = _configured_url()
            if self._server is not None:
                lent = _running_server(url or self._server.url, answer_timeout_s)
            elif url:
                lent = self._server = _running_server(url, answer_timeout_s)
                self._cleanup.enter_context(environment(_client_environment(url)))
            else:
                lent = self._server = self._start(startup_timeout_s)
            self._users += 1
        try:
            yield lent
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._server = None
                    self._cleanup.close()

    def _start(self, timeout_s: float) -> PrefectServer:
        with ExitStack() as stack:
            url = stack.enter_context(own_server(timeout_s))
            stack.enter_context(environment(_client_environment(url) | _without_proxy()))
            stack.callback(_drain_client_services)
            self._cleanup = stack.pop_all()
        return PrefectServer(url=url, ui_url=_ui_url(url), owned=True)


_CURRENT = _CurrentServer()


def _configured_url() -> str | None:
    # Prefect reads the environment when it is imported. A URL that was set later, or by the main
    # thread's `prefect_server` for a new thread, stands in the environment alone.
    return PREFECT_API_URL.value() or os.environ.get("PREFECT_API_URL") or None


def _running_server(url: str, timeout_s: float) -> PrefectServer:
    """Describe the server at `url`, which must answer as a Prefect API within `timeout_s`."""
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        try:
            with get_client(httpx_settings={"timeout": timeout_s}, sync_client=True) as client:
                problem = client.api_healthcheck()
                if problem is None and client.server_type != ServerType.CLOUD:
                    # Health alone would accept the page of a web server at a wrong path.
                    client.api_version()
        except Exception as error:  # noqa: BLE001 - whatever the network says, it is chained
            problem = error
    if problem is not None:
        raise ServerError(
            f"The Prefect server of PREFECT_API_URL, {url}, gave no answer within {timeout_s:g} s:"
            f" {problem!r}. Start it (`prefect server start`), correct the URL (it ends in /api),"
            " or unset PREFECT_API_URL in the environment and the profile: the run then starts a"
            " server of its own."
        ) from problem
    return PrefectServer(url=url, ui_url=_ui_url(url), owned=False)


def _ui_url(url: str) -> str:
    with temporary_settings({PREFECT_API_URL: url}):
        return str(PREFECT_UI_URL.value())


def _client_environment(url: str) -> dict[str, str]:
    """Return what processes that start meanwhile, such as Dask workers, must find."""
    return {
        "PREFECT_API_URL": url,
        # A worker that finds no server must fail, not start one of its own that nobody stops.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        **PRIVATE,
    }


def _without_proxy() -> dict[str, str]:
    # Behind a proxy (HTTP_PROXY), requests to loopback would leave for it and never come back.
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    hosts = f"{direct},{LOOPBACK}" if direct else LOOPBACK
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _drain_client_services() -> None:
    """Send the logs and events still queued, and let go of the server that is about to end.

    Prefect keeps one events service per process whatever the URL: left alive, it would send the
    events of the next own server's runs to this one. In a thread, since `drain_all` only blocks
    where no event loop runs.
    """
    drain = threading.Thread(target=EventsWorker.drain_all, kwargs={"timeout": _DRAIN_S})
    drain.start()
    drain.join()
