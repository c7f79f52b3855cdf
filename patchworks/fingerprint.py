"""What makes two values the same value, across processes and sessions.

A run goes on after an interruption only if its function is still the same function. A digest
therefore covers what decides a function's answer: its name, source, closure, defaults, bound
arguments, and the functions and plain values it uses from its own module.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import sys
import types
import uuid
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import cloudpickle
import numpy as np

logger = logging.getLogger(__name__)


def digest(*values: object) -> str:
    """Return 32 hexadecimal digits that stand for `values`.

    A value that cannot be pinned down (it neither has plain parts nor can be pickled) gets a
    digest of its own every time, with a warning: better not to go on than to mix two functions.

    Examples
    --------
    >>> digest({"b": 2, "a": 1}) == digest({"a": 1, "b": 2})
    True
    >>> digest(1) == digest("1")
    False
    """
    hasher = hashlib.blake2b(digest_size=16)
    seen: dict[int, int] = {}
    for value in values:
        _feed(hasher, value, seen)
    return hasher.hexdigest()


def _feed(hasher: hashlib.blake2b, value: Any, seen: dict[int, int]) -> None:
    """Add one value to the digest; a value met again is named by the order it was met in."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, PurePath)):
        _mark(hasher, type(value).__name__, repr(value))
        return
    if id(value) in seen:
        _mark(hasher, "again", seen[id(value)])
        return
    seen[id(value)] = len(seen)
    if isinstance(value, np.ndarray) and value.dtype != object:
        _mark(hasher, "array", value.dtype.str, value.shape)
        hasher.update(np.ascontiguousarray(value).data)
    elif isinstance(value, (np.generic, np.dtype, range, slice, type(...))):
        _mark(hasher, type(value).__name__, repr(value))
    elif isinstance(value, (dict, set, frozenset, list, tuple)):
        _feed_container(hasher, value, seen)
    elif isinstance(value, types.ModuleType):
        _mark(hasher, "module", value.__name__, getattr(value, "__version__", ""))
    elif isinstance(value, type):
        _mark(hasher, "class", value.__module__, value.__qualname__, _source(value))
    elif not (callable(value) and _feed_callable(hasher, value, seen)):
        _feed_object(hasher, value, seen)


def _feed_container(hasher: hashlib.blake2b, value: Any, seen: dict[int, int]) -> None:
    _mark(hasher, type(value).__name__, len(value))
    if isinstance(value, dict):
        for key in sorted(value, key=repr):
            _feed_all(hasher, (key, value[key]), seen)
    elif isinstance(value, (set, frozenset)):
        _mark(hasher, sorted(map(repr, value)))
    else:
        _feed_all(hasher, value, seen)


def _feed_callable(hasher: hashlib.blake2b, value: Any, seen: dict[int, int]) -> bool:
    """Add a function, method or partial; return False for objects that are merely callable."""
    if isinstance(value, functools.partial):
        _mark(hasher, "partial")
        _feed_all(hasher, (value.func, value.args, value.keywords), seen)
    elif isinstance(value, types.MethodType):
        _mark(hasher, "method")
        _feed_all(hasher, (value.__func__, value.__self__), seen)
    elif isinstance(value, types.FunctionType):
        _mark(hasher, "function", value.__module__, value.__qualname__, _source(value))
        cells = [_cell(c) for c in value.__closure__ or ()]
        _feed_all(hasher, (cells, value.__defaults__, value.__kwdefaults__), seen)
        _feed_all(hasher, _used_globals(value), seen)
    elif isinstance(value, (types.BuiltinFunctionType, np.ufunc)):
        _mark(hasher, "builtin", getattr(value, "__module__", ""), value.__name__)
    else:
        return False
    return True


def _feed_object(hasher: hashlib.blake2b, value: Any, seen: dict[int, int]) -> None:
    """Add an instance: its class's source and its state, or its pickle, or nothing that repeats."""
    cls = type(value)
    _mark(hasher, "object", cls.__module__, cls.__qualname__, _source(cls))
    if is_dataclass(value):
        _feed_all(hasher, [getattr(value, f.name) for f in fields(value)], seen)
        return
    state = getattr(value, "__dict__", None)
    if state is not None and cls.__module__ != "builtins" and "__reduce__" not in vars(cls):
        _feed(hasher, state, seen)
        return
    try:
        hasher.update(cloudpickle.dumps(value))
    except Exception as error:  # noqa: BLE001 - any object may refuse to be pickled in its own way
        logger.warning(
            "cannot fingerprint a %s that the function uses (%s): this run can be repeated but "
            "not continued after an interruption",
            cls.__qualname__,
            error,
        )
        _mark(hasher, uuid.uuid4().hex)


def _feed_all(hasher: hashlib.blake2b, values: Any, seen: dict[int, int]) -> None:
    for value in values:
        _feed(hasher, value, seen)


def _mark(hasher: hashlib.blake2b, *parts: object) -> None:
    hasher.update(("\0".join(map(str, parts)) + "\1").encode("utf-8", "surrogatepass"))


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a name that the enclosing function has not bound yet
        return None


def _source(value: Any) -> str:
    """Return the source of a function or class, or what its code consists of."""
    if isinstance(value, type) and value.__module__ == "builtins":
        return ""
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        code = getattr(value, "__code__", None)
        return "" if code is None else _code(code)


def _code(code: types.CodeType) -> str:
    """Describe code without a source (typed at a prompt): bytes, names and constants."""
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, code.co_names, constants))


def _used_globals(function: types.FunctionType) -> list[tuple[str, object]]:
    """Return the plain values and own-module functions that `function` reads as globals."""
    used: list[tuple[str, object]] = []
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        own = getattr(value, "__module__", None) == function.__module__
        library = function.__module__.partition(".")[0] in sys.stdlib_module_names
        if isinstance(value, (bool, int, float, str, bytes, tuple, np.ndarray)) or (
            own and not library and isinstance(value, types.FunctionType)
        ):
            used.append((name, value))
    return used


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)
