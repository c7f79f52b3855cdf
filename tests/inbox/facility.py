"""A facility of its own: a real server on loopback, workers, deployments; every process is killed.

::

    folder/home    of Prefect: its database    folder/inbox    what microscopes write into
    folder/*.log   of each process             folder/prefect.yaml    with shorter waits
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.inbox.ledger import Ledger
from flows.own_server import RECORDED_AT_ONCE, free_port, is_healthy

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"
T = TypeVar("T")

schedules_work = pytest.mark.skipif(
    tuple(map(int, version("sqlalchemy").split(".")[:2])) >= (2, 1),
    reason="the scheduler of Prefect 3.8.8 cannot insert runs with SQLAlchemy 2.1",
)


class Facility:
    """A server and what belongs to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.inbox = folder / "inbox"
        self.inbox.mkdir()
        self.extra: dict[str, str] = {}

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PATCHWORKS"))}
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(path),
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "5",
            "PREFECT_WORKER_QUERY_SECONDS": "4",
            "DO_NOT_TRACK": "1",
            **RECORDED_AT_ONCE,
            **self.extra,
        }

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a process, whose output goes on in its log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[name]

    def start_server(self) -> None:
        port = str(self.port)
        self.start(
            "server", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port
        )
        self.await_("the server", lambda: is_healthy(self.port) or None, 90)

    def start_worker(self, pool: str) -> None:
        named = ("--pool", pool, "--name", f"{pool}-1")
        self.start(f"worker-{pool}", "-m", "prefect", "worker", "start", *named)

    def kill(self, name: str) -> None:
        """End a process and all that it started, at once."""
        process = self.processes.pop(name)
        with suppress(psutil.NoSuchProcess):
            for each in [*psutil.Process(process.pid).children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        process.kill()
        process.wait()

    def deploy(self, *arguments: str, settle_s: int = 4, interval_s: int = 40) -> str:
        """Deploy with shorter waits, as the command does."""
        said = FILE.read_text().replace("settle_s: 60", f"settle_s: {settle_s}, poll_s: 2")
        said = said.replace("interval: 300", f"interval: {interval_s}")
        said += "  - { <<: *on_cpu, name: cpu, entrypoint: tests.inbox.quick.quick_flow }\n"
        (self.folder / "prefect.yaml").write_text(said)
        file = str(self.folder / "prefect.yaml")
        command = [sys.executable, "-m", "flows.cli", "deploy", "--file", file]
        done = subprocess.run(
            [*command, "--inbox", str(self.inbox), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.inbox / ".ledger")

    def n(self, state: Any) -> int:
        folder = self.inbox / ".ledger" / state
        return len(self.ledger.keys(state)) if folder.exists() else 0

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        with (
            temporary_settings({PREFECT_API_URL: self.url}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def take_up(self, inbox: UUID) -> None:
        """Ask for passes over the inbox until one has begun an image: the first only looks."""
        taking = {"limit": 2, "settle_s": 4, "poll_s": 2}
        with self.client() as client:
            for _ in range(5):
                run = client.create_flow_run_from_deployment(inbox, parameters={"taking": taking})
                time.sleep(5)

                def begun_or_over(run: FlowRun = run) -> bool | None:
                    state = client.read_flow_run(run.id).state
                    return bool(self.n("open")) or (state and state.is_final()) or None

                self.await_("a pass", begun_or_over, 180)
                if self.n("open") or self.n("done"):
                    return
        raise AssertionError(f"no image was begun\n{self.logs()}")

    def trust(self, client: SyncPrefectClient, inbox: DeploymentResponse) -> None:
        """Let settings files name functions, as a person does in the deployment's form."""
        taking = {**inbox.parameters["taking"], "trust_settings": True}
        update = DeploymentUpdate(parameters={**inbox.parameters, "taking": taking})
        client.update_deployment(inbox.id, update)

    def runs(self, prefix: str) -> list[FlowRun]:
        """Flow runs whose names begin so, in the order in which they were asked for."""
        found: list[FlowRun] = []
        with self.client() as client:
            while True:
                part = client.read_flow_runs(
                    limit=200, offset=len(found), sort=FlowRunSort.EXPECTED_START_TIME_ASC
                )
                found += part
                if len(part) < 200:
                    return [run for run in found if run.name.startswith(prefix)]

    def await_(self, what: str, look: Callable[[], T | None], within_s: float) -> T:
        end = time.monotonic() + within_s
        while (found := look()) is None:
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} has ended:\n{self.log_of(name)}"
            assert time.monotonic() < end, f"{what}: not within {within_s} s\n{self.logs()}"
            time.sleep(0.5)
        return found

    def log_of(self, name: str, n_bytes: int = 6000) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-n_bytes:]

    def logs(self) -> str:
        return "\n".join(f"--- {path.stem}\n{self.log_of(path.stem)}" for path in
                         sorted(self.folder.glob("*.log")))  # fmt: skip


@contextmanager
def a_facility(folder: Path) -> Iterator[Facility]:
    facility = Facility(folder)
    try:
        yield facility
    finally:
        for name in list(facility.processes):
            facility.kill(name)


def most_at_once(spans: list[tuple[datetime, datetime]]) -> int:
    """How many of these spans of time overlap at most."""
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running = most = 0
    for _, change in edges:
        running += change
        most = max(most, running)
    return most
