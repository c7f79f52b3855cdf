"""The segmenters that are known by a name: built in, or offered by an installed package."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import Distribution, EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from patchworks.errors import InputError, MissingExtraError

GROUP = "patchworks.segmenters"
"""Entry point group through which a package offers segmenters by name."""

BUILT_IN = ("threshold", "blobs")
"""Names that are known even where patchworks is not installed, and that nobody else may take."""

OURS = "patchworks"


def known_segmenters() -> dict[str, EntryPoint]:
    """Return the entry point of each name, the built-ins first.

    Of a name that two packages offer, patchworks' own counts, else that of the first package in
    alphabetical order.
    """
    known = {name: EntryPoint(name, f"patchworks.segmenters:{name}", GROUP) for name in BUILT_IN}
    for point in sorted(entry_points(group=GROUP), key=_rank):
        known.setdefault(point.name, point)
    return known


def _rank(point: EntryPoint) -> tuple[bool, str, str]:
    package = package_of(point)
    return package != OURS, package, point.name


def package_of(point: EntryPoint) -> str:
    """Return the name of the package that offers a segmenter."""
    found: Distribution | None = getattr(point, "dist", None)
    return OURS if found is None else str(found.name)


def load_factory(point: EntryPoint) -> Callable[..., Any]:
    """Return what an entry point names.

    Raises
    ------
    InputError
        If it cannot be imported, or is not callable.
    MissingExtraError
        If it says that a package is missing.
    """
    try:
        found = point.load()
    except MissingExtraError:
        raise
    except Exception as error:
        raise InputError(
            f"segmenter {point.name!r} of the package {package_of(point)} cannot be imported from "
            f"{point.value!r}: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise InputError(
            f"segmenter {point.name!r} of the package {package_of(point)}: {point.value!r} is a "
            f"{type(found).__name__}; expected a function that returns a segmenter"
        )
    factory: Callable[..., Any] = found
    return factory


def find_known(name: object) -> EntryPoint:
    """Return the entry point of a name.

    Raises
    ------
    InputError
        If there is none; it says what is known, and what may have been meant.

    Examples
    --------
    >>> find_known("treshold")
    Traceback (most recent call last):
    patchworks.errors.InputError: segmenter 'treshold' is not known; did you mean 'threshold'? ...
    """
    known = known_segmenters()
    if isinstance(name, str) and name in known:
        return known[name]
    near = get_close_matches(name, known, n=1) if isinstance(name, str) else []
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"segmenter {name!r} is not known; {hint}expected one of {sorted(known)}")


def missing_packages(point: EntryPoint) -> list[str]:
    """Return which packages a segmenter takes that are not installed.

    By convention those of the extra of its package that has its name: ``onnx`` takes what
    ``pip install 'patchworks[onnx]'`` installs.
    """
    found: Distribution | None = getattr(point, "dist", None)
    wanted = [] if found is None else (found.requires or [])
    extra = re.compile(rf"""extra\s*==\s*['"]{re.escape(point.name)}['"]""")
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted if extra.search(line)]
    return [name for name in names if not _is_installed(name)]


def _is_installed(package: str) -> bool:
    try:
        Distribution.from_name(package)
    except ModuleNotFoundError:
        module = re.sub(r"[-.]", "_", package)
        return find_spec(module) is not None  # another build of it
    return True
