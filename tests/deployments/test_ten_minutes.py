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
DATA = ROOT.parent / "shared" / "data"
MARK = "<!-- test: ten minutes -->"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not DATA.is_dir(), reason="real files are not here"),
]


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


def awaited(results: Path, n_images: int, seconds: float = 700) -> list[Path]:
    """The schedule fires within five minutes, and a file has to settle for one."""
    deadline = time.monotonic() + seconds
    while len(found := list(results.glob("*/labels/*/0"))) < n_images:
        assert time.monotonic() < deadline, f"{len(found)} of {n_images} images"
        time.sleep(2)
    return found


def drop_more(inbox: Path) -> None:
    """Two more images of the microscope's, and one that was cut off."""
    nuclei = (inbox / "nuclei.tif").read_bytes()
    for name in ("maize_clsm.tif", "stardist_img3d.tif"):
        shutil.copy(DATA / name, inbox)
    (inbox / "broken.tif").write_bytes(nuclei[:100_000])


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
        began = time.monotonic()
        print(bash(documented()))
        print(f"the commands took {time.monotonic() - began:.0f} s")
        drop_more(home / "inbox")
        for labels in awaited(home / "inbox" / "results", 3):
            n_objects = int(zarr.open_array(labels)[:].max())
            print(f"{labels.relative_to(home)}: {n_objects} objects")
            assert n_objects > 10
        print(f"three label images after {time.monotonic() - began:.0f} s")
        [quarantined] = (home / "inbox").glob("quarantine/*.txt")
        print(quarantined.name, quarantined.read_text())
        assert quarantined.name == "broken.tif.txt"
        said = bash(
            "set -a; . ~/facility/facility.env; set +a; export PATH=$PWD/.venv/bin:$PATH;"
            "prefect deployment ls; prefect deployment schedule ls 'process inbox/inbox'"
        )
        assert "process image/cpu" in said
    finally:
        bash("deployments/by_hand.sh stop ~/facility")
