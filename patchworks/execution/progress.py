"""A bar that shows how far a step is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


def with_progress(
    results: Iterable[Item],
    *,
    total: int,
    what: str,
    unit: str,
    shown: bool,
    count: Callable[[Item], int],
) -> Iterator[Item]:
    """Yield `results`, moving a bar by ``count(result)`` for each; bytes are shown as MB/s."""
    scaled = unit == "B"
    with tqdm(
        total=total, desc=what, unit=unit, unit_scale=scaled, disable=not shown, leave=True
    ) as bar:
        for result in results:
            bar.update(count(result))
            yield result


def say(text: str, *, shown: bool) -> None:
    """Print a line where bars are shown, without breaking them."""
    if shown:
        tqdm.write(text, file=sys.stderr)
