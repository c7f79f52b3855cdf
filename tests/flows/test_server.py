"""Real servers and real processes; where one must start or be killed, a Python of its own."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, get_current_settings, temporary_settings

import flows.server
from flows.empty_database import empty_database_template
from flows.errors import ServerError
from flows.own_server import PRIVATE, _server_environment, own_server
from flows.server import PrefectServer, prefect_server

GONE_WITHIN_S = 15.0

TWO_THREADS_AND_AN_INNER_CALL = """
import json, os, threading
from flows.server import prefect_server

before = dict(os.environ)
together = threading.Barrier(2)
seen = []

def use():
    together.wait()
    with prefect_server() as server, prefect_server() as inner:
        seen.append([server.url, server.owned, inner.url, inner.owned])
        together.wait()

threads = [threading.Thread(target=use) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"seen": seen, "restored": dict(os.environ) == before}))
"""

FORKS_THEN_WAITS = """
import os, time
from flows.own_server import own_server
from flows.server import prefect_server

with prefect_server() as server:
    url = getattr(server, "url", server)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(url, child, flush=True)
    time.sleep(60)
"""

THROW_AWAY = ("with prefect_server()", "with own_server(90)")

USES_WHAT_IS_CONFIGURED = """
import json, os
from flows.server import prefect_server

