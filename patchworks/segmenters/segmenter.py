"""The type of a segmentation function, and the name that messages call it by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Segmenter = Callable[[np.ndarray], np.ndarray]


def name_of(fn: Callable[..., Any]) -> str:
    """Return the name under which messages speak of a function."""
    if isinstance(fn, partial):
        return name_of(fn.func)
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))
