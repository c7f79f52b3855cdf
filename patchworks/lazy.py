"""Dask arrays in and out: lazy views of stores, and Dask inputs computed once.

`dask.array` is imported where it is used: it is a third of the time that a worker takes to start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from patchworks.errors import InputError
from patchworks.execution.machine import available_cores
from patchworks.fingerprint import digest
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.tile_shape import check_tile_shape
from patchworks.io.image_source import HeldArray, ImageSource, StoredArray
from patchworks.io.level_store import storable
from patchworks.io.location import Location, open_array, open_group
from patchworks.io.source import check_channel, find_array
from patchworks.pipeline import RunPlan, with_source
from patchworks.plan import PathLike

if TYPE_CHECKING:
    import dask.array as da

logger = logging.getLogger(__name__)

IN_MEMORY_BYTES = 2**28
"""Dask arrays up to this size are computed into memory; larger ones into the stage."""

COMPLETE = "complete"


def lazy_array(location: Location, component: str) -> da.Array:
    """Return a Dask array over an array in a store; nothing is read."""
    import dask.array as da

    array = open_array(location, component)
    lazy: da.Array = da.from_array(array, chunks=array.chunks, name=False, inline_array=True)
    return lazy


def load_ome_zarr(
    path: PathLike,
    channel: int | None = 0,
    level: int = 0,
    chunks: Sequence[int] | None = None,
    *,
    label: str | None = None,
) -> da.Array:
    """Open a level of an OME-Zarr image, or of one of its label images, as a lazy array.

    Parameters
    ----------
    path : str or path-like
        The store, OME-NGFF 0.4 or 0.5 or plain zarr, local or a URL.
    channel : int or None
        Channel to take, its axis dropped; None keeps them all.
    level : int
        Level of the pyramid, 0 for full resolution.
    chunks : sequence of int, optional
        Chunks of the result; those of the store by default.
    label : str, optional
        Name of a label image in the store, to be opened instead of the image.

    Returns
    -------
    dask.array.Array
        The axes of the image in its order; a time axis of one time point is dropped.

    Raises
    ------
    SourceNotFoundError
        If there is no such store.
    InputError
        If it has no such level, channel or label image.
    """
    import dask.array as da

    location = Location.parse(path)
    found = find_array(location if label is None else location / "labels" / label, level)
    stored = found.stored
    # A name that stays: a run over the array can be continued. What it holds is looked at then.
    name = f"load-ome-zarr-{digest(stored.location.url, stored.component)}"
    array = da.from_array(stored.array, chunks=stored.array.chunks, name=name)
    kinds = [axis.type for axis in found.axes or ()]
    index: list[int | slice] = [slice(None)] * array.ndim
    if channel is not None:
        at = kinds.index("channel") if "channel" in kinds else None
        picked = check_channel(channel, None if at is None else array.shape[at], str(location))
        if at is not None:
            index[at] = picked
    if "time" in kinds and array.shape[kinds.index("time")] == 1:
        index[kinds.index("time")] = 0
    picked_array: da.Array = array[tuple(index)]
    if chunks is None:
        return picked_array
    fitted: da.Array = picked_array.rechunk(check_tile_shape(chunks, picked_array.shape, "chunks"))
    return fitted


def make_readable(plan: RunPlan, *, by_other_processes: bool) -> RunPlan:
    """Return the plan with an image that every worker can read.

    A Dask array is computed once, chunk by chunk: into memory while it is small, else into the
    stage. An array in this process's memory goes to the stage if the workers are other processes.
    """
    source = plan.source
    array: Any = source.stored.array
    if hasattr(array, "__dask_graph__"):
        if array.nbytes <= IN_MEMORY_BYTES and not by_other_processes:
            return with_source(plan, replace(source, stored=HeldArray(array.compute())))
        chunks = tuple([max(c) for c in array.chunks])
        return with_source(plan, _into_stage(plan, array, chunks, _compute))
    if by_other_processes and source.held_by_this_process():
        chunks = tuple(getattr(array, "chunks", plan.spec.grid.tile_shape))
        copy = _into_stage(plan, array, chunks, _copy)
        kept = [n for n, picked in zip(chunks, source.pick, strict=True) if picked is None]
        return with_source(plan, replace(copy, chunks=tuple(kept)))
    return plan


def _into_stage(
    plan: RunPlan,
    array: Any,
    chunks: tuple[int, ...],
    write: Callable[[Any, zarr.Array[Any]], None],
) -> ImageSource:
    """Return a source whose array was written into the stage, now or by an earlier try."""
    location = plan.stage.image
    found = replace(plan.source, stored=StoredArray(location, "0"))
    if location.exists() and open_group(location).attrs.get(COMPLETE):
        return found
    logger.info("the array of %.2f GiB goes into %s", array.nbytes / 2**30, location)
    group = zarr.open_group(location.store(read_only=False), mode="w", zarr_format=3)
    dtype = storable(np.dtype(array.dtype))
    group.create_array("0", shape=array.shape, chunks=chunks, dtype=dtype)
    write(array, open_array(location, "0", mode="r+"))
    group.attrs[COMPLETE] = True
    return found


def _compute(array: da.Array, target: zarr.Array[Any]) -> None:
    """Compute a Dask array into another array, by its own scheduler."""
    import dask.array as da

    da.store(array.rechunk(target.chunks), target, lock=False)  # type: ignore[arg-type]


def _copy(array: Any, target: zarr.Array[Any]) -> None:
    """Copy an array of this process chunk by chunk: no voxel goes through a scheduler."""
    chunks = TileGrid.regular(array.shape, target.chunks, (0,) * array.ndim)

    def copy(index: int) -> None:
        box = chunks[index].core.slices
        target[box] = array[box]

    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(copy, range(chunks.n_tiles)):
            pass


def blocks_of(image: da.Array, overlap: int) -> tuple[TileGrid, dict[int, dict[int, int]]]:
    """Return the tiles of an array whose blocks still have their halos, and where blocks begin.

    Blocks are as `dask.array.overlap.overlap` makes them with ``boundary="none"``: a halo on every
    side that has a neighbour.

    Returns
    -------
    grid : TileGrid
        The tiles, in the image without the halos.
    starts : dict of int to dict of int to int
        Per axis, for the first voxel that a tile reads, the first voxel of its block.
    """
    halo = tuple([overlap if len(axis) > 1 else 0 for axis in image.chunks])
    trimmed = []
    for extents, h in zip(image.chunks, halo, strict=True):
        last = len(extents) - 1
        sides = [(i > 0) + (i < last) for i in range(len(extents))]
        cores = [n - h * s for n, s in zip(extents, sides, strict=True)]
        if min(cores) < max(1, h):
            raise InputError(
                f"overlap={overlap}: blocks of {extents[:4]} voxels do not have a halo of that "
                f"size on each inner side; give the depth that the array was made with"
            )
        trimmed.append(cores)
    grid = TileGrid.from_chunks(trimmed, halo)
    starts: dict[int, dict[int, int]] = {}
    for axis, extents in enumerate(image.chunks):
        raw = np.concatenate([[0], np.cumsum(extents)])
        reads = [max(0, edge - halo[axis]) for edge in grid.edges[axis][:-1]]
        starts[axis] = {read: int(raw[i]) for i, read in enumerate(reads)}
    return grid, starts
