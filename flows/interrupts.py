"""Ctrl-C stays Ctrl-C, whatever becomes of it on its way up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt in place of an error that came of one.

    Prefect keeps its contexts in pydantic models. Where Ctrl-C strikes while pydantic calls Python,
    pydantic raises an error of its own: a run that was stopped would show as failed, with a trace
    that tells nobody why. The workers get a Ctrl-C of the terminal as well, and what the flow hears
    first may be that they have died.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    interrupted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if interrupted.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
