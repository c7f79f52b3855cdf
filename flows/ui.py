"""The command `patchworks ui`: past and present runs in a browser."""

import time
import webbrowser
from contextlib import suppress

from flows.configured import configured_url
from flows.errors import ServerError
from flows.history import is_running, server_with_history
from flows.server import ui_of

_LOOK_S = 1.0


def show_ui(*, open_browser: bool = False, startup_timeout_s: float = 90.0) -> None:
    """Keep the server of the history running, and say where its pages are, until Ctrl-C.

    Where `PREFECT_API_URL` names a server, say where its pages are and return.

    Parameters
    ----------
    open_browser : bool
        Open the pages in the user's browser.
    startup_timeout_s : float
        Seconds that the server may take to come up.

    Raises
    ------
    HistoryError
        The folder of the history cannot be used.
    ServerError
        The server has ended before Ctrl-C.
    """
    url = configured_url()
    if url is not None:
        _show(ui_of(url), "of the server that PREFECT_API_URL names", open_browser)
        return
    with suppress(KeyboardInterrupt), server_with_history(startup_timeout_s) as server:
        _show(ui_of(server.url), "until Ctrl-C", open_browser)
        _say(f"history: {server.database}")
        _say(
            "The same with Prefect alone, while no run is on:"
            f" PREFECT_SERVER_DATABASE_CONNECTION_URL='sqlite+aiosqlite:///{server.database}'"
            " prefect server start"
        )
        while is_running(server):
            time.sleep(_LOOK_S)
        raise ServerError(
            f"The Prefect server at {server.url} has ended: somebody stopped it. See server.log"
            f" beside {server.database}, and call `patchworks ui` again."
        )


def _show(ui_url: str, what: str, open_browser: bool) -> None:
    _say(f"Prefect UI: {ui_url} ({what})")
    if open_browser:
        webbrowser.open(ui_url)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
