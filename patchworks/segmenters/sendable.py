"""Whether a segmentation function can be sent to worker processes, and its bytes if it can."""

from __future__ import annotations

import cloudpickle

from patchworks.errors import InputError
from patchworks.segmenters.segmenter import Segmenter, name_of


def pickled(segmenter: Segmenter, otherwise: str = "") -> bytes:
    """Return the bytes of which another process makes the function again.

    Parameters
    ----------
    segmenter : callable
        The function.
    otherwise : str
        What else the caller can do, for the end of the message.

    Raises
    ------
    InputError
        If the function holds what cannot be pickled: a lock, an open file, a session of a network.
    """
    try:
        found: bytes = cloudpickle.dumps(segmenter)
    except Exception as error:  # what cannot be pickled says so in many ways
        raise InputError(
            f"{name_of(segmenter)!r} cannot be sent to worker processes ({error}); load what it "
            f"holds when it is first called{otherwise}"
        ) from error
    return found


def check_sendable(segmenter: Segmenter, otherwise: str = "") -> None:
    """Raise InputError if the function cannot be sent to worker processes.

    One with a method ``prepare`` makes the function that is sent, which may hold less.
    """
    if not hasattr(segmenter, "prepare"):
        pickled(segmenter, otherwise)
