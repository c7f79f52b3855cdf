"""Which Cellpose is installed, found out without importing it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from patchworks.errors import InputError, MissingExtraError

SUPPORTED = (3, 4)
"""Major versions."""


def installed_version() -> str:
    """Return the version of the installed Cellpose, such as ``"4.2.1.1"``.

    Raises
    ------
    MissingExtraError
        If there is none.
    InputError
        If it is neither 3 nor 4.
    """
    try:
        found = version("cellpose")
    except PackageNotFoundError:
        raise MissingExtraError(
            "cellpose_fn needs the package cellpose, which is not installed: "
            "pip install 'patchworks[cellpose]' for Cellpose 4, "
            "'patchworks[cellpose3]' for Cellpose 3"
        ) from None
    if major_of(found) not in SUPPORTED:
        raise InputError(
            f"Cellpose {found} is installed; cellpose_fn runs with Cellpose 3.1 or 4: "
            f"pip install 'patchworks[cellpose]' or 'patchworks[cellpose3]'"
        )
    return found


def major_of(found: str) -> int:
    """Return the major version, 0 if it cannot be told.

    Examples
    --------
    >>> major_of("4.2.1.1")
    4
    """
    first = found.partition(".")[0]
    return int(first) if first.isdecimal() else 0
