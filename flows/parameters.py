"""What the flows are asked for, as groups of a form: the parameter models behind the Prefect UI."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike, fsencode, fspath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from patchworks.errors import InputError


class Group(BaseModel):
    """Parameters that belong together; a key that is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Index = Annotated[int, Field(ge=0)]


class Selection(Group):
    """Which part of the image is segmented."""

    channel: Index | list[Index] | None = 0
    """Channel to segment, counted from 0, or several, such as [0, 2]. None: the only one."""
    level: int = Field(default=0, ge=0)
    """Pyramid level to segment: 0 is full resolution."""


class Tiles(Group):
    """How the image is cut into tiles, and how their labels are joined."""

    tile_shape: list[int] | Literal["auto"] | None = None
    """Voxels of a tile per axis, such as [64, 512, 512]. None: the chunks of the store, or a
    multiple of tiny ones; "auto": what fits the memory."""
    overlap: int | list[int] | None = None
    """Voxels read around each tile, one number or one per axis; more than the distance over which
    the function looks. None: 16."""
    skip_empty: bool = False
    """Leave out tiles that hold no signal."""
    empty_threshold: FiniteFloat | None = None
    """Intensity up to which a voxel is no signal. None: found in a sample, below Otsu's threshold
    and above the noise of the background; in doubt 0."""
    stitch: Literal["auto", "overlap", "touch"] = "auto"
    """auto: labels of two tiles are one object where both saw the same piece of it, without an
    overlap where they touch."""
    connectivity: int = Field(default=1, ge=1, le=5)
    """For touch: how many axes a step between two touching voxels may change."""
    slice_wise: bool = False
    """Segment slice by slice, and link objects of neighbouring slices that overlap most."""
    link_time: bool = False
    """Link objects of neighbouring time points in the same way."""
    link_iou: float = Field(default=0.25, gt=0, le=1)
    """The least intersection over union of two objects that are linked."""


class Labels(Group):
    """Where the label image goes."""

    write_to: str | None = None
    """Path or URL of a label image of its own. None: in the image's store, in its
    group labels."""
    output_component: str = "labels"
    """Name of the label image."""
    pyramid_levels: int | None = Field(default=None, ge=1, le=32)
    """Levels of its pyramid, level 0 included. None: as many as the image has, else 5."""
    pyramid_downscale: int = Field(default=2, ge=2, le=64)
    """Factor in y and x from one level to the next."""
    overwrite: bool = False
    """Replace a label image that another run made."""


class Run(Group):
    """How the run itself is carried out."""

    resume: bool = True
    """Go on from what an interrupted run of the same kind left."""
    keep_stage: bool = False
    """Keep the staged tiles after the run."""
    stage_dir: str | None = None
    """Folder for the stage, seen by all workers. None: beside the label image."""
    retries: int = Field(default=3, ge=0, le=20)
    """How often a task is tried again after an error that may heal."""
    retry_delay_s: float = Field(default=2.0, ge=0, le=3600)
    """Seconds before the first of them; each further one waits twice as long."""
    tile_timeout_s: float | None = Field(default=None, gt=0)
    """Seconds that one tile may take before its worker is ended and a new one tries again: the only
    way out of a call into a driver that hangs. None: no limit."""

    @field_validator("stage_dir", mode="before")
    @classmethod
    def _path_as_text(cls, stage_dir: Any) -> Any:
        # A form holds text; callers from Python have path objects.
        return fspath(stage_dir) if isinstance(stage_dir, PathLike) else stage_dir


