"""What a run says at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from patchworks.tile_stream import TileOutcome

HALVINGS = "times a tile was cut in two, for the function ran out of memory"
"""What stands behind their number."""


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
    n_unread : int
        Of the empty tiles those of which no voxel was read: the image's maximum map says it.
    seconds : dict of str to float
        Wall time per step.
    warnings : tuple of str
        What whoever uses the labels should know.
    n_bytes_decoded, n_bytes_needed : int
        Bytes of the image's chunks that were decoded for the tiles segmented now, and bytes of the
        voxels of their cores, as far as they were read, uncompressed. The quotient is the read
        amplification: 1.0 where every chunk was decoded once, and all of it needed.
    function_s : float
        Seconds in the function, summed over its calls.
    n_workers : int
        Function calls at a time.
    projected_bytes : int
        Memory that the run was planned with, at its peak; 0 where it runs in other processes.
    n_halvings : int
        How often a tile segmented now, or a part of one, was cut in two because the function ran
        out of memory.
    """

    labels: str
    n_tiles: int
    n_objects: int = 0
    n_segmented: int = 0
    n_empty: int = 0
    n_reused: int = 0
    n_unread: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    n_bytes_decoded: int = 0
    n_bytes_needed: int = 0
    function_s: float = 0.0
    n_workers: int = 1
    projected_bytes: int = 0
    n_halvings: int = 0

    def count(self, outcomes: Sequence[TileOutcome]) -> None:
        """Add what became of some tiles."""
        for outcome in outcomes:
            self.n_bytes_decoded += outcome.n_bytes
            self.n_bytes_needed += outcome.n_bytes_needed
            self.function_s += outcome.function_s
            self.n_halvings += outcome.n_halvings
            if outcome.status == "segmented":
                self.n_segmented += 1
            elif outcome.status == "empty":
                self.n_empty += 1
                self.n_unread += outcome.n_bytes_needed == 0
            else:
                self.n_reused += 1

    def add(self, measured: Mapping[str, Any]) -> None:
        """Add what was measured of a batch of tiles, by the names of the fields."""
        for name in ("n_bytes_decoded", "n_bytes_needed", "function_s", "n_halvings"):
            setattr(self, name, getattr(self, name) + measured.get(name, 0))

    @property
    def read_amplification(self) -> float | None:
        """Bytes decoded per byte needed, or None if nothing was read."""
        return self.n_bytes_decoded / self.n_bytes_needed if self.n_bytes_needed else None

    @property
    def busy(self) -> float | None:
        """Share of the segmentation step in which the workers were in the function, 0 to 1."""
        seconds = self.seconds.get("segment", 0.0) * self.n_workers
        return min(1.0, self.function_s / seconds) if seconds and self.function_s else None

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
        empty = "empty" + f" ({self.n_unread} of them not read)" * bool(self.n_unread)
        extra = [(self.n_empty, empty), (self.n_reused, "done before")]
        tiles += "".join(f", {n} {what}" for n, what in extra if n)
        steps = ", ".join(f"{name} {s:.2f} s" for name, s in self.seconds.items())
        parts = [tiles, steps]
        if self.busy is not None:
            parts.append(f"function {self.busy:.0%} of segment")
        if self.read_amplification is not None:
            parts.append(f"each voxel decoded {self.read_amplification:.1f} times")
        if self.n_halvings:
            parts.append(f"{self.n_halvings} {HALVINGS}")
        if self.projected_bytes:
            parts.append(f"up to {self.projected_bytes / 2**30:.1f} GiB of memory")
        return f"{self.n_objects} objects in {self.labels} ({'; '.join(parts)})"
