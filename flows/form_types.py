"""From the type of a factory's parameter to one that a form can show and JSON can carry."""

from __future__ import annotations

import collections.abc
import os
import types
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import FiniteFloat

PLAIN: dict[Any, Any] = {
    bool: bool, int: int, float: FiniteFloat, str: str, None: None, type(None): None,
}  # fmt: skip
"""Types as they are, but for numbers that JSON has no word for."""

SEVERAL = (
    list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable,
    collections.abc.Collection, collections.abc.Set,
)  # fmt: skip
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def form_type(annotation: Any) -> Any:
    """Return the type that a field of a form has; `Any`, which is JSON, where there is none.

    Of a union what can be shown is left: of ``float | numpy.ndarray`` the number.

    Examples
    --------
    >>> form_type(str | os.PathLike[str]), form_type(tuple[int, ...]), form_type(object)
    (<class 'str'>, list[int], typing.Any)
    """
    found = _type_of(annotation)
    return Any if found is _UNKNOWN else found


class _UNKNOWN:
    """Stands for a type that no form can show."""


def _type_of(annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = _type_of(arguments[0])
        return inner if inner is _UNKNOWN else Annotated[(inner, *arguments[1:])]
    if origin is Literal:
        return _choice(arguments)
    if origin in (Union, types.UnionType):
        return _union([_type_of(each) for each in arguments])
    return _plain(annotation if origin is None else origin, arguments)


def _plain(kind: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(kind, type) and issubclass(kind, (PurePath, os.PathLike)):
        return str
    if kind in SEVERAL:
        return list[_items_of(arguments)]  # type: ignore[misc]
    if kind in MAPPINGS:
        return dict[str, form_type(arguments[1]) if len(arguments) == 2 else Any]  # type: ignore[misc]
    try:
        return PLAIN.get(kind, _UNKNOWN)
    except TypeError:  # what has no hash is no type
        return _UNKNOWN


def _choice(values: tuple[Any, ...]) -> Any:
    plain = all(value is None or isinstance(value, (bool, int, str)) for value in values)
    return Literal[values] if plain else _UNKNOWN


def _items_of(arguments: tuple[Any, ...]) -> Any:
    kinds = [_type_of(each) for each in arguments if each is not Ellipsis]
    return Any if not kinds or _UNKNOWN in kinds else _union(kinds)


def _union(kinds: list[Any]) -> Any:
    shown = [kind for kind in kinds if kind is not _UNKNOWN]
    if not [kind for kind in shown if kind is not None]:
        return _UNKNOWN
    return Union[tuple(dict.fromkeys(shown))]  # noqa: UP007 - of as many as there are
