"""What a run says at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from patchworks.pipeline import TileOutcome


@dataclass
class RunReport:
    """What a run did: where the labels are, how many, and how long each step took.

    Parameters
    ----------
    labels : str
        Path or URL of the label image.
    n_objects : int
        Objects in it.
    n_tiles, n_segmented, n_empty, n_reused : int
        All tiles; those segmented now; those left out as empty; those an earlier try had done.
    seconds : dict of str to float
        Wall time per step.
    warnings : tuple of str
        What whoever uses the labels should know.
    """

    labels: str
    n_tiles: int
    n_objects: int = 0
    n_segmented: int = 0
    n_empty: int = 0
    n_reused: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def count(self, outcomes: Sequence[TileOutcome]) -> None:
        """Add what became of some tiles."""
        for outcome in outcomes:
            if outcome.status == "segmented":
                self.n_segmented += 1
            elif outcome.status == "empty":
                self.n_empty += 1
            else:
                self.n_reused += 1

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start

    def __str__(self) -> str:
        tiles = f"{self.n_segmented} of {self.n_tiles} tiles segmented"
        extra = [(self.n_empty, "empty"), (self.n_reused, "done before")]
        tiles += "".join(f", {n} {what}" for n, what in extra if n)
        steps = ", ".join(f"{name} {s:.2f} s" for name, s in self.seconds.items())
        return f"{self.n_objects} objects in {self.labels} ({tiles}; {steps})"
