"""The example of a package that offers a segmenter, installed in a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "patchworks-example"


def install(folder: Path) -> None:
    """Install it as users do; the tool that builds it comes from the index."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet"]
    source = shutil.copytree(EXAMPLE, folder.with_name(f"{folder.name}-source"))
    done = subprocess.run(
        [*command, "--target", str(folder), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def lay_out(folder: Path) -> None:
    """Write what an installer writes, without one."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    shutil.copytree(EXAMPLE / name, folder / name)
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
    )
    groups = project["entry-points"]
    lines = [f"[{g}]\n" + "".join([f"{k} = {v}\n" for k, v in groups[g].items()]) for g in groups]
    (about / "entry_points.txt").write_text("\n".join(lines))


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}


def run_python(script: str, folder: Path, **variables: str) -> Any:
    """Run a script where the package is installed, and return what its last line holds as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(folder) | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
