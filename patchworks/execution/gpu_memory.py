"""How much memory of its GPU a function takes at its peak."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from patchworks.errors import PatchworksError
from patchworks.execution.gpus import Gpu, visible_gpus

LOOK_EVERY_S = 0.01


class GpuWatch:
    """Watches the memory of GPUs while it is entered; the one that most was taken of counts.

    Everybody's use is counted, for NVML knows of no process inside a container: measure while
    nothing else runs there. Libraries keep what they once took: little is missed in between.

    Parameters
    ----------
    gpus : sequence of Gpu
        Which to watch, as they were before the function took anything; none costs nothing.
    look : callable
        Returns what they are like now.
    """

    def __init__(
        self, gpus: Sequence[Gpu] = (), look: Callable[[], Sequence[Gpu]] = visible_gpus
    ) -> None:
        self._free_before = {gpu.name: gpu.free_bytes for gpu in gpus}
        self._look = look
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.peak_bytes = 0

    def __enter__(self) -> GpuWatch:
        self.peak_bytes = 0
        if self._free_before:
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._see()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self._see()

    def _see(self) -> None:
        with suppress(PatchworksError):  # one look that failed is not worth an error
            taken = [self._free_before.get(g.name, 0) - g.free_bytes for g in self._look()]
            self.peak_bytes = max(self.peak_bytes, *taken, 0)
