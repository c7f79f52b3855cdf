"""A bar that shows how far a step is."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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
    look: Callable[[], int] | None = None,
) -> Iterator[Item]:
    """Yield `results`, moving a bar by ``count(result)`` for each; bytes are shown as MB/s.

    Where results are long in coming, `look` says how far things are in the meantime.
    """
    scaled = unit == "B"
    with (
        tqdm(
            total=total, desc=what, unit=unit, unit_scale=scaled, disable=not shown, leave=True
        ) as bar,
        _looking(bar, look if shown else None),
    ):
        n_done = 0
        for result in results:
            n_done += count(result)
            bar.update(max(0, n_done - bar.n))
            yield result


@contextmanager
def _looking(bar: Any, look: Callable[[], int] | None) -> Iterator[None]:
    """Move a bar to what `look` says, every second, or seldom enough to cost little."""
    if look is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        pause_s = 1.0
        while not ended.wait(pause_s):
            start = time.monotonic()
            bar.update(max(0, look() - bar.n))
            pause_s = max(1.0, 20 * (time.monotonic() - start))

    watching = threading.Thread(target=watch, name="patchworks-progress", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def say(text: str, *, shown: bool) -> None:
    """Print a line where bars are shown, without breaking them."""
    if shown:
        tqdm.write(text, file=sys.stderr)
