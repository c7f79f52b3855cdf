"""The commands of docs/facility.md, as they stand there, in a fresh clone and a fresh environment.

Needs Debian's package postgresql, and a package index; takes some minutes.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zarr

from flows.own_server import free_port

ROOT = Path(__file__).parents[2]
MARK = "<!-- test: ten minutes -->"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def documented() -> str:
    text = (ROOT / "docs" / "facility.md").read_text()
    [block] = re.findall(rf"{re.escape(MARK)}\n```bash\n(.*?)```", text, re.DOTALL)
    return block


@pytest.fixture
def home() -> Iterator[Path]:
    # Not the test's own folder: as root, PostgreSQL runs as another user, who must get there.
    folder = Path(tempfile.mkdtemp(prefix="home-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def awaited(results: Path, seconds: float = 600) -> list[Path]:
    """The schedule fires within five minutes, and the file has to settle."""
    deadline = time.monotonic() + seconds
    while not (found := list(results.glob("*/labels/*/0"))) and time.monotonic() < deadline:
        time.sleep(2)
    return found


def test_from_nothing_to_a_scheduled_facility(home):
    clone = home / "patchworks"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PYTHONPATH"))}
    environment = {
        **kept,
        "HOME": str(home),
        "PATCHWORKS_PORT": str(free_port()),
        "PATCHWORKS_DATABASE_PORT": str(free_port()),
    }

    def bash(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=clone, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    try:
        print(bash(documented()))
        [labels] = awaited(home / "inbox" / "results")
        assert zarr.open_array(labels)[:].max() > 50
        assert not list((home / "inbox").glob("quarantine/*.txt"))
        said = bash(
            "set -a; . ~/facility/facility.env; set +a; export PATH=$PWD/.venv/bin:$PATH;"
            "prefect deployment ls; prefect deployment schedule ls 'process inbox/inbox'"
        )
        assert "process image/cpu" in said
    finally:
        bash("deployments/by_hand.sh stop ~/facility")
