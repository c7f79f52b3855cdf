"""Real servers, real processes, a history in a folder of the test's own."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running

from flows.crashed import report_crashed
from flows.errors import HistoryError
from flows.history import DATA_DIR, history_folder, server_with_history
from flows.server import PrefectServer
from flows.server_guard import held_leases, try_lock
from tests.flows.test_server import answers, await_none_on_port, processes_on_port, start_python

FLOW = """
import os, signal, sys, time
from prefect import flow, task
from flows.server import prefect_server

@task
def double(i):
    return 2 * i

@flow(name="kept")
def kept(n):
    return [future.result() for future in [double.submit(i) for i in range(n)]]

@task
def wait(i):
    time.sleep(60)

@flow(name="killed")
def killed():
    for i in range(3):
        wait.submit(i)
    time.sleep(3)
    os.kill(os.getpid(), signal.SIGKILL)
"""

RUNS = f"""{FLOW}
with prefect_server(announce=True) as server, prefect_server(announce=True):
    kept(100)
    print(server.url, server.owned)
"""

IS_KILLED = f"""{FLOW}
with prefect_server() as server:
    print(server.url, flush=True)
    killed()
"""

RUNS_WHEN_TOLD = f"""{FLOW}
with prefect_server() as server:
    print(server.url, server.owned, os.getpid(), flush=True)
    sys.stdin.readline()
    kept(3)
