"""A segmenter's parameters → the widgets that set them, and their values back."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from magicgui.widgets import CheckBox, ComboBox, LineEdit, Widget

from patchworks.errors import InputError
from patchworks.segmenters.description import NOTHING, FactoryParameter, describe_factory
from patchworks.segmenters.registry import find_known, load_factory


def parameters_of(name: str) -> tuple[FactoryParameter, ...]:
    """Return the parameters of the segmenter of a name.

    Raises
    ------
    InputError, MissingExtraError
        If there is none of this name, or it cannot be imported.
    """
    factory = load_factory(find_known(name))
    try:
        return describe_factory(factory).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"segmenter {name!r} cannot be called by name: {error}") from error


def field_of(parameter: FactoryParameter) -> Widget:
    """Return what sets a parameter: a box to tick, a choice, or a line of text."""
    options: dict[str, Any] = {
        "name": parameter.name,
        "label": parameter.name.replace("_", " "),
        "tooltip": parameter.description,
    }
    if isinstance(parameter.default, bool):
        return CheckBox(value=parameter.default, **options)
    choices = _choices(parameter.annotation)
    if choices:
        value = parameter.default if parameter.default in choices else choices[0]
        return ComboBox(choices=choices, value=value, **options)
    line = LineEdit(value=_shown(parameter.default), **options)
    line.native.setPlaceholderText("needed" if parameter.is_required else "automatic")
    return line


def value_of(parameter: FactoryParameter, field: Any) -> Any:
    """Return what a field says, `NOTHING` for what is left to the factory."""
    if not isinstance(field, LineEdit):
        return field.value
    text = field.value.strip()
    if not text:
        return NOTHING
    if _is_text(parameter.annotation):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a name or a path; what should be a number is refused by the factory


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
    if default is NOTHING or default is None:
        return ""
    return default if isinstance(default, str) else repr(default)
