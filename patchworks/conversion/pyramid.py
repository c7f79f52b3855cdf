"""An array in a store → an OME-Zarr image: levels beside it, and the metadata last."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import zarr

from patchworks.conversion.calibration import calibrate
from patchworks.errors import InputError, SourceNotFoundError, TargetExistsError
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
from patchworks.io.ngff import Calibration, Version, read_multiscale, with_levels
from patchworks.io.source import NOT_ZARR, axes_of_array, open_node
from patchworks.io.writing import writing
from patchworks.readers.ome_zarr import axis_letters
from patchworks.readers.scene import ORDER, Scene
from patchworks.run import whole_number
from patchworks.steps.levels import Pool, build_level
from patchworks.steps.pyramid import pool_image, pool_labels


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


def extend_pyramid(
    store: Location,
    *,
    base: str,
    axes: str | None,
    n_levels: int | None,
    downscale: int,
    pixel_size: Mapping[str, float] | None,
    max_workers: int | None,
    progress: bool,
) -> None:
    """Add levels to an array of a group; see `patchworks.plugins.ome_zarr.add_pyramid`."""
    workers = available_cores()
    if max_workers is not None:
        workers = whole_number("max_workers", max_workers, 1, 2**16)
    group = open_node(store)
    if isinstance(group, zarr.Array):
        raise InputError(f"{store}: an array; give the group that holds it, and base=its name")
    array = _base(store, group, base)
    attributes = dict(group.attrs)
    calibration = _calibration(store, array, attributes, base, axes, pixel_size)
    pyramid = _plan_levels(array, calibration, n_levels, downscale)
    fingerprint = digest("pyramid", identity_of_zarr_array(array), repr((pyramid, calibration)))
    stage = ConversionStage.beside(store, fingerprint)
    levels = _GroupLevels(store, base, pyramid)
    with writing(store):
        _begin(levels, array, fingerprint, stage)
    ome = attributes.get("ome", attributes)
    is_labels = isinstance(ome, Mapping) and "image-label" in ome
    pool: Pool = pool_labels if is_labels else pool_image
    _build_levels(levels, stage, pool, workers, progress=progress)
    version: Version = "0.4" if array.metadata.zarr_format == 2 else "0.5"
    with writing(store):
        described = with_levels(
            attributes, version, name=store.name, calibration=calibration, pyramid=pyramid,
            base=base, method="mode" if is_labels else "mean",
        )  # fmt: skip
        open_group(store, mode="r+").attrs.put(described)
        for level in range(1, pyramid.n_levels):
            del levels.arrays[level].attrs[PARTIAL_KEY]
        refresh_consolidated(store)
        stage.remove()


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


def _build_levels(
    levels: _GroupLevels, stage: ConversionStage, pool: Pool, n_workers: int, *, progress: bool
) -> None:
    """Write every level that is not there, region by region, each from the one above."""
    executor = ThreadExecutor(n_workers)
    for level in range(1, levels.pyramid.n_levels):
        done = stage.finished(level)
        todo = [i for i in range(levels.pyramid.regions(level).n_tiles) if i not in done]
        results = executor.map(
            partial(_build, levels, level, stage, pool), batched(todo, executor.max_batches)
        )
        for _ in with_progress(
            results,
            total=len(todo),
            what=f"level {level}",
            unit="region",
            shown=progress and bool(todo),
            count=int,
        ):
            pass


def _base(store: Location, group: zarr.Group, base: str) -> ZarrArray:
    try:
        array = open_array(store, base)
    except NOT_ZARR as error:
        raise SourceNotFoundError(
            f"{store}: there is no array {base!r} in it; it holds {sorted(group.array_keys())[:8]}"
        ) from error
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
        named = axes or axis_letters(axes_of_array(array))
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


def _build(
    levels: _GroupLevels, level: int, stage: ConversionStage, pool: Pool, regions: Batch
) -> int:
    with writing(levels.group):
        build_level(levels, level, regions, pool)
        for region in regions:
            stage.mark(level, region)
    return len(regions)
