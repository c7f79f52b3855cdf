"""An array in a store → an OME-Zarr image: levels beside it, and the metadata last."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import Any

import cloudpickle
import numpy as np
import zarr

from patchworks.conversion.calibration import calibrate
from patchworks.errors import InputError, TargetExistsError
from patchworks.execution.executor import Batch, ThreadExecutor, batched
from patchworks.execution.machine import available_cores
from patchworks.execution.progress import with_progress
from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.geometry.grid import ceil_div
from patchworks.geometry.image_pyramid import ImageLayout, plan_image_pyramid
from patchworks.geometry.pyramid import PyramidPlan
from patchworks.io.conversion_stage import ConversionStage
from patchworks.io.identity import identity_of_zarr_array
from patchworks.io.level_store import PARTIAL_KEY, refresh_consolidated, remove_chunks
from patchworks.io.location import Location, ZarrArray, open_array, open_group
from patchworks.io.ngff import Calibration, read_multiscale, with_levels
from patchworks.io.run_lock import RunLock, lock_path_of
from patchworks.io.source import NOT_ZARR, array_in, open_node
from patchworks.io.writing import writing
from patchworks.readers.axes import axes_of_unplaced, axis_letters
from patchworks.readers.scene import ORDER, Scene
from patchworks.run import whole_number
from patchworks.steps.levels import Pool, build_level
from patchworks.steps.pyramid import pool_image, pool_labels

PLAN_FILE = "plan.pickle"

ADVICE = "make the folder that holds the store writable, or copy the store"


@dataclass(frozen=True)
class _GroupLevels:
    """The base and the new levels of a group, by their paths in it."""

    group: Location
    base: str
    pyramid: PyramidPlan

    @cached_property
    def arrays(self) -> list[ZarrArray]:
        paths = [self.base, *map(str, range(1, self.pyramid.n_levels))]
        return [open_array(self.group, path, mode="r+") for path in paths]

    def write(self, level: int, box: Box, voxels: np.ndarray) -> None:
        """Write the voxels of a box of a level."""
        self.arrays[level][box.slices] = voxels

    def read(self, level: int, box: Box) -> np.ndarray:
        """Return the voxels of a box of a level."""
        return np.asarray(self.arrays[level][box.slices])


@dataclass(frozen=True, kw_only=True)
class PyramidAddition:
    """Levels to be added to an array in a store, checked; what any process works on.

    Parameters
    ----------
    store : Location
        The group.
    base : str
        Path of the array in it.
    axes, pixel_size
        As they were asked for.
    calibration : Calibration
        Axes and size of the base.
    pyramid : PyramidPlan
        The levels, the base included.
    fingerprint : str
        What decides the new levels.
    is_labels : bool
        Whether the array holds labels.
    """

    store: Location
    base: str
    axes: str | None
    pixel_size: Mapping[str, float] | None
    calibration: Calibration
    pyramid: PyramidPlan
    fingerprint: str
    is_labels: bool

    @property
    def stage(self) -> ConversionStage:
        """What is kept while the levels are written."""
        return ConversionStage.beside(self.store, self.fingerprint)

    @cached_property
    def levels(self) -> _GroupLevels:
        """The base and the new levels."""
        return _GroupLevels(self.store, self.base, self.pyramid)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "levels"}

    @property
    def pool(self) -> Pool:
        """How a cell of voxels becomes one."""
        return pool_labels if self.is_labels else pool_image

    def lock(self, run: str = "") -> RunLock:
        """Return the lock of the store."""
        return RunLock(lock_path_of(self.store), str(self.store), run, advice=ADVICE)

    def n_bytes(self, level: int) -> int:
        """Return the bytes of a level, uncompressed."""
        return prod(self.pyramid.shapes[level]) * self.levels.arrays[0].dtype.itemsize

    def todo(self, level: int) -> list[int]:
        """Return the regions of a level that are still to be written."""
        done = self.stage.finished(level)
        return [i for i in range(self.pyramid.regions(level).n_tiles) if i not in done]


def plan_addition(
    store: Location,
    *,
    base: str = "0",
    axes: str | None = None,
    n_levels: int | None = None,
    downscale: int = 2,
    pixel_size: Mapping[str, float] | None = None,
) -> PyramidAddition:
    """Return what adding a pyramid comes to, after checking all that can be checked."""
    group = open_node(store)
    if isinstance(group, zarr.Array):
        raise InputError(f"{store}: an array; give the group that holds it, and base=its name")
    array, attributes = _base(store, group, base), dict(group.attrs)
    calibration = _calibration(store, array, attributes, base, axes, pixel_size)
    pyramid = _plan_levels(array, calibration, n_levels, downscale)
    ome = attributes.get("ome", attributes)
    return PyramidAddition(
        store=store,
        base=base,
        axes=axes,
        pixel_size=pixel_size,
        calibration=calibration,
        pyramid=pyramid,
        fingerprint=digest("pyramid", identity_of_zarr_array(array), repr((pyramid, calibration))),
        is_labels=isinstance(ome, Mapping) and "image-label" in ome,
    )


def begin_addition(plan: PyramidAddition) -> None:
    """Make the empty levels, or go on with those of an interrupted try; the lock is held."""
    array = open_array(plan.store, plan.base)
    # Once more: another run may have ended just before.
    attributes = dict(open_node(plan.store).attrs)
    _calibration(plan.store, array, attributes, plan.base, plan.axes, plan.pixel_size)
    with writing(plan.store):
        _begin(plan.levels, array, plan.fingerprint, plan.stage)
        plan.stage.write(PLAN_FILE, cloudpickle.dumps(plan))


def load_addition(stage: str) -> PyramidAddition:
    """Return the plan that is kept in a stage."""
    plan: PyramidAddition = cloudpickle.loads(ConversionStage(Location(stage)).read(PLAN_FILE))
    return plan


def add_regions(plan: PyramidAddition, level: int, regions: Batch) -> int:
    """Write regions of a level from the level above; returns how many."""
    with writing(plan.store):
        for region in regions:
            if not plan.stage.is_marked(level, region):
                build_level(plan.levels, level, [region], plan.pool)
                plan.stage.mark(level, region)
    return len(regions)


def finish_addition(plan: PyramidAddition) -> None:
    """Write the group's metadata: now it is an image with a pyramid."""
    group = open_group(plan.store, mode="r+")
    with writing(plan.store):
        before = dict(group.attrs)
        described = with_levels(
            before,
            "0.4" if plan.levels.arrays[0].metadata.zarr_format == 2 else "0.5",
            name=plan.store.name,
            calibration=plan.calibration,
            pyramid=plan.pyramid,
            base=plan.base,
            method="mode" if plan.is_labels else "mean",
        )
        if described != before:  # else an earlier try got this far
            _check_still_ours(plan, before)
        group.attrs.put(described)
        for array in plan.levels.arrays[1:]:
            array.attrs.pop(PARTIAL_KEY, None)
        refresh_consolidated(plan.store)
        plan.stage.remove()


