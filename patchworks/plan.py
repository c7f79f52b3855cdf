"""From what a user asks for to a run plan: everything is checked here, nothing is written."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from patchworks.at_scale import at_scale
from patchworks.auto_tile_shape import is_auto, layout_of, proposal_for
from patchworks.emptiness import check_threshold
from patchworks.errors import InputError
from patchworks.execution.work_place import WorkPlace
from patchworks.fingerprint import digest, function_digest
from patchworks.geometry.apart import resolve_grid_apart, spread_overlap
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.halves import cut_halo
from patchworks.geometry.tile_shape import TileShapeRule, asked_overlap
from patchworks.io.channels import ChannelChoice, several_channels
from patchworks.io.identity import identity_of_graph
from patchworks.io.image_source import HeldArray, ImageSource
from patchworks.io.label_image import LabelTarget
from patchworks.io.location import Location
from patchworks.io.ngff import Calibration, default_axis_names
from patchworks.io.source import (
    check_channel,
    kind_of,
    open_source,
    picked_by_name,
    source_of_array,
    source_of_zarr_array,
    with_names,
)
from patchworks.io.stage import Stage
from patchworks.pipeline import RunPlan
from patchworks.run import RunSpec, parse_stitch
from patchworks.segmenters import Segmenter, name_of

logger = logging.getLogger("patchworks")

PathLike = str | os.PathLike[str]

DEFAULT_LEVELS = 5
"""Levels of a label image whose image has no pyramid of its own."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The keywords of `patchworks.tile_process`, with its meanings and defaults."""

    tile_shape: TileShapeRule | None = None
    overlap: int | Sequence[int] | None = None
    channel: ChannelChoice = 0
    level: int = 0
    write_to: PathLike | None = None
    output_component: str = "labels"
    pyramid_levels: int | None = None
    pyramid_downscale: int = 2
    skip_empty: bool = False
    empty_threshold: float | None = None
    stage_dir: PathLike | None = None
    stitch: str = "auto"
    connectivity: int = 1
    slice_wise: bool = False
    link_time: bool = False
    link_iou: float = 0.25
    overwrite: bool = False
    is_temporary: bool = False
    """Whether the place to write to ends with the process, so that nothing can be continued."""
    place: WorkPlace | None = None
    """Where tiles will be worked on, for ``"auto"``. None: in this process, on all cores."""


def describe_image(image: Any, *, channel: ChannelChoice = 0, level: int = 0) -> ImageSource:
    """Return the source for any kind of input; a Dask array's voxels are not computed.

    Raises
    ------
    InputError
        If it is no image, has no voxels, or has no such channel or level.
    """
    several_channels(channel)
    kind = kind_of(image)
    if kind == "path":
        source = open_source(image, channel=channel, level=level)
    else:
        if level not in (0, None):
            raise InputError(f"level={level!r}: an array has one level, 0")
        array, channel, names = picked_by_name(image, channel)
        if kind == "zarr":
            source = source_of_zarr_array(array, channel)
        elif kind == "numpy":
            source = source_of_array(array, channel)
        else:
            source = _source_of_dask_array(array, channel)
        source = source if names is None else with_names(source, names)
    if not 2 <= len(source.shape) <= 5 or 0 in source.shape:
        raise InputError(
            f"{source.name}: shape {source.shape}; expected 2 to 5 axes with 1 voxel or more each"
        )
    if source.dtype.kind not in "biuf":
        raise InputError(f"{source.name}: dtype {source.dtype}; expected real numbers")
    if isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise InputError(
            f"{source.name}: some voxels are masked, and tiles have no masks; give "
            f"image.filled(0), or set what is masked to 0 in the labels"
        )
    return source


def _source_of_dask_array(image: Any, channel: ChannelChoice) -> ImageSource:
    check_channel(channel, None, "the Dask array")
    if any(np.isnan(n) for n in image.shape):
        raise InputError("the Dask array has unknown chunk sizes; call compute_chunk_sizes() first")
    return ImageSource(
        stored=HeldArray(image),
        pick=(None,) * image.ndim,
        shape=tuple(map(int, image.shape)),
        dtype=np.dtype(image.dtype),
        chunks=tuple([max(c) for c in image.chunks]),
        calibration=Calibration.unknown(default_axis_names(image.ndim)),
        name="Dask array",
    )


