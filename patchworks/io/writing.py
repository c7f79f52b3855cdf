"""Whether something can be written at a place, and what happens when it cannot."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchworks.errors import PatchworksError, TargetNotWritableError
from patchworks.io.location import Location

BESIDE = (
    "make room or give another target. What is written is kept beside it, and the same call goes "
    "on from there"
)


def check_writable(place: Location, advice: str) -> None:
    """Raise TargetNotWritableError if nothing can be created at a local place.

    What is made to find that out has a name of its own and is removed again: folders that other
    runs may have found there in the meantime are neither made nor removed.
    """
    if not place.is_local:
        return
    folder = place.path.parent
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=folder) as probe:
            Path(probe, place.path.relative_to(folder)).mkdir(parents=True)
    except OSError as error:
        raise TargetNotWritableError(
            f"{place}: cannot be written ({error.strerror or error}); {advice}"
        ) from error


@contextmanager
def writing(place: Location | Path, advice: str = BESIDE) -> Iterator[None]:
    """Turn what storage raises into a TargetNotWritableError that names the place."""
    try:
        yield
    except (PatchworksError, MemoryError):
        raise
    except Exception as error:  # the disk, the network, or a codec written in Rust
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise TargetNotWritableError(f"{place}: cannot be written ({reason}); {advice}") from error