def _check_still_ours(plan: PyramidAddition, attributes: Mapping[str, Any]) -> None:
    """Raise TargetExistsError if another program made a pyramid or a level in the meantime."""
    found = read_multiscale(attributes, str(plan.store))
    names = [str(level) for level in range(1, plan.pyramid.n_levels)]
    foreign = [name for name in names if _mark(plan.store / name) != plan.fingerprint]
    if foreign or (found is not None and len(found.levels) > 1):
        raise TargetExistsError(
            f"{plan.store}: another program made a pyramid there in the meantime, or wrote to "
            f"{names}; if it is not the one you want, remove it, and call again"
        )


def extend_pyramid(
    plan: PyramidAddition, *, max_workers: int | None = None, progress: bool = True
) -> None:
    """Add levels to an array of a group; see `patchworks.plugins.ome_zarr.add_pyramid`.

    Raises
    ------
    TargetInUseError
        If another run is writing the store.
    """
    executor = ThreadExecutor(max_workers or available_cores())
    with plan.lock() as lock:
        begin_addition(plan)
        for level in range(1, plan.pyramid.n_levels):
            todo = plan.todo(level)
            add = partial(add_regions, plan, level)
            bar = with_progress(
                executor.map(add, batched(todo, executor.max_batches)),
                total=len(todo),
                what=f"level {level}",
                unit="region",
                shown=progress and bool(todo),
                count=int,
            )
            for _ in bar:
                pass
        lock.check()
        finish_addition(plan)


def _plan_levels(
    array: ZarrArray, calibration: Calibration, n_levels: int | None, downscale: int
) -> PyramidPlan:
    """Return levels in the chunks of the base, each made from the one above."""
    layout = ImageLayout(
        chunks=array.chunks,
        n_levels=None if n_levels is None else whole_number("n_levels", n_levels, 1, 32),
        downscale=whole_number("downscale", downscale, 2, 64),
        shard=array.shards is not None,
    )
    names = axis_letters(calibration.axes)
    stored = array.shards or array.chunks
    plan = plan_image_pyramid(names, array.shape, array.dtype.itemsize, stored, layout)
    chunks = tuple([tuple(map(min, array.chunks, shape)) for shape in plan.shapes])
    if array.shards is None:
        return replace(plan, n_fused=1, chunks=chunks, shards=None)
    shards = [
        tuple(
            [min(s, ceil_div(n, c) * c) for s, n, c in zip(array.shards, shape, chunk, strict=True)]
        )
        for shape, chunk in zip(plan.shapes, chunks, strict=True)
    ]
    return replace(plan, n_fused=1, chunks=chunks, shards=tuple(shards))


