"""A facility's server as `deployments/by_hand.sh` starts it, in a folder of the test."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.own_server import free_port

SCRIPT = Path(__file__).parents[2] / "deployments" / "by_hand.sh"


@dataclass(frozen=True)
class Facility:
    folder: Path
    environment: dict[str, str]

    def script(self, action: str) -> str:
        done = subprocess.run(
            ["bash", SCRIPT, action, self.folder],
            env=self.environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def settings(self) -> dict[str, str]:
        lines = (self.folder / "facility.env").read_text().splitlines()
        pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
        return {name: value.strip('"') for name, value in pairs}

    def processes(self, name: str) -> list[psutil.Process]:
        """Those of a part (server, postgres, worker-cpu), its keeper first."""
        pid = int((self.folder / "run" / f"{name}.pid").read_text())
        keeper = psutil.Process(pid)
        return [keeper, *keeper.children(recursive=True)]

    def kill(self, name: str) -> None:
        """Kill a part as a crash would; its keeper starts it again."""
        for process in self.processes(name)[1:]:
            process.send_signal(signal.SIGKILL)


@contextmanager
def facility(workers: str = "cpu:2") -> Iterator[Facility]:
    # Not the test's own folder: as root, PostgreSQL runs as another user, who must get there.
    folder = Path(tempfile.mkdtemp(prefix="a facility "))
    folder.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "PATCHWORKS_PORT": str(free_port()),
        "PATCHWORKS_DATABASE_PORT": str(free_port()),
        "PATCHWORKS_WORKERS": workers,
    }
    place = Facility(folder, environment)
    try:
        place.script("start")
        yield place
    finally:
        place.script("stop")
        shutil.rmtree(folder)
