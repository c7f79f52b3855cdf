"""Whether something can be written at a place, and what happens when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from patchworks.errors import PatchworksError, TargetNotWritableError
from patchworks.io.location import Location


def check_writable(place: Location, advice: str) -> None:
    """Raise TargetNotWritableError if nothing can be created at a local place.

    What is made to find that out is removed again.
    """
    if not place.is_local:
        return
    folder = place.path.parent
    made = []
    try:
        while not folder.exists():
            made.append(folder)
            folder = folder.parent
        folder = place.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{place.path.name}.probe"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise TargetNotWritableError(
            f"{place}: cannot be written ({error.strerror or error}); {advice}"
        ) from error
    finally:
        for empty in made:
            with suppress(OSError):
                empty.rmdir()


@contextmanager
def writing(place: Location) -> Iterator[None]:
    """Turn what storage raises into a TargetNotWritableError that names the place."""
    try:
        yield
    except (PatchworksError, MemoryError):
        raise
    except Exception as error:  # the disk, the network, or a codec written in Rust
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise TargetNotWritableError(
            f"{place}: cannot be written ({reason}); make room or give another target. What is "
            f"written is kept beside it, and the same call goes on from there"
        ) from error
