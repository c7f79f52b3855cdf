"""The command `patchworks segmenters`: which functions are known by a name, and what they take."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from textwrap import fill, indent
from typing import Any

from patchworks.errors import PatchworksError
from patchworks.segmenters.description import FactoryParameter, describe_factory
from patchworks.segmenters.registry import (
    find_known,
    known_segmenters,
    load_factory,
    missing_packages,
    package_of,
)

WIDTH = 100


def add_segmenters(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "segmenters", help="list the segmenters that are known by a name, and their parameters"
    )
    parser.set_defaults(run=_show)
    parser.add_argument(
        "name", nargs="?", help="show this one alone, with all that is said of its parameters"
    )


def _show(options: argparse.Namespace) -> None:
    if options.name is None:
        print("\n\n".join(["\n".join(_lines(p)) for p in known_segmenters().values()]))  # noqa: T201
    else:
        print("\n".join(_lines(find_known(options.name), in_full=True)))  # noqa: T201


def _lines(point: EntryPoint, *, in_full: bool = False) -> Iterator[str]:
    """Yield what is known of a segmenter; of one that cannot be imported, why."""
    package = package_of(point)
    yield f"{point.name}  ({package})"
    missing = missing_packages(point)
    if missing:
        yield f"  not installed: {', '.join(missing)}; pip install '{package}[{point.name}]'"
    try:
        described = describe_factory(load_factory(point))
    except (PatchworksError, TypeError, ValueError) as error:
        yield from _wrapped(f"its parameters are not known: {error}", 2)
        return
    yield from _wrapped(described.summary, 2)
    for parameter in described.parameters:
        yield f"    {_signature_of(parameter)}"
        text = parameter.description
        yield from _wrapped(text if in_full else first_sentence(text), 8)


def _signature_of(parameter: FactoryParameter) -> str:
    shown = inspect.Parameter(
        parameter.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=parameter.default,
        annotation=parameter.annotation,
    )
    return str(shown).replace("collections.abc.", "").replace("typing.", "")


def first_sentence(text: str) -> str:
    """Return the first sentence of a text.

    Examples
    --------
    >>> first_sentence("At 0.5 voxels, say. And more.")
    'At 0.5 voxels, say.'
    """
    return re.split(r"(?<=[.?!])\s+(?=[A-Z\"])", text, maxsplit=1)[0]


def _wrapped(text: str, by: int) -> list[str]:
    return indent(fill(text, WIDTH - by), " " * by).splitlines()