def _base(store: Location, group: zarr.Group, base: str) -> ZarrArray:
    array = array_in(group, store, base, "base")
    if array.dtype.kind not in "biuf" or 0 in array.shape:
        raise InputError(
            f"{store}/{base}: {array.dtype} {array.shape}; expected voxels that are booleans, "
            f"integers or real numbers"
        )
    return array


def _calibration(
    store: Location,
    array: ZarrArray,
    attributes: Mapping[str, Any],
    base: str,
    axes: str | None,
    pixel_size: Mapping[str, float] | None,
) -> Calibration:
    """Return axes and scale of the base, as the metadata or the arguments have them."""
    found = read_multiscale(attributes, str(store))
    if found is None:
        named = axes or axes_of_unplaced(array, f"{store}/{base}")
        scene = Scene(
            name="", axes=_canonical(named, array, store), shapes=(array.shape,),
            dtype=array.dtype, block=array.chunks,
        )  # fmt: skip
        return calibrate(scene, pixel_size, str(store))
    if len(found.levels) > 1:
        raise TargetExistsError(
            f"{store}: has a pyramid of {len(found.levels)} levels already; to make another, "
            f"convert it with to_ome_zarr to a new store"
        )
    first = found.levels[0]
    named = axis_letters(found.axes)
    if first.path != base or axes not in (None, named):
        raise InputError(
            f"{store}: its metadata name the array {first.path!r} with axes {named!r}; got "
            f"base={base!r}, axes={axes!r}"
        )
    _canonical(named, array, store)
    if pixel_size:
        raise InputError(f"{store}: its metadata give its size already; leave pixel_size out")
    return Calibration(found.axes, first.scale, first.translation)


def _canonical(named: str, array: ZarrArray, store: Location) -> str:
    axes = named.lower()
    ordered = "".join(sorted(axes, key=ORDER.find))
    if axes != ordered or set(axes) - set(ORDER) or len(axes) != array.ndim or axes[-2:] != "yx":
        raise InputError(
            f"{store}: axes {named!r} for shape {array.shape}; expected {array.ndim} of "
            f"{ORDER!r} in this order, say which with axes="
        )
    return axes


def _begin(
    levels: _GroupLevels, array: ZarrArray, fingerprint: str, stage: ConversionStage
) -> None:
    """Make the empty levels, or go on with those of an interrupted try."""
    store, pyramid = levels.group, levels.pyramid
    names = [str(level) for level in range(1, pyramid.n_levels)]
    group = zarr.open_group(store.store(read_only=True), mode="r", use_consolidated=False)
    there = [name for name in names if name in group or (store / name).exists()]
    marks = {name: _mark(store / name) for name in there}
    foreign = [name for name, mark in marks.items() if mark is None]
    if foreign:
        raise TargetExistsError(
            f"{store}: {foreign} are there already, and no levels of {pyramid.n_levels - 1} that "
            f"could be added; they are never replaced: remove or rename them"
        )
    if stage.exists() and len(marks) == len(names) and set(marks.values()) == {fingerprint}:
        _sweep(levels, stage)
        return
    stage.begin()
    writable = open_group(store, mode="r+")
    for level in range(1, pyramid.n_levels):
        made = writable.create_array(
            str(level),
            shape=pyramid.shapes[level],
            chunks=pyramid.chunks[level],
            shards=None if pyramid.shards is None else pyramid.shards[level],
            dtype=array.dtype,
            overwrite=True,
            **_encoding_of(array),
        )
        made.attrs[PARTIAL_KEY] = fingerprint


def _mark(level: Location) -> str | None:
    """Return which try of ours made a level; None if something else is there."""
    with suppress(*NOT_ZARR):
        return str(open_array(level).attrs[PARTIAL_KEY])
    return None


def _sweep(levels: _GroupLevels, stage: ConversionStage) -> None:
    """Remove what a kill cut off: a chunk may be read before it is written."""
    if not levels.group.is_local:
        return  # object stores put whole objects
    for level in range(1, levels.pyramid.n_levels):
        done, grid = stage.finished(level), levels.pyramid.regions(level)
        todo = [grid[i].core for i in range(grid.n_tiles) if i not in done]
        remove_chunks(levels.arrays[level], levels.group.path / str(level), todo)


def _encoding_of(array: ZarrArray) -> dict[str, Any]:
    """Return how an array is stored, for others to be stored alike."""
    metadata = array.metadata
    coded = {"compressors": array.compressors or None, "filters": array.filters or None}
    if metadata.zarr_format == 2:
        return {
            **coded,
            "chunk_key_encoding": {"name": "v2", "separator": metadata.dimension_separator},
        }
    return {
        **coded,
        "chunk_key_encoding": metadata.chunk_key_encoding,
        "dimension_names": metadata.dimension_names,
    }
