"""`auto_tile_shape`: the largest sensible tile for the memory that there is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import DTypeLike

from patchworks.errors import InputError
from patchworks.execution.gpus import visible_gpus
from patchworks.execution.overlap import io_threads
from patchworks.execution.work_place import WorkPlace, threads_here
from patchworks.function_need import LABEL_BYTES
from patchworks.geometry.apart import spread_overlap
from patchworks.geometry.auto_tile_shape import (
    Limit,
    Proposal,
    TileBudget,
    TileLayout,
    propose_tile_shape,
)
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.pyramid import target_chunk
from patchworks.geometry.tile_shape import (
    ORDERED,
    WORKING_BYTES_PER_VOXEL,
    TileShapeRule,
    resolve_halo,
)
from patchworks.io.image_source import ImageSource
from patchworks.io.tile_reader import KEPT_BYTES
from patchworks.memory import PROCESS_BYTES, REGION_BYTES, RUNS_BYTES, SHARE
from patchworks.run import whole_number

logger = logging.getLogger("patchworks")

GPU_BYTES_PER_VOXEL = 256
"""What a function is assumed to need on a GPU: 32 channels of float32, of two layers at a time."""

GPU_SHARE = 0.8
"""Of a GPU's free memory, how much to plan with: its allocator keeps memory in pieces."""


def auto_tile_shape(
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    chunks: Sequence[int] | None = None,
    budget_bytes: int | None = None,
    n_workers: int | None = None,
    overlap: int | Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    bytes_per_voxel: int | None = None,
    use_gpu: bool = False,
) -> tuple[int, ...]:
    """Return the largest sensible tile that fits the memory of this machine.

    About a cube in physical units once it is four halos thick, of whole chunks, at most 2**26
    voxels, and so small that each worker has four tiles or more where the image is large enough.

    Parameters
    ----------
    shape : sequence of int
        Shape of the image, in voxels: ``(y, x)``, ``(z, y, x)``, or with one more axis in front,
        along which tiles are one voxel thick.
    dtype : numpy.dtype or str
        Dtype of the image.
    chunks : sequence of int, optional
        Chunk shape of the store; tiles are a multiple of it, or if that does not fit a part.
    budget_bytes : int, optional
        Memory that all workers may use together; by default what is free, within the limits of
        all containers around this process.
    n_workers : int, optional
        Tiles worked on at a time; by default one per core, or one with `use_gpu`.
    overlap : int or sequence of int, optional
        Voxels read on each side of a tile; by default 16.
    spacing : sequence of float, optional
        Size of a voxel on each axis, in any unit; by default all are the same.
    bytes_per_voxel : int, optional
        What the function needs beside the tile, per voxel; by default 16, and on a GPU 256.
    use_gpu : bool
        Whether tiles have to fit the free memory of the GPU as well.

    Raises
    ------
    InputError
        If an argument cannot be used, or the image has five axes.
    MemoryBudgetError
        If the budget is too small for the smallest tile.
    ClientError, MissingExtraError
        If `use_gpu` is True and there is no GPU.

    Examples
    --------
    >>> auto_tile_shape((128, 2048, 2048), "uint16", chunks=(32, 256, 256),
    ...                 budget_bytes=2**30, n_workers=2, overlap=8)
    (128, 256, 512)
    """
    extents = checked_extents("shape", shape)
    itemsize = checked_dtype(dtype).itemsize
    n_calls = None if n_workers is None else whole_number("n_workers", n_workers, 1, 2**16)
    per_voxel = None
    if bytes_per_voxel is not None:
        per_voxel = whole_number("bytes_per_voxel", bytes_per_voxel, 0, 2**30)
    layout = TileLayout.of(
        extents,
        is_tiled=tiled_axes(("time",) * max(0, len(extents) - 3) + ("space",) * 3, extents),
        halo=wanted_halo(extents, overlap),
        spacing=None if spacing is None else checked_spacing(spacing, extents),
        chunks=None if chunks is None else _chunks_of(chunks, extents),
    )
    place = threads_here(n_calls or (1 if use_gpu else None), visible_gpus() if use_gpu else ())
    if budget_bytes is None:
        budget = tile_budget(place, itemsize, len(extents), per_voxel)
    else:
        given = whole_number("budget_bytes", budget_bytes, 1, 2**60)
        limit = Limit(
            what=f"a budget of {given} bytes for {place.n_workers} workers",
            n_bytes=given,
            bytes_per_voxel=bytes_of_voxel(place, itemsize, per_voxel),
        )
        budget = TileBudget(
            limits=(limit, *gpu_limits(place, itemsize, per_voxel)), n_workers=place.n_workers
        )
    return propose_tile_shape(layout, budget).tile_shape


