"""What the pages say: their commands can be run one after the other, and every name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import flows
import patchworks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SEGMENT = re.compile(r"patchworks (segment docs/nuclei\.tif .*)")


@pytest.mark.parametrize("package", [patchworks, flows], ids=["patchworks", "flows"])
def test_every_public_name_is_on_a_page(package):
    said = "".join([page.read_text() for page in PAGES if "design" not in page.parts])
    assert [name for name in package.__all__ if not re.search(rf"\b{name}\b", said)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for place, part in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", text):
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), place
        if part and target.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
            assert part in anchors, f"{place}#{part}"


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
