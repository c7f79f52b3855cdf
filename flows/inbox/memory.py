"""What was seen in an inbox before: since when a file has not changed, and what it is a part of.

Kept as a file between looks, by passes and watchers alike. Whoever loses it waits once more.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.inbox.companions import Parts
from patchworks.errors import TargetNotWritableError
from patchworks.io.stage import write_whole

FORMAT = 1


@dataclass(slots=True)
class Seen:
    """A file or folder as it was last seen.

    Parameters
    ----------
    signature : str
        Size and time of it, or of all that is in it.
    since : float
        When it was first seen so, by the clock of whoever looked, in seconds since 1970.
    parts : Parts or None
        What it said of itself, once it was looked into.
    """

    signature: str
    since: float
    parts: Parts | None = None


@dataclass(slots=True)
class Memory:
    """What was seen in an inbox, by path.

    Two looks at least `settle_s` apart must see the same: the time of a file alone says nothing,
    since programs that copy set it to that of the original, and clocks of two machines differ.
    """

    seen: dict[str, Seen] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Memory:
        """Read what was kept; nothing where there is none, or it is damaged."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(path.read_bytes())
            if content["format"] == FORMAT:
                return cls({name: _seen(said) for name, said in content["seen"].items()})
        return cls()

    def save(self, path: Path) -> None:
        """Keep it, as a whole or not at all.

        Raises
        ------
        TargetNotWritableError
            If the file cannot be written.
        """
        said = {name: _said(seen) for name, seen in self.seen.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"format": FORMAT, "seen": said}).encode())
        except OSError as error:
            raise TargetNotWritableError(
                f"{path}: what was seen in the inbox cannot be kept ({error.strerror or error}); "
                f"give a folder that can be written with work_dir="
            ) from error

    def note(self, path: str, signature: str, now: float) -> float:
        """Note what a file is like now; return for how many seconds it has been so.

        Parameters
        ----------
        path : str
            Its path.
        signature : str
            Size and time.
        now : float
            By this machine's clock; where that was set back, the wait begins anew.
        """
        before = self.seen.get(path)
        if before is None or before.signature != signature or before.since > now:
            self.seen[path] = before = Seen(signature, now)
        return now - before.since

    def forget_all_but(self, paths: set[str]) -> None:
        """Forget what is no longer there."""
        for path in self.seen.keys() - paths:
            del self.seen[path]


def _said(seen: Seen) -> list[Any]:
    parts = seen.parts
    return [seen.signature, seen.since] + (
        [] if parts is None else [parts.main, list(parts.others), parts.waits_for]
    )


def _seen(said: list[Any]) -> Seen:
    parts = None
    if len(said) == 5:
        parts = Parts(str(said[2]), tuple(map(str, said[3])), str(said[4]))
    return Seen(str(said[0]), float(said[1]), parts)