def bytes_of_voxel(place: WorkPlace, itemsize: int, function_bytes: int | None = None) -> int:
    """Return the bytes that a voxel of every tile on its way takes in one process."""
    working = WORKING_BYTES_PER_VOXEL if function_bytes is None else function_bytes
    n_ahead = io_threads(place.n_calls)
    # Read ahead; the chunks of one, which hold more than it reads; labels that are being staged.
    on_their_way = (n_ahead + 2) * itemsize + LABEL_BYTES + RUNS_BYTES
    return place.n_batches * (on_their_way + place.n_calls * (itemsize + working))


def tile_budget(
    place: WorkPlace, itemsize: int, ndim: int, function_bytes: int | None = None
) -> TileBudget:
    """Return what tiles may cost where they are worked on.

    Parameters
    ----------
    place : WorkPlace
        Where.
    itemsize, ndim : int
        Bytes per voxel of the image, and its axes.
    function_bytes : int, optional
        What the function needs per voxel beside the tile, in RAM and on a GPU.
    """
    planned = int(SHARE * place.memory_bytes) - PROCESS_BYTES
    where = "" if place.n_processes == 1 else f" in each of {place.n_processes} processes"
    memory = Limit(
        what=f"memory ({place.memory_bytes / 2**30:.1f} GiB free{where})",
        n_bytes=planned - min(KEPT_BYTES, max(0, planned // 4)),
        bytes_per_voxel=bytes_of_voxel(place, itemsize, function_bytes),
    )
    # Regions of the last pass hold whole tiles, but are no smaller than a chunk of labels.
    per_voxel = place.n_regions * REGION_BYTES
    least = prod(target_chunk(ndim)) * per_voxel
    merging = Limit(
        what=f"memory to write {place.n_regions} regions of labels at a time",
        n_bytes=max(least, int(SHARE * place.merge_bytes) - PROCESS_BYTES),
        bytes_per_voxel=per_voxel,
    )
    limits = (memory, merging, *gpu_limits(place, itemsize, function_bytes))
    return TileBudget(limits=limits, n_workers=place.n_workers)


def gpu_limits(
    place: WorkPlace, itemsize: int, function_bytes: int | None = None
) -> tuple[Limit, ...]:
    """Return what the GPU in use holds, if one is."""
    if place.gpu is None:
        return ()
    working = GPU_BYTES_PER_VOXEL if function_bytes is None else function_bytes
    return (
        Limit(
            what=f"GPU memory, {place.gpu}",
            n_bytes=int(GPU_SHARE * place.gpu.free_bytes),
            bytes_per_voxel=itemsize + working,
        ),
    )


def without_auto(
    source: ImageSource,
    tile_shape: TileShapeRule | None,
    overlap: int | Sequence[int] | None,
    place: WorkPlace | None = None,
) -> TileShapeRule | None:
    """Return a tile shape as it is, or one that fits the machine in the place of ``"auto"``.

    Parameters
    ----------
    source : ImageSource
        The image.
    tile_shape, overlap
        As in `patchworks.tile_process`.
    place : WorkPlace, optional
        Where tiles are worked on; by default in this process, on all cores.
    """
    if not is_auto(tile_shape):
        return tile_shape
    return proposal_for(source, layout_of(source, overlap), place).tile_shape


def is_auto(tile_shape: object) -> bool:
    """Return whether the tile shape is to be chosen."""
    return isinstance(tile_shape, str) and tile_shape == "auto"


def layout_of(
    source: ImageSource, overlap: int | Sequence[int] | None, apart: tuple[int, ...] = ()
) -> TileLayout:
    """Return what tiles of an image have to line up with; they extend along axes of space alone.

    And not along those that the function does not see, `apart`.
    """
    axes = source.calibration.axes
    kinds = ["space" if a.is_space and i not in apart else "other" for i, a in enumerate(axes)]
    overlap = spread_overlap(overlap, len(source.shape), apart)
    return TileLayout.of(
        source.shape,
        is_tiled=tiled_axes(kinds, source.shape, source.name),
        halo=wanted_halo(source.shape, overlap),
        spacing=source.calibration.scale,
        chunks=source.chunks,
        shards=source.shards,
    )


def proposal_for(
    source: ImageSource,
    layout: TileLayout,
    place: WorkPlace | None = None,
    function_bytes: int | None = None,
) -> Proposal:
    """Return the tile shape for an image, and say in the log why it is this one.

    Parameters
    ----------
    source, layout : ImageSource, TileLayout
        The image, and what its tiles line up with.
    place : WorkPlace, optional
        Where tiles are worked on; by default in this process, on all cores.
    function_bytes : int, optional
        What the function needs per voxel beside the tile, if that is known.
    """
    place = place or threads_here()
    budget = tile_budget(place, source.voxel_bytes, len(source.shape), function_bytes)
    found = propose_tile_shape(layout, budget)
    logger.info(
        "tile_shape='auto': %d tiles of %s voxels for %d workers; limited by %s",
        found.n_tiles, found.tile_shape, place.n_workers, found.reason,
    )  # fmt: skip
    return found


def tiled_axes(
    kinds: Sequence[str], shape: tuple[int, ...], name: str = "the image"
) -> tuple[bool, ...]:
    """Return along which axes tiles extend: those of space, of an image of two to four axes."""
    if len(shape) > 4:
        raise InputError(
            f"tile_shape='auto': {name} has {len(shape)} axes, {shape}; choose a channel or a time "
            f"point, or give tile_shape= with {len(shape)} numbers, such as "
            f"{(1,) * (len(shape) - 3) + (64, 256, 256)}"
        )
    found = tuple([kind == "space" for kind in kinds[-len(shape) :]])
    return found if any(found) else (True,) * len(shape)


def wanted_halo(
    shape: tuple[int, ...], overlap: int | Sequence[int] | None
) -> tuple[int | None, ...]:
    """Return the halo that is asked for on each axis; None where it is by default."""
    if overlap is None:
        return (None,) * len(shape)
    resolve_halo(TileGrid.regular(shape, shape, (0,) * len(shape)), overlap)  # says what is wrong
    given = np.broadcast_to(np.asarray(overlap), (len(shape),))
    return tuple([int(h) for h in given])


def checked_extents(name: str, value: object) -> tuple[int, ...]:
    """Return a shape of two axes or more, or raise InputError saying what is wrong."""
    is_ordered = isinstance(value, ORDERED) and not isinstance(value, str)
    entries = list(value) if is_ordered else []  # type: ignore[call-overload]
    if len(entries) < 2:
        raise InputError(f"{name}={value!r}: expected two integers or more, one per axis")
    return tuple([whole_number(name, entry, 1, 2**48) for entry in entries])


def checked_dtype(dtype: DTypeLike) -> np.dtype:
    """Return a dtype, or raise InputError."""
    try:
        return np.dtype(dtype)
    except TypeError as error:
        raise InputError(f"dtype={dtype!r}: expected a NumPy dtype, such as 'uint16'") from error


def _chunks_of(chunks: Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    found = checked_extents("chunks", chunks)
    if len(found) != len(shape):
        raise InputError(f"chunks={found}: expected {len(shape)}, one per axis of shape {shape}")
    return tuple([min(c, n) for c, n in zip(found, shape, strict=True)])


def checked_spacing(spacing: Sequence[float], shape: tuple[int, ...]) -> tuple[float, ...]:
    """Return the size of a voxel on each axis, or raise InputError saying what is wrong."""
    wrong = f"spacing={spacing!r}: expected {len(shape)} numbers above 0, one per axis"
    try:
        found = tuple([float(s) for s in spacing])
    except (TypeError, ValueError) as error:
        raise InputError(wrong) from error
    if len(found) != len(shape) or not all(0 < s < float("inf") for s in found):
        raise InputError(wrong)
    return found
