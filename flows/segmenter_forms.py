"""A form for each segmenter of an installed package, made from the signature of its factory.

Forms are sent to the processes of runs by their names alone, and made there anew: of the packages
that are installed there. Of a package that is not, nothing is left but that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from flows.form_types import form_type
from flows.parameters import Group
from patchworks.segmenters.description import FactoryParameter, describe_factory
from patchworks.segmenters.registry import (
    BUILT_IN,
    known_segmenters,
    load_factory,
    missing_packages,
    package_of,
)

PREFIX = "Segmenter_"
"""Of the names of the classes of forms in this module."""

SLOW_S = 2.0

logger = logging.getLogger(__name__)


class SegmenterForm(Group):
    """Parameters of a segmenter beside its name."""

    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=False)

    left_out: ClassVar[frozenset[str]] = frozenset()
    """Parameters whose default no form can show: None stands for it, and is not handed on."""

    def given(self) -> dict[str, Any]:
        """Return the name and what was given; the defaults of all else are the factory's."""
        values = self.model_dump(by_alias=True, exclude_unset=True)
        kept = {k: v for k, v in values.items() if v is not None or k not in self.left_out}
        return {**kept, "name": getattr(self, "name")}  # noqa: B009 - a field of the forms


def form_of(point: EntryPoint) -> type[SegmenterForm]:
    """Return the form of a segmenter.

    Raises
    ------
    InputError
        If its package cannot be imported.
    TypeError, ValueError
        If its factory has no signature, or one that cannot be filled in.
    """
    described = describe_factory(load_factory(point))
    fields = {f.name: f for f in described.parameters}
    if "name" in fields:
        if fields["name"].is_required:
            raise TypeError("its parameter 'name' is taken by the name of the segmenter")
        del fields["name"]
    made = [_field(number, parameter) for number, parameter in enumerate(fields.values())]
    config = ConfigDict(
        title=point.name.replace("_", " ").replace("-", " ").capitalize(),
        extra="allow" if described.takes_others else "forbid",
        populate_by_name=False,
    )
    base = type("_Base", (SegmenterForm,), {"model_config": config, "__module__": __name__})
    name = Field(default=point.name, description=_origin(point))
    form: type[SegmenterForm] = create_model(
        class_name(point.name),
        __base__=base,
        __module__=__name__,
        __doc__=described.summary or f"A segmenter of the package {package_of(point)}.",
        name=(Literal[point.name], name),
        **dict(made),
    )
    form.left_out = frozenset(p.name for p in fields.values() if _default(p) is _HIDDEN)
    return form


def class_name(name: str) -> str:
    """Return the name of the class of a form.

    Examples
    --------
    >>> class_name("star-dist")
    'Segmenter_star_2d_dist'
    """
    return PREFIX + "".join([c if c.isalnum() else f"_{ord(c):x}_" for c in name])


def _origin(point: EntryPoint) -> str:
    missing = missing_packages(point)
    where = f"Of the package {package_of(point)}."
    if not missing:
        return where
    extra = f"{package_of(point)}[{point.name}]"
    return f"{where} Not installed here: {', '.join(missing)} (pip install '{extra}')."


class _HIDDEN:
    """Stands for a default that no form can show."""


def _default(parameter: FactoryParameter) -> Any:
    """Return a default as JSON has it."""
    value = parameter.default
    if parameter.is_required:
        return ...
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        items = [_default(FactoryParameter("", None, each, "")) for each in value]
        return _HIDDEN if _HIDDEN in items else items
    return _HIDDEN


def _field(number: int, parameter: FactoryParameter) -> tuple[str, Any]:
    """Return the name of a field, its type and the rest; some names cannot be those of fields."""
    default = _default(parameter)
    kind = form_type(parameter.annotation)
    if kind is Any and type(default) in (bool, int, float, str):
        kind = form_type(type(default))
    if default is _HIDDEN:
        kind, default = (kind if kind is Any else kind | None), None
    is_taken = parameter.name.startswith("_") or hasattr(SegmenterForm, parameter.name)
    described = parameter.description or f"{parameter.name} of the function."
    if is_taken:
        return f"parameter_{number}", (
            kind,
            Field(default=default, description=described, alias=parameter.name),
        )
    return parameter.name, (kind, Field(default=default, description=described))


def _made_forms() -> Iterator[tuple[str, type[SegmenterForm]]]:
    for name, point in known_segmenters().items():
        if name in BUILT_IN:
            continue
        begun = time.monotonic()
        try:
            yield name, form_of(point)
        except Exception as error:  # noqa: BLE001 - somebody else's package must not break flows
            logger.warning(
                "segmenter %r of the package %s gets no form of its own (%s); it can be named with "
                "its parameters as JSON",
                name,
                package_of(point),
                error,
            )
        took = time.monotonic() - begun
        if took > SLOW_S:
            logger.warning(
                "segmenter %r of the package %s took %.1f s to import, in every process of a run; "
                "import what is large inside the function",
                name,
                package_of(point),
                took,
            )


FORMS: dict[str, type[SegmenterForm]] = dict(_made_forms())
"""By the names of the segmenters."""

globals().update({form.__name__: form for form in FORMS.values()})


def __getattr__(name: str) -> type[BaseModel]:
    """Return what stands for the form of a package that is not installed here: nothing fits it."""
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    never: Any = Literal["(of a package that is not installed here)"]
    absent = create_model(name, __base__=SegmenterForm, __module__=__name__, name=(never, ...))
    globals()[name] = absent
    return absent
