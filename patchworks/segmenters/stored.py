"""A segmentation function in a file, for processes that may never call it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from patchworks.segmenters.segmenter import Segmenter


class StoredSegmenter:
    """A function in a file, which becomes one in the process that calls it, once.

    Processes that only join or write labels need neither its packages nor memory for its model.

    Parameters
    ----------
    path : str
        The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._segmenter: Segmenter | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredSegmenter, (self.path,)

    def load(self) -> Segmenter:
        """Return the function: the same one, whichever thread asks."""
        with _LOADING:
            if self._segmenter is None:
                self._segmenter = cloudpickle.loads(Path(self.path).read_bytes())
            found: Segmenter = self._segmenter
            return found

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Call the function."""
        return self.load()(tile)


_LOADING = threading.RLock()


def loaded(segmenter: Segmenter) -> Segmenter:
    """Return the function itself, read from its file if it lies in one."""
    return segmenter.load() if isinstance(segmenter, StoredSegmenter) else segmenter