def plan_run(image: Any, segmenter: Segmenter, options: RunOptions) -> RunPlan:
    """Return the plan of a run, after checking all that can be checked before any work.

    Parameters
    ----------
    image
        As in `patchworks.tile_process`.
    segmenter : callable
        The function.
    options : RunOptions
        The keywords.

    Raises
    ------
    InputError
        If an argument cannot be used.
    TargetExistsError, TargetNotWritableError
        If the label image cannot go where it should.
    """
    if not callable(segmenter):
        raise InputError(
            f"fn={segmenter!r} ({type(segmenter).__name__}) is not callable; give a function that "
            f"takes a tile and returns its labels"
        )
    source = describe_image(image, channel=options.channel, level=options.level)
    apart = axes_apart(source, slice_wise=bool(options.slice_wise))
    asked = _Asked(source, at_scale(segmenter, source, apart), options)
    array: Any = source.stored.array
    if is_auto(options.tile_shape):
        return asked.plan(asked.auto_grid())
    grid = resolve_grid_apart(
        source.shape,
        source.dtype,
        asked.apart,
        tile_shape=options.tile_shape,
        overlap=options.overlap,
        chunks=array.chunks if kind_of(image) == "dask" else None,
        storage_chunks=source.chunks,
    )
    return asked.plan(grid)


def axes_apart(source: ImageSource, *, slice_wise: bool = False) -> tuple[int, ...]:
    """Return the axes that the function does not see: time, and if slice-wise all but y and x."""
    if slice_wise:
        return tuple(range(len(source.shape) - 2))
    return () if source.time_axis is None else (source.time_axis,)


def _slice_axis(source: ImageSource) -> int | None:
    """Return the axis of slices: the one that is called z, else the third from last, if any."""
    names = [axis.name.lower() for axis in source.calibration.axes[:-2]]
    last = len(names) - 1
    found = names.index("z") if "z" in names else last
    return None if found < 0 or found == source.time_axis else found


def _check_channels(source: ImageSource, options: RunOptions) -> None:
    """Raise InputError for what does not go with several channels."""
    if source.lead and options.skip_empty and options.empty_threshold is None:
        raise InputError(
            f"channel={options.channel!r} with skip_empty: what is signal differs between channels;"
            f" give empty_threshold=, which holds for all of them"
        )


def plan_on_grid(
    source: ImageSource, segmenter: Segmenter, grid: TileGrid, options: RunOptions
) -> RunPlan:
    """Return the plan of a run whose source is open and whose tiles are known."""
    return _Asked(source, segmenter, options).plan(grid)


@dataclass(frozen=True)
class _Asked:
    """A run but for its tiles."""

    source: ImageSource
    segmenter: Segmenter
    options: RunOptions

    @property
    def apart(self) -> tuple[int, ...]:
        """Axes that the function does not see."""
        return axes_apart(self.source, slice_wise=bool(self.options.slice_wise))

    @cached_property
    def target(self) -> LabelTarget:
        return choose_target(self.source, self.options)

    @cached_property
    def function(self) -> str:
        return function_digest(self.segmenter)

    @cached_property
    def identity(self) -> str:
        return _identity(self.source, self.options)

    def spec(self, grid: TileGrid) -> RunSpec:
        target, n_levels = self.target, self.source.n_levels
        has_pyramid = target.image_group is not None and n_levels > 1
        levels = n_levels if has_pyramid else DEFAULT_LEVELS
        return _spec(self.source, grid, self.options, levels)

    def plan(self, grid: TileGrid) -> RunPlan:
        """Return the plan with these tiles."""
        _check_channels(self.source, self.options)
        target, spec = self.target, self.spec(grid)
        tiles = spec.tiles_fingerprint(self.identity, self.function)
        plan = RunPlan(
            spec=spec,
            source=self.source,
            segmenter=self.segmenter,
            stage=Stage(_stage_root(target, self.options, tiles)),
            target=target,
            tiles_fingerprint=tiles,
            fingerprint=spec.labels_fingerprint(tiles),
            segmenter_name=name_of(self.segmenter),
            segmenter_digest=self.function,
            may_replace=self.options.overwrite,
        )
        plan.check_target()
        target.check_writable()
        return plan

    def auto_grid(self) -> TileGrid:
        """Return tiles that fit the machine, or those with which this very run was begun.

        Another day other memory is free, and other tiles would begin the run anew.
        """
        layout = layout_of(self.source, self.options.overlap, self.apart)
        earlier = None if self.options.is_temporary else self._earlier_grid()
        if earlier is not None:
            logger.info(
                "tile_shape='auto': tiles of %s voxels, as when this run was begun",
                earlier.tile_shape,
            )
            return earlier
        return self._grid_of(proposal_for(self.source, layout, self.options.place).tile_shape)

    def _grid_of(self, tile_shape: tuple[int, ...]) -> TileGrid:
        return resolve_grid_apart(
            self.source.shape,
            self.source.dtype,
            self.apart,
            tile_shape=tile_shape,
            overlap=self.options.overlap,
            chunks=None,
            storage_chunks=None,
        )

    def _earlier_grid(self) -> TileGrid | None:
        """Return the tiles of a finished label image, or of a stage, that is this very run's."""
        stages = _stage_root(self.target, self.options, "").parent
        recorded = [self.target.finished_run()]
        with suppress(OSError):
            recorded += [Stage(root).manifest() for root in sorted(stages.iterdir())]
        for found in recorded:
            # Not of a version that may say anything: what does not give a grid is no such run.
            with suppress(InputError, TypeError):
                grid = self._grid_of(found.get("tile_shape", ()))
                spec = self.spec(grid)
                tiles = spec.tiles_fingerprint(self.identity, self.function)
                if found.get("fingerprint") in (tiles, spec.labels_fingerprint(tiles)):
                    return grid
        return None


