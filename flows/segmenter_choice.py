"""Which function segments, as JSON: a built-in, a registered name, or an import path."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
)

from flows.parameters import Group, said_of
from flows.segmenter_forms import FORMS, SegmenterForm
from patchworks.segmenters import Segmenter, name_of, resolve_segmenter

Width = Annotated[int, Field(ge=1)]
Diameter = Annotated[FiniteFloat, Field(gt=1)]


class Threshold(Group):
    """Connected components of the voxels above a threshold."""

    name: Literal["threshold"] = "threshold"
    """The built-in function."""
    value: FiniteFloat | None = None
    """Voxels above it are object. None: Otsu's threshold of the whole image."""
    sigma: FiniteFloat = Field(default=0.0, ge=0)
    """Gaussian smoothing before, in voxels; the overlap has to be more than four times as much."""
    connectivity: int = Field(default=1, ge=1, le=5)
    """How many axes a step between neighbouring voxels of an object may change."""
    local: Literal["mean", "gaussian"] | None = None
    """For uneven backgrounds: voxels brighter than the mean around them are object. The value, if
    given, is a floor beside it."""
    window: Width | list[Width] = 51
    """Width of the window of that mean in voxels, odd, one number or one per axis; wider than the
    objects. The overlap has to be more than half of it."""
    offset: FiniteFloat = 0.0
    """How much brighter than that mean a voxel of an object is."""


class Blobs(Group):
    """Bright round objects of about one size, apart even where they touch."""

    name: Literal["blobs"] = "blobs"
    """The built-in function."""
    diameter: Diameter | list[Diameter]
    """Typical diameter of an object in voxels, one number or one per axis where voxels are not
    cubes. The overlap has to be 2.5 times as much, and 4 voxels."""
    threshold: FiniteFloat | None = None
    """Voxels above it are object. None: Otsu's threshold of the whole image."""
    contrast: FiniteFloat = Field(default=0.0, ge=0)
    """Maxima that answer less are no objects: about half of how much a blob is brighter than what
    is around it. Raise it where noise or texture makes too many."""
    smoothing: FiniteFloat = Field(default=0.0, ge=0)
    """Gaussian smoothing before comparing with the threshold, in voxels."""


TYPED: dict[str, type[Group]] = {"threshold": Threshold, "blobs": Blobs, **FORMS}
"""The segmenters that have a form of their own, by name."""


class Registered(BaseModel):
    """A function of a package that is installed where the run goes on (entry points of the group
    patchworks.segmenters), by name, with its parameters beside the name.
    """

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1, json_schema_extra={"not": {"enum": list(TYPED)}})
    """Its name."""

    @field_validator("name")
    @classmethod
    def _has_no_form(cls, name: str) -> str:
        if name in TYPED:
            raise ValueError(f"{name} has a form of its own")
        return name


class Imported(BaseModel):
    """A function of your own that the workers can import."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )

    path: str = Field(alias="import", pattern=r"^[\w.]+:[\w.]+$")
    """package.module:function"""
    kwargs: dict[str, Any] | None = None
    """If given, the function is called with them and returns the segmenter."""


def _by_name(given: Any) -> Any:
    """Return the form of a segmenter that has one; errors are then of that form alone."""
    form = TYPED.get(str(given.get("name"))) if isinstance(given, Mapping) else None
    if form is None:
        return given
    try:
        return form.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"segmenter {given['name']!r}: {said_of(error)}") from error


if TYPE_CHECKING:
    SegmenterChoice = Threshold | Blobs | SegmenterForm | Imported | Registered
else:
    SegmenterChoice = Annotated[
        Union[(*TYPED.values(), Imported, Registered)],
        BeforeValidator(_by_name),
    ]


def segmenter_of(choice: SegmenterChoice | str) -> Segmenter:
    """Return the function that a form names.

    Raises
    ------
    InputError
        If it is not known, cannot be imported or does not take these parameters.
    """
    if isinstance(choice, str):
        return resolve_segmenter(choice)
    if isinstance(choice, Imported):
        given = {} if choice.kwargs is None else {"kwargs": choice.kwargs}
        return resolve_segmenter({"import": choice.path, **given})
    if isinstance(choice, SegmenterForm):
        return resolve_segmenter(choice.given())
    return resolve_segmenter(choice.model_dump())


def as_shown(segmenter: Any) -> Any:
    """Return a segmenter as the run page shows it: what was named, or where a function lies.

    A function that can be imported is shown so that the run can be started again from the page.
    """
    if not callable(segmenter):
        return {"import": segmenter} if _is_path(segmenter) else _named(segmenter)
    name, module = name_of(segmenter), str(getattr(segmenter, "__module__", ""))
    for package in () if module == "__main__" else _packages(module):
        if _at(package, name) is segmenter:
            return {"import": f"{package}:{name}"}
    return {"name": f"{name} (a function of the Python session that called)"}


def _is_path(segmenter: Any) -> bool:
    return isinstance(segmenter, str) and ":" in segmenter


def _named(segmenter: Any) -> Any:
    return {"name": segmenter} if isinstance(segmenter, str) else dict(segmenter)


def _packages(module: str) -> list[str]:
    """Return the packages that a module lies in, the outermost first, and itself."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _at(module: str, name: str) -> Any:
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return found
