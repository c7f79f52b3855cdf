"""From what a caller names to the segmentation function: built in, registered, or imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from patchworks.errors import InputError
from patchworks.segmenters.segmenter import Segmenter
from patchworks.segmenters.threshold import threshold

GROUP = "patchworks.segmenters"
"""Entry point group through which a package offers segmenters by name."""


def resolve_segmenter(spec: Segmenter | str | Mapping[str, Any]) -> Segmenter:
    """Return the segmenter that `spec` names.

    Parameters
    ----------
    spec : callable, str or mapping
        A callable is returned as it is. ``"threshold"`` or ``{"name": "threshold", "value": 4}``
        calls a registered factory with those parameters. ``"package.module:function"`` is that
        function; ``{"import": "package.module:factory", "kwargs": {...}}`` calls it with them.

    Raises
    ------
    InputError
        If the name is not known, cannot be imported or does not take these parameters.
    """
    if isinstance(spec, str):
        spec = {"import": spec} if ":" in spec else {"name": spec}
    if isinstance(spec, Mapping):
        parameters = dict(spec)
        if "import" in parameters:
            return _imported(parameters)
        return _named(parameters)
    if not callable(spec):
        raise InputError(
            f"segmenter {spec!r} ({type(spec).__name__}) is not callable; give a function "
            f"tile -> labels, or the name of a registered segmenter"
        )
    return spec


def _named(parameters: dict[str, Any]) -> Segmenter:
    name = parameters.pop("name", None)
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name == "threshold":
        factory: Callable[..., Segmenter] = threshold
    elif isinstance(name, str) and name in known:
        factory = known[name].load()
    else:
        names = sorted({"threshold", *known})
        raise InputError(f"segmenter {name!r} is not known; expected one of {names}")
    return _call(factory, f"segmenter {name!r}", parameters)


def _imported(parameters: dict[str, Any]) -> Segmenter:
    path, kwargs = parameters.pop("import"), parameters.pop("kwargs", None)
    module, _, attribute = str(path).partition(":")
    if parameters or not attribute or not isinstance(kwargs, (Mapping, type(None))):
        raise InputError(
            f"segmenter import {path!r} with kwargs {kwargs!r} and {list(parameters)}: expected "
            f'{{"import": "package.module:function", "kwargs": {{...}}}}'
        )
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"segmenter {path!r} cannot be imported: {error}") from error
    if kwargs is None:
        return resolve_segmenter(cast(Segmenter, found))
    return _call(cast(Callable[..., Segmenter], found), f"segmenter {path!r}", kwargs)


def _call(factory: Callable[..., Segmenter], name: str, kwargs: Mapping[str, Any]) -> Segmenter:
    try:
        segmenter = factory(**kwargs)
    except TypeError as error:
        raise InputError(f"{name} does not take {sorted(kwargs)}: {error}") from error
    if not callable(segmenter):
        raise InputError(f"{name} gave a {type(segmenter).__name__}; expected a callable")
    return segmenter
