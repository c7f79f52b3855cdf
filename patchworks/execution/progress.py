"""How far a step is: a bar that shows it, or a function that is told."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")

Progress = bool | Callable[[str, int, int], None]
"""Whether bars are shown. A function is told instead: ``progress(step, n_done, n_total)``, now and
then, from any thread; it must not raise."""


def with_progress(
    results: Iterable[Item],
    *,
    total: int,
    what: str,
    unit: str,
    shown: Progress,
    count: Callable[[Item], int],
    look: Callable[[], int] | None = None,
) -> Iterator[Item]:
    """Yield `results`, moving a bar by ``count(result)`` for each; bytes are shown as MB/s.

    Where results are long in coming, `look` says how far things are in the meantime. A function in
    place of `shown` is told instead of a bar.
    """
    with _bar(shown, total, what, unit) as bar, _looking(bar, look if shown else None):
        n_done = 0
        for result in results:
            n_done += count(result)
            bar.update(max(0, n_done - bar.n))
            yield result


def _bar(shown: Progress, total: int, what: str, unit: str) -> Any:
    if callable(shown):
        return closing(_Told(shown, what, total))
    scaled = unit == "B"
    return tqdm(total=total, desc=what, unit=unit, unit_scale=scaled, disable=not shown, leave=True)


class _Told:
    """Takes a bar's place, and hands on what it would show."""

    def __init__(self, tell: Callable[[str, int, int], None], what: str, total: int) -> None:
        self.tell = tell
        self.what = what
        self.total = total
        self.n = 0
        self.update(0)

    def update(self, n_more: int) -> None:
        """Say that so many more are done."""
        self.n += n_more
        self.tell(self.what, self.n, self.total)

    def close(self) -> None:
        """Do nothing: a function needs no closing."""


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


def say(text: str, *, shown: Progress) -> None:
    """Print a line where bars are shown, without breaking them."""
    if shown is True:
        tqdm.write(text, file=sys.stderr)