print("ran", flush=True)
"""

UI = "from flows.cli import main; raise SystemExit(main(['ui']))"


def ask(url: str, what: str, **wanted: Any) -> Any:
    request = urllib.request.Request(
        f"{url}/{what}/filter",
        data=json.dumps(wanted).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def states_of(url: str, flow_name: str) -> list[str]:
    by_name = {"flows": {"name": {"any_": [flow_name]}}}
    return [run["state_type"] for run in ask(url, "flow_runs", **by_name)]


def task_states_of(url: str, flow_name: str) -> list[str]:
    by_name = {"flows": {"name": {"any_": [flow_name]}}}
    return [run["state_type"] for run in ask(url, "task_runs", **by_name)]


def line_of(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def go_on(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return line_of(process)


def start_waiting(tmp_path: Path) -> subprocess.Popen[str]:
    return start_python(RUNS_WHEN_TOLD, tmp_path, stdin=subprocess.PIPE)


@pytest.mark.slow
def test_past_runs_are_kept_and_killed_ones_are_crashed(tmp_path: Path) -> None:
    with start_python(RUNS, tmp_path, stderr=subprocess.PIPE) as first:
        output, messages = first.communicate(timeout=120)
    first_url, owned = output.split()
    with start_python(IS_KILLED, tmp_path) as second:
        (killed_url,) = line_of(second)
    left_by_killed = await_none_on_port(killed_url)

    with start_python(UI, tmp_path) as ui:
        page = line_of(ui)[2]
        database = line_of(ui)[1]
        with_prefect = " ".join(line_of(ui))
        url = f"{page}/api"
        kept, kept_tasks = states_of(url, "kept"), task_states_of(url, "kept")
        killed, killed_tasks = states_of(url, "killed"), task_states_of(url, "killed")
        with start_python(RUNS, tmp_path) as joins:
            joined, _ = joins.communicate(timeout=120)
        n_after_joining = len(states_of(url, "kept"))
        ui.send_signal(signal.SIGINT)
    page_left = processes_on_port(url)

    assert owned == "True"
    assert processes_on_port(first_url) == []
    announced = [line for line in messages.splitlines() if line.startswith("Prefect UI:")]
    assert announced == [
        f"Prefect UI: {first_url.removesuffix('/api')}"
        " (for as long as this run lasts; later: patchworks ui)"
    ]
    assert second.returncode == -signal.SIGKILL
    assert left_by_killed == []
    # A page of the filter holds 200; none of the 100 may have been lost at the end.
    assert (kept, kept_tasks) == (["COMPLETED"], ["COMPLETED"] * 100)
    assert (killed, killed_tasks) == (["CRASHED"], ["CRASHED"] * 3)
    assert database == str(tmp_path / "data" / "prefect" / "prefect.db")
    assert f"'sqlite+aiosqlite:///{database}' prefect server start" in with_prefect
    assert joined.split() == [url, "False"]
    assert n_after_joining == 2
    assert ui.returncode == 0
    assert page_left == []


@pytest.mark.slow
@pytest.mark.slow
def test_processes_that_start_at_once_share_a_server_that_outlives_its_starter(
    tmp_path: Path,
) -> None:
    users = [start_waiting(tmp_path) for _ in range(3)]
    said = [line_of(user) for user in users]
    (url,) = {words[0] for words in said}
    owners = [user for user, words in zip(users, said, strict=True) if words[1] == "True"]
    others = [user for user in users if user not in owners]

    owners[0].kill()
    owners[0].communicate()
    time.sleep(1.5)  # three looks of the guard
    outlived = answers(url)
    ran = [go_on(user) for user in others]
    for user in others:
        user.communicate(timeout=60)

    assert len(owners) == 1
    assert outlived
    assert ran == [["ran"], ["ran"]]
    assert [user.returncode for user in others] == [0, 0]
    assert processes_on_port(url) == []
    assert list((tmp_path / "data" / "prefect" / "leases").iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")

    with start_python(RUNS, tmp_path, stderr=subprocess.PIPE) as process:
        output, messages = process.communicate(timeout=120)

    assert process.returncode == 0
    url, owned = output.split()
    assert owned == "True"
    assert messages.count("HistoryWarning") == 1
    assert f"cannot be kept in {tmp_path / 'data' / 'prefect'}" in messages
    assert f"Prefect UI: {url.removesuffix('/api')} (for as long as this run lasts)" in messages
    assert processes_on_port(url) == []


@pytest.mark.slow
def test_a_damaged_database_is_one_warning_and_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    history_folder().mkdir()
    database = history_folder() / "prefect.db"
    database.write_bytes(b"no database" * 1000)

    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(HistoryError, match=r"(?s)Mend that folder.*file is not a database"),
        server_with_history(90),
    ):
        pass

    assert database.read_bytes() == b"no database" * 1000
    with start_python(RUNS, tmp_path, stderr=subprocess.PIPE, **{DATA_DIR: str(tmp_path)}) as run:
        output, messages = run.communicate(timeout=120)
    assert (run.returncode, messages.count("HistoryWarning")) == (0, 1)
    assert processes_on_port(output.split()[0]) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the server stays")
def test_a_server_does_not_outlive_a_killed_guard(tmp_path: Path) -> None:
    with start_waiting(tmp_path) as user:
        url = line_of(user)[0]
        guard = min(processes_on_port(url), key=lambda process: process.create_time())
        guard.kill()
        left = await_none_on_port(url)
        user.kill()
    assert left == []


@pytest.mark.slow
def test_the_starter_may_leave_first(tmp_path: Path) -> None:
    with start_waiting(tmp_path) as starter:
        url = line_of(starter)[0]
        with start_waiting(tmp_path) as other:
            joined_url, owned, _ = line_of(other)
            go_on(starter)
            starter.communicate(timeout=60)
            time.sleep(1.5)
            ran = go_on(other)
            other.communicate(timeout=60)
    assert (joined_url, owned, ran) == (url, "False", ["ran"])
    assert processes_on_port(url) == []


@pytest.fixture
def used_by_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    record = history_folder() / "server.json"
    record.parent.mkdir()
    there = {"url": "http://127.0.0.1:4200/api", "loopback": "node7 1234", "host": "node7"}
    record.write_text(json.dumps(there))
    return record


def test_a_history_that_another_host_uses_is_refused(used_by_another_host: Path) -> None:
    with pytest.raises(HistoryError, match=r"in use by the server of host node7.*"):
        server_with_history(5).__enter__()
    assert held_leases(history_folder(), remove_others=False) == []


def test_a_turn_that_never_comes_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    history_folder().mkdir()
    turn = try_lock(history_folder() / "turn.lock")
    assert turn is not None

    with pytest.raises(HistoryError, match=r"held turn\.lock for 0\.2 s"):
        server_with_history(0.2).__enter__()
    os.close(turn)


def test_the_data_folder_of_the_user_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_DIR)
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert history_folder().parts[-2:] == ("patchworks", "prefect")


@flow(name="left running")
def left_running() -> None: ...


@task
def sleep() -> None: ...


def create_runs(server: PrefectServer) -> tuple[UUID, list[UUID]]:
    with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
        run = client.create_flow_run(left_running, state=Running())
        states: list[State[Any]] = [Running(), Completed()]
        tasks = [
            client.create_task_run(sleep, run.id, dynamic_key=str(i), state=state).id
            for i, state in enumerate(states)
        ]
    return run.id, tasks


def test_a_dead_run_and_its_unfinished_tasks_are_crashed(server: PrefectServer) -> None:
    run_id, tasks = create_runs(server)

    report_crashed(run_id, "killed by the test")
    report_crashed(run_id, "a second time")

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
        task_states = [client.read_task_run(id).state for id in tasks]
    assert state is not None
    assert (state.name, state.message) == ("Crashed", "killed by the test")
    assert [found.name for found in task_states if found] == ["Crashed", "Completed"]


def test_a_run_that_the_server_does_not_know_is_left_alone(
    server: PrefectServer, caplog: pytest.LogCaptureFixture
) -> None:
    report_crashed(uuid4(), "no such run")
    assert caplog.messages == []


def test_a_silent_server_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        caplog.at_level(logging.WARNING),
    ):
        report_crashed(uuid4(), "nobody hears this")
    assert len([text for text in caplog.messages if "could not set flow run" in text]) == 1


def test_ui_opens_the_pages_of_a_configured_server(server: PrefectServer, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 > {tmp_path}/opened\n")
    browser.chmod(0o755)
    script = "from flows.cli import main; raise SystemExit(main(['ui', '--open']))"

    with start_python(script, tmp_path, PREFECT_API_URL=server.url, BROWSER=f"{browser} %s") as ui:
        output, _ = ui.communicate(timeout=60)

    assert ui.returncode == 0
    assert output.startswith(f"Prefect UI: {server.ui_url} (")
    assert (tmp_path / "opened").read_text().strip() == server.ui_url


@pytest.mark.slow
def test_a_server_that_is_killed_while_in_use_comes_back(tmp_path: Path) -> None:
    with start_waiting(tmp_path) as user:
        url, *_ = line_of(user)
        for process in processes_on_port(url):
            if "server_guard.py" not in " ".join(process.cmdline()):
                process.kill()
                process.wait()
        died = not is_up(url)
        deadline = time.monotonic() + 60
        while not is_up(url) and time.monotonic() < deadline:
            time.sleep(0.1)
        came_back = is_up(url)
        ran = go_on(user)
        user.communicate(timeout=60)
    left = await_none_on_port(url)

    assert died
    assert came_back
    assert ran == ["ran"]
    assert left == []


def is_up(url: str) -> bool:
    try:
        return answers(url)
    except OSError:
        return False
