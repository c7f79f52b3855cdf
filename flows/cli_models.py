"""The command `patchworks models`: which weights are on this machine, and getting more."""

from __future__ import annotations

import argparse
from typing import Any

from patchworks.plugins.cellpose.fetch import fetch_model
from patchworks.plugins.cellpose.known_models import FOLDER_VARIABLE, KNOWN, models_folder


def add_models(commands: Any) -> None:
    """Add the command to those of `patchworks`."""
    models = commands.add_parser("models", help="list or fetch the weights of Cellpose's models")
    actions = models.add_subparsers(required=True, metavar="ACTION")
    fetch = actions.add_parser(
        "fetch", help="download a model's weights, for runs on machines without a network too"
    )
    fetch.set_defaults(run=_fetch)
    fetch.add_argument("name", help="such as cyto3, nuclei (Cellpose 3) or cpsam_v2 (Cellpose 4)")
    fetch.add_argument("--overwrite", action="store_true", help="replace weights that are there")
    listing = actions.add_parser("list", help="say which models there are, and which are here")
    listing.set_defaults(run=_list)


def _fetch(options: argparse.Namespace) -> None:
    print(fetch_model(options.name, overwrite=options.overwrite))  # noqa: T201


def _list(_: argparse.Namespace) -> None:
    folder = models_folder()
    print(f"weights in {folder} ({FOLDER_VARIABLE} names another folder)")  # noqa: T201
    for known in sorted(KNOWN.values(), key=lambda known: -known.major):
        here = known.path.name if known.path.is_file() else "-"
        print(f"{known.name:<30}Cellpose {known.major}   {here}")  # noqa: T201
    files = {known.file for known in KNOWN.values()}
    others = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in others:
        if path.is_file() and path.name not in files and not path.name.startswith("."):
            print(f"{path.name:<30}your own     {path.name}")  # noqa: T201
