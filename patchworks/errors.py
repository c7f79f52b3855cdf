"""The errors of patchworks: each says what, where, got, expected, and what to do.

Every error carries one finished message, so that it survives pickling between worker processes.
"""


class PatchworksError(Exception):
    """Base of every error that patchworks raises on purpose."""


class InputError(PatchworksError, ValueError):
    """An argument or an input that cannot be used; raised before any work."""


class SourceNotFoundError(InputError, FileNotFoundError):
    """The image does not exist, or is not something patchworks can read."""


class TargetExistsError(PatchworksError, FileExistsError):
    """A label image of that name was made by another run."""


class TargetNotWritableError(PatchworksError, PermissionError):
    """The place for the label image or the stage cannot be written."""


class SegmenterError(PatchworksError, RuntimeError):
    """The segmentation function raised, or returned something that is not a label image."""


class ImageReadError(PatchworksError, OSError):
    """A part of the image cannot be read."""


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
    for note in getattr(error, "__notes__", ()):
        plain.add_note(note)
    return plain