def _spec(source: ImageSource, grid: TileGrid, options: RunOptions, n_levels: int) -> RunSpec:
    threshold = check_threshold("empty_threshold", options.empty_threshold, source.dtype)
    overlap = spread_overlap(options.overlap, grid.ndim, grid.apart)
    series = source.time_axis if source.time_axis in grid.apart else None
    if options.link_time and series is None and not source.has_one_time_point:
        names = [axis.name for axis in source.calibration.axes]
        raise InputError(
            f"link_time=True: {source.name} has no time axis (its axes are {names}); give an "
            f"OME-Zarr image, or a zarr array with dimension names such as ('t', 'y', 'x')"
        )
    return RunSpec(
        grid=grid,
        stitch=parse_stitch(options.stitch),
        connectivity=options.connectivity,
        pyramid_levels=n_levels if options.pyramid_levels is None else options.pyramid_levels,
        pyramid_downscale=options.pyramid_downscale,
        skip_empty=bool(options.skip_empty),
        empty_threshold=threshold,
        cut_halo=cut_halo(grid, asked_overlap(overlap, grid.ndim)),
        time_axis=series,
        slice_axis=_slice_axis(source) if options.slice_wise else None,
        link_time=bool(options.link_time),
        link_iou=options.link_iou,
    )


def choose_target(source: ImageSource, options: RunOptions) -> LabelTarget:
    """Return where the label image goes: the image's own store, or `write_to`."""
    name = options.output_component
    if (
        not isinstance(name, str)
        or not name
        or name.startswith(".")
        or set(name) & set('/\\:*?"\0')
    ):
        raise InputError(
            f"output_component={name!r}: expected a plain name, without '/' and not starting "
            f"with '.'"
        )
    if options.write_to is None:
        if source.group is None:
            raise InputError(
                f"{source.name}: there is no group that could hold labels/{name}; say where they "
                f"should go with write_to="
            )
        target = LabelTarget.inside(source.group, name, source.version, source.calibration)
        if source.lies_in(target.location):
            raise InputError(f"{target.location}: this is the image itself; give another name")
        return target
    location = Location.parse(options.write_to, "write_to").followed("write_to")
    if source.lies_in(location):
        raise InputError(f"write_to={location}: this is the image itself; give another place")
    return LabelTarget(
        location=location,
        image_group=None,
        name=name,
        version=source.version,
        calibration=source.calibration,
        is_temporary=options.is_temporary,
    )


def check_reachable(plan: RunPlan) -> None:
    """Raise InputError if worker processes could not write to the target."""
    if plan.target.location.url.startswith("memory://"):
        raise InputError(
            f"{plan.target.location}: is in the memory of this process, and the workers are other "
            f"processes; give write_to= a path or a URL that they see too"
        )


def _identity(source: ImageSource, options: RunOptions) -> str:
    """Return what stands for the image's content in the run's fingerprint."""
    array = getattr(source.stored, "array", None)
    if hasattr(array, "__dask_graph__"):
        return identity_of_graph(array)
    if isinstance(source.stored, HeldArray) and options.is_temporary:
        return uuid.uuid4().hex  # nothing to go on from: do not read every voxel to find out
    return source.identity()


def _stage_root(target: LabelTarget, options: RunOptions, tiles_fingerprint: str) -> Path:
    """Return the folder of this run's stage: beside the label image's store, unless told."""
    if options.stage_dir is not None:
        parent = Location.parse(options.stage_dir, "stage_dir").path / f"{target.name}.stage"
    elif target.location.is_local:
        store = (target.image_group or target.location).path
        parent = store.with_name(f"{store.name}.stage")
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        parent = Path(cache) / "patchworks" / f"{target.name}.stage"
    # One for each label image: two that share their tiles would drop each other's regions.
    return parent / digest(tiles_fingerprint, str(target.location))[:16]
