"""A model that each process loads once, when it first needs it, and uses one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

Model = TypeVar("Model")


class _Held(Generic[Model]):
    """A model in this process, and the lock of who uses it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.model: list[Model] = []


@dataclass(frozen=True)
class ProcessModel(Generic[Model]):
    """How to load a model; what is pickled and fingerprinted is this, never the model.

    Equal ones share one model in a process, for as long as any of them is there: tiles, batches and
    runs side by side load it once. Calls of it do not overlap: models are seldom safe for threads,
    and their libraries use all cores, or the one GPU, in one call.

    Parameters
    ----------
    load : callable
        A function of a module that loads the model.
    arguments : tuple
        Its arguments, hashable.

    Examples
    --------
    >>> model = ProcessModel(str, (7,))
    >>> with model.use() as text:
    ...     text
    '7'
    """

    load: Callable[..., Model]
    arguments: tuple[Any, ...] = ()

    @contextmanager
    def use(self) -> Iterator[Model]:
        """Give the model, this process's own, to nobody else for as long."""
        held = self._held()
        with held.lock:
            if not held.model:
                held.model.append(self.load(*self.arguments))
            yield held.model[0]

    def _held(self) -> _Held[Model]:
        with _FINDING:
            held: _Held[Model] | None = self.__dict__.get("_own")
            if held is None:
                held = _HELD.setdefault((self.load, self.arguments), _Held())
                object.__setattr__(self, "_own", held)
            return held

    def __getstate__(self) -> dict[str, Any]:
        return {"load": self.load, "arguments": self.arguments}


_HELD: WeakValueDictionary[Any, _Held[Any]] = WeakValueDictionary()
_FINDING = threading.Lock()
