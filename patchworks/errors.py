"""The errors of patchworks: each says what, where, got, expected, and what to do.

Every error carries one finished message, so that it survives pickling between worker processes.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class PatchworksError(Exception):
    """Base of every error that patchworks raises on purpose.

    Attributes
    ----------
    heals : bool
        Whether trying the same again may help: a network that hiccups may, a wrong shape never.
    """

    heals: bool = False


class InputError(PatchworksError, ValueError):
    """An argument or an input that cannot be used; raised before any work."""


class SourceNotFoundError(InputError, FileNotFoundError):
    """The image does not exist, or is not something patchworks can read."""


class TargetExistsError(PatchworksError, FileExistsError):
    """A label image of that name was made by another run."""


class TargetNotWritableError(PatchworksError, PermissionError):
    """The place for the label image or the stage cannot be written."""

    heals = True


class TargetInUseError(PatchworksError, RuntimeError):
    """Another run is writing the same output, or took it over from this one."""


class SegmenterError(PatchworksError, RuntimeError):
    """The segmentation function raised, or returned something that is not a label image."""


class ImageReadError(PatchworksError, OSError):
    """A part of the image cannot be read."""


class DownloadError(PatchworksError, OSError):
    """A file cannot be had from a site."""

    heals = True


class StageError(PatchworksError, RuntimeError):
    """The stage of a run is damaged or belongs to another run."""


class MemoryBudgetError(PatchworksError, MemoryError):
    """A run would not fit the memory it may use."""


class ClientError(PatchworksError, RuntimeError):
    """The active Dask client cannot be used."""


class MissingExtraError(PatchworksError, ImportError):
    """An optional dependency is missing; the message names the extra to install."""


def portable(error: PatchworksError) -> PatchworksError:
    """Return the error without its causes: those of a user's function need not be picklable."""
    plain = type(error)(*error.args)
    plain.__dict__.update(error.__dict__)
    return plain


MISTAKES = (
    TypeError, ValueError, LookupError, NameError, AttributeError, ImportError, SyntaxError,
    AssertionError, NotImplementedError, ArithmeticError, RecursionError,
)  # fmt: skip
"""What a function raises again and again for the same tile."""


def may_heal(error: BaseException) -> bool:
    """Return whether trying the same again may help.

    Examples
    --------
    >>> may_heal(InputError("shape")), may_heal(TypeError()), may_heal(ConnectionError())
    (False, False, True)
    """
    if isinstance(error, PatchworksError):
        return error.heals
    return isinstance(error, Exception) and not isinstance(error, MISTAKES)


class Patience:
    """Lets a few parts of a batch fail before the rest is left.

    One bad tile need not keep the others of its batch from being done.

    Parameters
    ----------
    max_failures : int
        How many parts may fail.

    Examples
    --------
    >>> patience, done = Patience(2), []
    >>> for part in range(3):
    ...     with patience.part():
    ...         if part == 1:
    ...             raise InputError("part 1")
    ...         done.append(part)
    >>> done
    [0, 2]
    >>> patience.end()
    Traceback (most recent call last):
    patchworks.errors.InputError: part 1
    """

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.failures: list[PatchworksError] = []

    @contextmanager
    def part(self) -> Iterator[None]:
        """Do one part; its error is kept for the end, unless it was one too many."""
        try:
            yield
        except PatchworksError as error:
            self.failures.append(error)
            if self.max_failures > 1:
                logger.error("%s", error)
            if len(self.failures) >= self.max_failures:
                self.end()

    def end(self) -> None:
        """Raise one of the errors there were: one that may heal, if there is any."""
        if self.failures:
            raise next((error for error in self.failures if error.heals), self.failures[0])