with prefect_server() as server:
    print(json.dumps([server.url, server.owned, os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"]]))
"""

FLOWS_AROUND_FLOWS = """
import asyncio, json, sys
from pathlib import Path
import numpy as np, zarr
from prefect import flow
from prefect.client.orchestration import get_client
from flows import segment_image

folder = Path(sys.argv[1])
zarr.create_array(folder / "image.zarr", data=np.ones((32, 32), "u1"), chunks=(32, 32))

def segment(name):
    threshold = {"name": "threshold", "value": 0}
    where = {"write_to": folder / f"{name}.zarr", "max_workers": 1}
    return segment_image(folder / "image.zarr", segmenter=threshold, **where).n_objects

@flow
def outer():
    return segment("outer")

@flow
async def outer_async():
    return segment("async")

objects = [outer(), asyncio.run(outer_async())]
with get_client(sync_client=True) as client:
    runs = client.read_flow_runs()
inner = [run.parent_task_run_id is not None for run in runs]
print(json.dumps([objects, sum(inner), [run.state_name for run in runs]]))
"""


def start_python(
    script: str,
    tmp_path: Path,
    stdin: int | None = None,
    stderr: int | None = None,
    **variables: str,
) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    own = {
        "PYTHONPATH": str(Path(flows.server.__file__).parents[1]),
        "PREFECT_PROFILES_PATH": str(tmp_path / "no-profiles.toml"),
        "PATCHWORKS_DATA_DIR": str(tmp_path / "data"),
        "TMPDIR": str(tmp_path),
    }
    return subprocess.Popen(
        [sys.executable, "-c", script, tmp_path],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**kept, **own, **variables},
    )


def run_python(script: str, tmp_path: Path, **variables: str) -> object:
    with start_python(script, tmp_path, **variables) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output)


def processes_on_port(url: str) -> list[psutil.Process]:
    port = str(urlsplit(url).port)
    return [p for p in psutil.process_iter(["cmdline"]) if port in (p.info["cmdline"] or [])]


def await_none_on_port(url: str) -> list[psutil.Process]:
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := processes_on_port(url)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def answers(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
        return bool(json.load(response))


@pytest.fixture
def web_server_that_is_not_prefect() -> Iterator[str]:
    yield from answering(lambda path: 200)


@pytest.fixture
def server_with_a_password() -> Iterator[str]:
    yield from answering(lambda path: 200 if path.endswith("/health") else 401)


def answering(status_of: Callable[[str], int]) -> Iterator[str]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status_of(self.path))
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as pages:
        serving = threading.Thread(target=pages.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{pages.server_port}/api"
        pages.shutdown()
        serving.join()


def test_a_server_with_a_password_says_which_variable_holds_it(server_with_a_password: str) -> None:
    with (
        temporary_settings({PREFECT_API_URL: server_with_a_password}),
        pytest.raises(ServerError, match="set PREFECT_API_AUTH_STRING=USER:PASSWORD"),
        prefect_server(),
    ):
        pass


def test_an_own_server_takes_no_password_of_another(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "facility:secret")
    assert "PREFECT_SERVER_API_AUTH_STRING" not in _server_environment(tmp_path, 1)


def test_an_own_server_answers_and_serves_a_page_that_finds_its_api(server: PrefectServer) -> None:
    with urllib.request.urlopen(f"{server.ui_url}/ui-settings", timeout=10) as response:
        page_settings = json.load(response)

    assert answers(server.url)
    assert page_settings["api_url"] == server.url


def test_an_own_server_sends_nothing_home(server: PrefectServer) -> None:
    with urllib.request.urlopen(f"{server.url}/admin/settings", timeout=10) as response:
        assert json.load(response)["server"]["analytics_enabled"] is False
    assert os.environ["DO_NOT_TRACK"] == "1"


def test_an_own_server_is_told_not_to_advertise(server: PrefectServer) -> None:
    variables = [process.environ() for process in processes_on_port(server.url)]

    assert len(variables) == 2  # the guard and the server
    assert all(PRIVATE.items() <= found.items() for found in variables)


def test_a_nested_call_lends_the_running_server(server: PrefectServer) -> None:
    with prefect_server() as nested:
        assert nested == PrefectServer(url=server.url, ui_url=server.ui_url, owned=False)
    assert answers(server.url)
    assert os.environ["PREFECT_API_URL"] == get_current_settings().api.url == server.url


def test_threads_share_one_server_that_leaves_no_trace(tmp_path: Path) -> None:
    # A proxy that answers nobody: requests to an own server must not leave for it.
    proxy = "http://127.0.0.1:9"

    result = run_python(TWO_THREADS_AND_AN_INNER_CALL, tmp_path, http_proxy=proxy)

    assert isinstance(result, dict)
    urls = {url for seen in result["seen"] for url in (seen[0], seen[2])}
    assert len(urls) == 1
    assert sorted([owned, inner] for _, owned, _, inner in result["seen"]) == [
        [False, False],
        [True, False],
    ]
    assert result["restored"]
    assert processes_on_port(urls.pop()) == []


def test_an_own_server_does_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    with start_python(FORKS_THEN_WAITS, tmp_path) as owner:
        assert owner.stdout is not None
        url, forked_child = owner.stdout.readline().split()
        was_running = processes_on_port(url)

        owner.send_signal(signal.SIGKILL)

        left = await_none_on_port(url)
        os.kill(int(forked_child), signal.SIGKILL)
    assert was_running
    assert left == []


@pytest.mark.slow
def test_a_throw_away_server_does_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    script = FORKS_THEN_WAITS.replace(*THROW_AWAY)
    with start_python(script, tmp_path) as owner:
        assert owner.stdout is not None
        url, forked_child = owner.stdout.readline().split()
        was_running = processes_on_port(url)

        owner.send_signal(signal.SIGKILL)

        left = await_none_on_port(url)
        os.kill(int(forked_child), signal.SIGKILL)
    assert was_running
    assert left == []
    assert list(tmp_path.glob("patchworks-prefect-*")) == []


def test_a_configured_server_is_used_and_left_running(
    server: PrefectServer, tmp_path: Path
) -> None:
    used = run_python(USES_WHAT_IS_CONFIGURED, tmp_path, PREFECT_API_URL=server.url)

    assert used == [server.url, False, "false"]
    assert answers(server.url)


def test_a_flow_inside_another_uses_the_server_of_that_one(tmp_path: Path) -> None:
    found = run_python(
        FLOWS_AROUND_FLOWS,
        tmp_path,
        PREFECT_HOME=str(tmp_path / "home"),
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="true",  # as outside of these tests
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="90",  # the default, 20, is Prefect's
    )

    assert found == [[1, 1], 2, ["Completed"] * 4]
    assert not (tmp_path / "data").exists(), "no server of our own beside it"


def test_a_silent_configured_server_is_an_error_that_says_what_to_do() -> None:
    url = "http://127.0.0.1:9/api"
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(ServerError, match=rf"{url}.*prefect server start.*unset PREFECT_API_URL"),
        prefect_server(),
    ):
        pass


def test_a_page_at_the_configured_url_is_no_prefect_server(
    web_server_that_is_not_prefect: str,
) -> None:
    with (
        temporary_settings({PREFECT_API_URL: web_server_that_is_not_prefect}),
        pytest.raises(ServerError, match="ends in /api"),
        prefect_server(),
    ):
        pass


def test_a_server_that_ends_while_starting_shows_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with temporary_settings({PREFECT_HOME: tmp_path}):
        monkeypatch.setenv("PREFECT_SERVER_LOGGING_LEVEL", "no such level")
        started_s = time.monotonic()
        with (
            pytest.raises(ServerError, match=r"(?si)ended with status.*no such level"),
            own_server(90),
        ):
            pass
    assert time.monotonic() - started_s < 45


def test_a_template_that_did_not_start_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with temporary_settings({PREFECT_HOME: tmp_path}):
        monkeypatch.setenv("PREFECT_SERVER_LOGGING_LEVEL", "no such level")
        template = empty_database_template()
        template.write_text("damaged")
        with pytest.raises(ServerError), own_server(90):
            pass
    assert not template.exists()


def test_a_server_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(ServerError, match=r"was not up after 0\.5 s") as error, own_server(0.5):
        pass
    url = str(error.value).split("for ")[1].split()[0]
    assert processes_on_port(url) == []
