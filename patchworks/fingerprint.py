"""What makes two values the same value, across processes and sessions.

A run goes on after an interruption only if its function is still the same function. A digest
therefore covers what decides a function's answer: its name, source and code, closure, defaults and
bound arguments, and the globals it reads. The code of installed packages counts by name and
version; that of the user's own modules is looked into. A model in a file counts by its content.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import inspect
import logging
import os
import stat
import sys
import sysconfig
import time
import types
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

PLAIN = (bool, int, float, complex, str, bytes, PurePath, np.generic, np.dtype, range, slice)

NOT_OF_A_CLASS = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__",
    "__static_attributes__", "__dataclass_fields__", "__dataclass_params__", "__match_args__",
    "__slots__", "__abstractmethods__", "_abc_impl", "__orig_bases__", "__parameters__",
    "__slotnames__",
    "__annotate__", "__annotate_func__", "__annotations_cache__",
}  # fmt: skip
"""What a class holds beside its methods and values, or what is said by these already."""


WEIGHTS = {
    ".bin", ".ckpt", ".engine", ".h5", ".hdf5", ".joblib", ".keras", ".npy", ".npz", ".onnx", ".pb",
    ".pickle", ".pkl", ".pt", ".pth", ".safetensors", ".tflite",
}  # fmt: skip
"""Endings of files that count by their content where a function names them: models. Others do not:
a function may write to them."""


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
    walk = _Walk({})
    try:
        walk.add_all(values)
    except (_CannotPinDownError, RecursionError) as error:
        logger.warning(
            "cannot fingerprint a %s that the function uses: this run can be repeated but not "
            "continued after an interruption",
            error,
        )
        walk.mark(uuid.uuid4().hex)
    return walk.hexdigest()


_began_as: OrderedDict[str, str] = OrderedDict()
"""Digest of a function after it ran in this process → its digest before."""

MAX_REMEMBERED = 1024


def function_digest(function: Any) -> str:
    """Return the digest of a segmentation function, as it was before it first ran.

    A function may keep a state of its own: a counter, a cache, a model that it loads when first
    used. That it has run does not make it another function; that somebody else changed what it
    depends on does.
    """
    found = digest(function)
    return _began_as.get(found, found)


def remember_after_run(function: Any, before: str) -> None:
    """Note that a function which is what it is now was `before` when its run began."""
    after = digest(function)
    if after != before:
        _began_as[after] = before
        while len(_began_as) > MAX_REMEMBERED:
            _began_as.popitem(last=False)


class _Walk:
    """One walk through values; a value met again is named by the order in which it was met."""

    def __init__(self, seen: dict[int, tuple[int, object]]) -> None:
        self.hasher = hashlib.blake2b(digest_size=16)
        self.seen = seen  # keeps the values: the id of one that is gone may be given out again

    def hexdigest(self) -> str:
        return self.hasher.hexdigest()

    def mark(self, *parts: object) -> None:
        for part in parts:
            text = str(part).encode("utf-8", "surrogatepass")
            self.hasher.update(b"%d:%b" % (len(text), text))

    def add_all(self, values: Iterable[object]) -> None:
        for value in values:
            self.add(value)

    def _order(self, key: object) -> tuple[str, str]:
        """Return what keys are sorted by; most are plain, and need no walk of their own."""
        plain = isinstance(key, PLAIN) or key is None
        return type(key).__qualname__, repr(key) if plain else self.apart(key)

    def apart(self, value: object) -> str:
        """Return the digest of one of several values that have no order."""
        walk = _Walk(dict(self.seen))
        walk.add(value)
        return walk.hexdigest()

    def add(self, value: Any) -> None:
        """Add one value."""
        if value is None or isinstance(value, PLAIN):
            self.mark(type(value).__name__, repr(value))
            if isinstance(value, (str, PurePath)):
                self.mark(*_weights_at(value))
        elif _is_constant(value):
            # Whether two that are equal are one and the same is for Python to decide, and another
            # decision after pickling.
            self._added_as_data(value)
        elif id(value) in self.seen:
            self.mark("again", self.seen[id(value)][0])
        else:
            self.seen[id(value)] = (len(self.seen), value)
            if not (self._added_as_data(value) or self._added_as_code(value)):
                self._add_object(value)

    def _added_as_data(self, value: Any) -> bool:
        """Add an array or container of a plain type."""
        kind = type(value)
        if kind is np.ndarray:
            self.mark("array", value.dtype.descr, value.shape)
            if value.dtype.hasobject:
                self.add_all(value.ravel().tolist())
            else:
                self.hasher.update(np.ascontiguousarray(value).tobytes())
        elif kind in (list, tuple):
            self.mark(kind.__name__, len(value))
            self.add_all(value)
        elif kind in (set, frozenset):
            self.mark(kind.__name__, *sorted(self.apart(item) for item in value))
        elif kind is dict:
            self.mark("dict", len(value))
            for key in sorted(value, key=self._order):
                self.add_all((key, value[key]))
        else:
            return False
        return True

    def _added_as_code(self, value: Any) -> bool:
        """Add a module, class, function, method or partial."""
        if isinstance(value, types.ModuleType):
            self.mark("module", value.__name__, _version(value.__name__))
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, functools.partial):
            self.mark("partial")
            self.add_all((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self.mark("method")
            self.add_all((value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.BuiltinFunctionType):
            self._add_builtin(value)
        elif isinstance(value, (staticmethod, classmethod, property)):
            self._add_descriptor(value)
        elif isinstance(value, types.CodeType):
            self._add_code(value)
        else:
            return False
        return True

    def _add_builtin(self, value: types.BuiltinFunctionType) -> None:
        self.mark("builtin", getattr(value, "__module__", ""), value.__qualname__)
        if not isinstance(value.__self__, (types.ModuleType, type(None))):
            self.add(value.__self__)

    def _add_descriptor(
        self, value: staticmethod[..., Any] | classmethod[Any, ..., Any] | property
    ) -> None:
        self.mark(type(value).__name__)
        names = ("__func__", "fget", "fset", "fdel")
        self.add_all(getattr(value, name, None) for name in names)

    def _add_function(self, function: types.FunctionType) -> None:
        self.mark("function", function.__module__, function.__qualname__)
        self.mark(_source(function))
        self._add_code(function.__code__)
        if _is_installed(function.__module__):
            self.mark(_version(function.__module__))
        else:
            self._add_globals(function)
        cells = [_cell(cell) for cell in function.__closure__ or ()]
        self.add_all((cells, function.__defaults__, function.__kwdefaults__))

    def _add_code(self, code: types.CodeType) -> None:
        """Add bytes, names and constants: lambdas that share a line share their source too."""
        self.mark("code", code.co_code.hex(), code.co_names, code.co_varnames)
        self.add_all(code.co_consts)

    def _add_globals(self, function: types.FunctionType) -> None:
        """Add the globals that a function reads, but for those it assigns itself (its caches)."""
        read, assigned = _global_names(function.__code__)
        for name in sorted(read - assigned):
            if name in function.__globals__:
                self.mark("global", name)
                self._add_global(function.__globals__[name])

    def _add_global(self, value: Any) -> None:
        try:
            self.add(value)
        except _CannotPinDownError as error:
            # Locks, clients, handles: a module has them, an answer seldom depends on them.
            logger.debug("a global counts by its type alone: %s", error)
            self.mark(type(value).__qualname__)

    def _add_class(self, cls: type) -> None:
        self.mark("class", cls.__module__, cls.__qualname__)
        if _is_installed(cls.__module__):
            self.mark(_version(cls.__module__))
            return
        self.mark(_source(cls))
        for name, value in sorted(vars(cls).items()):
            if name not in NOT_OF_A_CLASS and not isinstance(
                value, (types.MemberDescriptorType, types.GetSetDescriptorType)
            ):
                self.mark(name)
                self._add_global(value)
        self.add_all(cls.__bases__)

    def _add_object(self, value: Any) -> None:
        """Add an instance: its class, what it wraps, and the parts that pickling would keep."""
        self.mark("object")
        self.add_all((type(value), getattr(value, "__wrapped__", None)))
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            raise _CannotPinDownError(f"{type(value).__qualname__} ({error})") from error
        if isinstance(parts, str):
            self.mark("named", parts)
            return
        function, arguments, *more = parts
        self.add_all((function, arguments))
        for part in more:
            self.add(list(part) if isinstance(part, Iterator) else part)


class _CannotPinDownError(Exception):
    """A value that has no parts to look at."""


def _is_constant(value: object) -> bool:
    """Return whether a value is a tuple or frozen set of plain values, or of such ones."""
    if type(value) not in (tuple, frozenset):
        return False
    parts: Iterable[object] = value  # type: ignore[assignment]
    return all(part is None or isinstance(part, PLAIN) or _is_constant(part) for part in parts)


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a name that the enclosing function has not bound yet
        return None


def _weights_at(place: str | PurePath) -> list[str]:
    """Return the digest of the model file that a text or path names; nothing if it names none."""
    if os.path.splitext(place)[1].lower() not in WEIGHTS:  # noqa: PTH122 - any text at all
        return []
    try:
        path = Path(place).absolute()
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return []
        times = (status.st_mtime_ns, status.st_ctime_ns)
        return [_content_digest(path, status.st_size, times)]
    except (OSError, ValueError):  # no such file, or no name that a file can have
        return []


@functools.lru_cache(maxsize=256)
def _content_digest(path: Path, _size: int, _times_ns: tuple[int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _source(value: Any) -> str:
    for _ in range(PARSE_ATTEMPTS):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            break  # typed at a prompt: its code says it all
        except SystemError as error:
            # Python 3.11 counts the depth of its parser for all threads at once: of two that parse
            # together (the source of a class is found by parsing its module) one may fail.
            logger.debug("the source of %r is looked for again: %s", value, error)
            time.sleep(0.01)
    return ""


PARSE_ATTEMPTS = 100


READS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
"""In a function, in a class's body, in either with annotations or type parameters."""


def _global_names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Return the names that code may read as globals, and those it assigns as globals.

    Not `co_names`: attributes are among those, and `ndimage.label` is no use of a global `label`.
    """
    read, assigned = set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_GLOBAL":
            assigned.add(str(instruction.argval))
        elif instruction.opname in READS_GLOBAL:
            read.add(str(instruction.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_read, inner_assigned = _global_names(constant)
            read |= inner_read
            assigned |= inner_assigned
    return read, assigned


def _is_installed(module: str | None) -> bool:
    """Whether a module belongs to Python or to an installed package, not to the user."""
    top = (module or "").partition(".")[0]
    if top in ("", "__main__"):
        return False
    file = getattr(sys.modules.get(top), "__file__", None)
    return top in sys.stdlib_module_names if file is None else _is_installed_file(file)


@functools.cache
def _is_installed_file(file: str) -> bool:
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    return any(Path(file).resolve().is_relative_to(Path(place).resolve()) for place in places)


def _version(module: str | None) -> str:
    top = sys.modules.get((module or "").partition(".")[0])
    return str(getattr(top, "__version__", ""))
