"""What the pages say: their commands can be run one after the other, and every name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SEGMENT = re.compile(r"patchworks (segment docs/nuclei\.tif .*)")


def test_commands_on_one_image_that_differ_write_under_different_names():
    runs: dict[str, set[tuple[str, ...]]] = {}
    for page in PAGES:
        for command in SEGMENT.findall(page.read_text()):
            given = shlex.split(command)
            name = given[given.index("--name") + 1] if "--name" in given else "labels"
            if "--png" in given:  # which decides no label
                del given[(at := given.index("--png")) : at + 2]
            runs.setdefault(name, set()).add(tuple(given))
    assert len(runs) >= 3
    assert {name: run for name, run in runs.items() if len(run) > 1} == {}
