"""The Prefect server of a run: the configured one, or an own one for as long as runs last.

PREFECT_API_URL set  ──► that server: checked, used, never stopped
a flow around it     ──► the temporary server that Prefect has started for it; likewise
nothing configured   ──► history: loopback, private, shared by this user's runs; its database stays
no usable folder     ──► own_server: the same, for this run alone; its database goes
"""

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID

from prefect.client.base import ServerType
from prefect.client.orchestration import get_client
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_UI_URL,
    temporary_settings,
)

from flows.configured import configured_url
from flows.environment import environment
from flows.errors import ServerError
from flows.history import server_with_history_if_possible
from flows.own_server import LOOPBACK, PRIVATE, is_healthy

_DRAIN_S = 10.0
_RECORD_S = 30.0  # 1000 task runs that end at once take 6 s
_LOG = logging.getLogger(__name__)
_TEMPORARY = (
    "Prefect UI: none, this run is on the temporary server of the flow around it; set"
    " PREFECT_API_URL, or call that flow in `with flows.server.prefect_server():`"
)


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
    *, announce: bool = False, startup_timeout_s: float = 90.0, answer_timeout_s: float = 10.0
) -> Iterator[PrefectServer]:
    """Yield a Prefect server, the one of this process and of the processes that it starts.

    A configured server (`PREFECT_API_URL` in the environment, a profile, settings) is used as it is
    and left alone. So is the temporary one of Prefect where the call is made inside a flow or task
    that runs on it. Without one, a server starts on loopback; nested and concurrent calls, of other
    processes of this user too, share it, and the last to leave stops it. It ends as well when they
    are killed.

    An own server's database stays in the user's data folder, or in `PATCHWORKS_DATA_DIR`;
    `patchworks ui` shows it. Where it cannot stay, a `HistoryWarning` says why.

    Parameters
    ----------
    announce : bool
        Print, once, to standard error, where the server's pages are.
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
        if announce:
            _CURRENT.announce()
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
        self._announcement = ""
        self._cleanup = ExitStack()

    def announce(self) -> None:
        with self._lock:
            if self._announcement:
                print(self._announcement, file=sys.stderr, flush=True)  # noqa: T201
            self._announcement = ""

    @contextmanager
    def lease(self, startup_timeout_s: float, answer_timeout_s: float) -> Iterator[PrefectServer]:
        with self._lock:
            url = configured_url()
            if self._server is not None:
                lent = _running_server(url or self._server.url, answer_timeout_s)
            elif url:
                lent = self._server = _running_server(url, answer_timeout_s)
                self._announcement = f"Prefect UI: {lent.ui_url}"
                self._cleanup.enter_context(environment(_client_environment(url)))
            elif around := _server_around():
                lent = self._server = _running_server(around, answer_timeout_s)
                self._announcement = _TEMPORARY
                variables = _client_environment(around) | _without_proxy()
                self._cleanup.enter_context(environment(variables))
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
            own = stack.enter_context(server_with_history_if_possible(timeout_s))
            stack.enter_context(environment(_client_environment(own.url) | _without_proxy()))
            stack.callback(_leave, own.url, is_kept=own.database is not None)
            ui_url = ui_of(own.url)
            later = "; later: patchworks ui" if own.database else ""
            self._announcement = f"Prefect UI: {ui_url} (for as long as this run lasts{later})"
            self._cleanup = stack.pop_all()
        return PrefectServer(url=own.url, ui_url=ui_url, owned=own.started)


_CURRENT = _CurrentServer()


def _server_around() -> str | None:
    """Return the URL of the server of the flow or task in which this is called, or None.

    Its client stays in use for the flows inside it, whatever URL is set later: they and their
    workers have to talk to the server that knows the run around them.
    """
    around = SyncClientContext.get() or AsyncClientContext.get()
    return None if around is None else str(around.client.api_url).rstrip("/")


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
        raise _unusable(url, problem, timeout_s) from problem
    return PrefectServer(url=url, ui_url=ui_of(url), owned=False)


def _unusable(url: str, problem: Exception, timeout_s: float) -> ServerError:
    response = getattr(problem, "response", None)
    if getattr(response, "status_code", None) in (401, 403):
        return ServerError(
            f"The Prefect server of PREFECT_API_URL, {url}, asks for a password: set"
            " PREFECT_API_AUTH_STRING=USER:PASSWORD, in the environment or the profile, to what"
            " PREFECT_SERVER_API_AUTH_STRING is where the server runs."
        )
    return ServerError(
        f"The Prefect server of PREFECT_API_URL, {url}, gave no answer within {timeout_s:g} s:"
        f" {problem!r}. Start it (`prefect server start`), correct the URL (it ends in /api),"
        " or unset PREFECT_API_URL in the environment and the profile: the run then starts a"
        " server of its own."
    )


def ui_of(url: str) -> str:
    """Return what a person opens in a browser to see the server whose API is at `url`."""
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


def _leave(url: str, *, is_kept: bool) -> None:
    """Send the logs and events still queued, and let go of the server that may be about to end.

    Prefect keeps one events service per process whatever the URL: left alive, it would send the
    events of the next own server's runs to this one. In a thread, since `drain_all` only blocks
    where no event loop runs.
    """
    drain = threading.Thread(target=_drain, args=[url, is_kept])
    drain.start()
    drain.join()


def _drain(url: str, is_kept: bool) -> None:
    settings = {
        PREFECT_API_URL: url,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        PREFECT_CLIENT_MAX_RETRIES: 0,
    }
    with temporary_settings(settings):
        has_sent = bool(getattr(EventsWorker, "_instances", True))
        if is_kept and has_sent and is_healthy(urlsplit(url).port or 0):
            # The states of task runs reach the server as events, which it writes down later and
            # forgets when it stops. They are written in order: when the last is, all of them are.
            process = f"patchworks.process.{platform.node()}.{os.getpid()}"
            last = emit_event("patchworks.process.left", {"prefect.resource.id": process})
            if last is not None:
                _await_event(last.id)
        EventsWorker.drain_all(timeout=_DRAIN_S)


def _await_event(event_id: UUID) -> None:
    deadline_s = time.monotonic() + _RECORD_S
    wanted = {"filter": {"id": {"id": [str(event_id)]}}}
    try:
        with get_client(sync_client=True) as client:
            while time.monotonic() < deadline_s:
                if client.request("POST", "/events/filter", json=wanted).json()["total"]:
                    return
                time.sleep(0.1)
    except Exception as error:  # noqa: BLE001 - the run has ended well; its record may lack a state
        _LOG.debug("the server ended before it had written down all states: %r", error)