class Conversion(Group):
    """How a microscope file becomes an OME-Zarr image."""

    axes: str | None = None
    """Axes of the file in its own order, such as czyx, where it does not say them."""
    pixel_size: dict[str, float] | None = None
    """Micrometers per axis (seconds for t) in place of what the file says."""
    n_levels: int | None = Field(default=None, ge=1, le=32)
    """Levels of the pyramid. None: until y and x are under 1024 voxels."""
    downscale: int = Field(default=2, ge=2, le=64)
    """Factor in y and x from one level to the next."""
    chunks: list[int] | None = None
    """Chunk shape. None: 16x256x256 or 512x512, fitted to the file."""
    shard: bool | None = None
    """Whether several chunks share a file. None: if there would be too many files."""
    channel_names: list[str] | None = None
    """Names of the channels in place of those of the file."""
    scene: int | str = 0
    """Which image of the file, by index or name; all for each of them."""
    ngff_version: Literal["0.5", "0.4"] = "0.5"
    """Version of OME-NGFF: 0.5 is zarr 3, 0.4 is zarr 2."""
    reuse_pyramid: bool = False
    """Take over the levels of the file."""
    codec: Literal["blosc", "zstd"] = "blosc"
    """Compression of chunks."""
    reader: str | None = None
    """Reader to use, such as bioio, in place of the one chosen by the file."""
    overwrite: bool = False
    """Replace an OME-Zarr image that is there, its labels included."""


class MergeInput(Group):
    """Which labels are merged."""

    input_component: str = "labels"
    """The label array in the store; its chunks are the tiles."""
    overlap: int = Field(default=0, ge=0)
    """Voxels of halo that the blocks of a Dask array still have; 0 for a store."""
    connectivity: int = Field(default=1, ge=1, le=5)
    """How many axes a step between two touching voxels may change."""


class Pyramid(Group):
    """Which levels are added to an array."""

    base: str = "0"
    """Path of the array in the group."""
    axes: str | None = None
    """Its axes, such as zyx, where the metadata do not say them."""
    n_levels: int | None = Field(default=None, ge=1, le=32)
    """Levels, the base included. None: until y and x are under 1024 voxels."""
    downscale: int = Field(default=2, ge=2, le=64)
    """Factor in y and x from one level to the next."""
    pixel_size: dict[str, float] | None = None
    """Micrometers per axis in place of what the metadata say."""


def split_keywords(
    keywords: Mapping[str, Any], groups: Mapping[str, type[Group]]
) -> dict[str, dict[str, Any]]:
    """Sort keywords into the groups of a form; one that two groups know goes to both.

    Raises
    ------
    InputError
        If no group knows a keyword.

    Examples
    --------
    >>> split_keywords({"overlap": 4, "resume": False}, {"tiles": Tiles, "run": Run})
    {'tiles': {'overlap': 4}, 'run': {'resume': False}}
    """
    split = {
        name: {key: keywords[key] for key in keywords if key in group.model_fields}
        for name, group in groups.items()
    }
    known = {key for group in groups.values() for key in group.model_fields}
    for key in keywords:
        if key not in known:
            near = get_close_matches(key, sorted(known), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {sorted(known)}"
            raise InputError(f"unknown keyword {key!r}; {hint}")
    return split


Checked = TypeVar("Checked", bound=BaseModel)


def checked(model: type[Checked], values: Mapping[str, Any]) -> Checked:
    """Return a group of parameters, its values checked.

    Raises
    ------
    InputError
        If one of them is out of its range; it names each.

    Examples
    --------
    >>> checked(Run, {"retries": -1})
    Traceback (most recent call last):
    patchworks.errors.InputError: retries=-1: Input should be greater than or equal to 0
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(said_of(error)) from error


def said_of(error: ValidationError) -> str:
    """Return which values are wrong, and why, in one line."""
    found = error.errors(include_url=False)
    return "; ".join([f"{'.'.join(map(str, e['loc']))}={e['input']!r}: {e['msg']}" for e in found])


def shown(value: Any) -> Any:
    """Return a value as the run page shows it: JSON as it is, all else by its name.

    Raises
    ------
    InputError
        If there is a name of a file in it that the server cannot be told.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, PathLike)):
        return _utf8(str(fspath(value)))
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if isinstance(value, Mapping):
        return {str(key): shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    return str(getattr(value, "__qualname__", type(value).__name__))


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        readable = fsencode(text).decode("utf-8", "backslashreplace")
        raise InputError(
            f"{readable}: this name is not UTF-8, and a Prefect server takes no other; rename it"
        ) from None
    return text
