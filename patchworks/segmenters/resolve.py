"""From what a caller names to the segmentation function: built in, registered, or imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

from patchworks.errors import InputError, PatchworksError
from patchworks.segmenters.registry import find_known, load_factory
from patchworks.segmenters.segmenter import Segmenter


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
    MissingExtraError
        If it takes a package that is not installed.
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
    point = find_known(parameters.pop("name", None))
    return _call(load_factory(point), f"segmenter {point.name!r}", parameters)


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
        raise InputError(
            f"{name} does not take {sorted(map(str, kwargs))}: {error}{_parameters_of(factory)}"
        ) from error
    except PatchworksError:
        raise
    except ValueError as error:  # in the words of somebody else's package
        raise InputError(f"{name}: {error}") from error
    if not callable(segmenter):
        raise InputError(f"{name} gave a {type(segmenter).__name__}; expected a callable")
    return segmenter


def _parameters_of(factory: Callable[..., Any]) -> str:
    try:
        return f"; its parameters: {inspect.signature(factory, eval_str=False)}"
    except (TypeError, ValueError):
        return ""
