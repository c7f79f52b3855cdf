"""A segmenter's factory → the widgets of its parameters, and their values back."""

from __future__ import annotations

import ast
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from magicgui.widgets import CheckBox, ComboBox, LineEdit, Widget

from patchworks.errors import InputError, MissingExtraError
from patchworks.segmenters import GROUP

NOT_GIVEN = inspect.Parameter.empty


def segmenter_names() -> list[str]:
    """Return the names of the segmenters that are installed."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def factory_of(name: str) -> Callable[..., Any]:
    """Return the factory that a name stands for.

    Raises
    ------
    InputError, MissingExtraError
        If there is none of this name, or what it needs is not installed.
    """
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                found: Callable[..., Any] = point.load()
            except (ImportError, AttributeError) as error:
                raise MissingExtraError(f"segmenter {name!r} cannot be loaded: {error}") from error
            return found
    raise InputError(f"segmenter {name!r} is not known; there are {segmenter_names()}")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a factory.

    Parameters
    ----------
    name, help : str
        What it is called, and what its docstring says of it.
    kind : type or typing construct
        Its annotation.
    default : object
        Its default; `NOT_GIVEN` without one.
    """

    name: str
    help: str
    kind: Any
    default: Any

    def widget(self) -> Widget:
        """Return what it is set with: a box to tick, a choice, or a line of text."""
        options: dict[str, Any] = {
            "name": self.name,
            "label": self.name.replace("_", " "),
            "tooltip": self.help,
        }
        if isinstance(self.default, bool):
            return CheckBox(value=self.default, **options)
        choices = _choices(self.kind)
        if choices:
            value = self.default if self.default in choices else choices[0]
            return ComboBox(choices=choices, value=value, **options)
        line = LineEdit(value=_shown(self.default), **options)
        line.native.setPlaceholderText("needed" if self.default is NOT_GIVEN else "automatic")
        return line

    def value(self, widget: Any) -> Any:
        """Return what a widget says, `NOT_GIVEN` for what is left to the factory."""
        if not isinstance(widget, LineEdit):
            return widget.value
        text = widget.value.strip()
        if not text:
            return NOT_GIVEN
        if _is_text(self.kind):
            return text
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text  # a name or a path; a number that is none is refused by the factory


def parameters_of(factory: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters that can be set of a factory, in its order."""
    hints, told = _hints(factory), dict(_described(inspect.getdoc(factory) or ""))
    found = []
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = hints.get(name, parameter.annotation)
        help_ = told.get(name, "")
        found.append(Parameter(name=name, help=help_, kind=kind, default=parameter.default))
    return found


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(factory)
    except (NameError, TypeError):  # names that its module imports for type checkers alone
        return {}


def _parts(kind: Any) -> tuple[Any, ...]:
    """Return the kinds of a union, or the one kind."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _choices(kind: Any) -> list[Any]:
    parts = [part for part in _parts(kind) if part is not type(None)]
    if len(parts) != 1 or get_origin(parts[0]) is not Literal:
        return []
    nothing = [None] if len(_parts(kind)) > 1 else []
    return [*nothing, *get_args(parts[0])]


def _is_text(kind: Any) -> bool:
    """Whether what is typed is a text, never a number."""
    parts = {get_origin(part) or part for part in _parts(kind)} - {type(None)}
    return bool(parts) and parts <= {str, Path, os.PathLike}


def _shown(default: Any) -> str:
    if default is NOT_GIVEN or default is None:
        return ""
    return default if isinstance(default, str) else repr(default)


def _described(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield parameters and what a numpydoc docstring says of them."""
    section = docstring.partition("Parameters\n----------\n")[2]
    section = re.split(r"\n\w[\w ]*\n-{4,}\n", section)[0]
    for entry in re.split(r"\n(?=\S)", section):
        names, _, rest = entry.partition("\n")
        text = " ".join(rest.split())
        for name in names.partition(" :")[0].split(","):
            yield name.strip(), text
