"""Which function segments, as JSON: a built-in, a registered name, or an import path."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from flows.parameters import Group
from patchworks.segmenters import Segmenter, name_of, resolve_segmenter


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


class Registered(BaseModel):
    """A function of an installed package (entry points of the group patchworks.segmenters), by
    name, with its parameters beside the name.
    """

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1, json_schema_extra={"not": {"enum": ["threshold"]}})
    """Its name."""

    @field_validator("name")
    @classmethod
    def _is_no_built_in(cls, name: str) -> str:
        if name == "threshold":
            raise ValueError("threshold is built in, with parameters of its own")
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


SegmenterChoice = Threshold | Imported | Registered


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
