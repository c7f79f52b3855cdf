"""`auto_tile_shape_cellpose`: tiles for Cellpose, of what it makes of every voxel."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from numpy.typing import DTypeLike

from patchworks.auto_overlap import checked_diameter, halo_around
from patchworks.auto_tile_shape import (
    GPU_SHARE,
    checked_dtype,
    checked_extents,
    tile_budget,
)
from patchworks.errors import InputError, PatchworksError
from patchworks.execution.gpus import Gpu, visible_gpus
from patchworks.execution.work_place import WorkPlace, threads_here
from patchworks.geometry.auto_tile_shape import Limit, TileBudget, TileLayout, propose_tile_shape

logger = logging.getLogger("patchworks")

NET_DIAMETER = 30.0
"""Pixels that an object has when the net sees it: the image is resized to that, in 3 and 4."""

DIAMETERS = 8
"""A tile spans so many objects before anything else counts: most are not at a seam."""

CHANNELS_BYTES = 12
"""Three float32 channels: what the net is given."""

FLOAT_BYTES = 4
"""A flow along one axis, a probability, or a coordinate."""

LABELS_BYTES = 12
"""Masks, those without what is too small, and their copy."""

NET_BYTES = 3 * 2**30
"""The net on a GPU: its weights, and what a batch of eight planes of 256² takes in it."""

MAX_NET_SHARE = 0.5
"""Of a GPU's memory, what the net takes at most: on a small one batches have to be smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellposeNeed:
    """Bytes that Cellpose needs per voxel of a tile.

    Parameters
    ----------
    ram_bytes : int
        In the process.
    gpu_bytes : int
        On the GPU, beside the net: the dynamics that follow the flows.
    """

    ram_bytes: int
    gpu_bytes: int

    @classmethod
    def of(cls, diameter: float, *, do_3D: bool) -> CellposeNeed:  # noqa: N803 - Cellpose's name
        """Return what is needed for objects of a diameter, in voxels.

        The image is resized by ``30 / diameter`` on every axis that is segmented at once; flows
        are computed there, in 3-D along three orientations, and resized back; then every voxel is
        moved along them.

        Examples
        --------
        >>> CellposeNeed.of(30, do_3D=False), CellposeNeed.of(15, do_3D=False).ram_bytes
        (CellposeNeed(ram_bytes=68, gpu_bytes=28), 140)
        """
        ndim = 3 if do_3D else 2
        resized = (NET_DIAMETER / diameter) ** ndim
        # Of each of three orientations two flows and a probability, and what they add up to.
        n_of_net = 3 * 3 + 4 if do_3D else 3
        flows = (ndim + 1) * FLOAT_BYTES
        positions = ndim * FLOAT_BYTES
        on_net = resized * (CHANNELS_BYTES + n_of_net * FLOAT_BYTES)
        return cls(
            ram_bytes=ceil(CHANNELS_BYTES + on_net + flows + positions + LABELS_BYTES),
            gpu_bytes=flows + 2 * positions,
        )


def auto_tile_shape_cellpose(
    shape: Sequence[int],
    dtype: DTypeLike,
    diameter: float | None = None,
    do_3D: bool = False,  # noqa: N803 - Cellpose's name
    use_gpu: bool | None = None,
    *,
    n_workers: int = 1,
) -> tuple[int, ...]:
    """Return the largest sensible tile for Cellpose on this machine.

    Its net works through a tile in small squares; what grows with the tile are the image resized
    to objects of 30 pixels, the flows, and the positions of voxels that follow them.

    Parameters
    ----------
    shape : sequence of int
        Shape of the image, in voxels: ``(y, x)``, ``(z, y, x)``, or with a time axis in front.
    dtype : numpy.dtype or str
        Dtype of the image.
    diameter : float, optional
        Of the objects, in voxels; None as in Cellpose: 30.
    do_3D : bool
        Segment in 3-D; else plane by plane, in tiles one voxel thick.
    use_gpu : bool, optional
        Whether the tile has to fit the free memory of the GPU as well; by default if there is one.
    n_workers : int
        Tiles worked on at a time, which share this machine's memory.

    Returns
    -------
    tuple of int
        Tile shape; `auto_overlap` of the same diameter is the overlap it was made for.

    Raises
    ------
    InputError
        If an argument cannot be used, or `do_3D` is asked of an image of two axes.
    MemoryBudgetError
        If the smallest tile does not fit.
    ClientError, MissingExtraError
        If `use_gpu` is True and there is no GPU.

    Examples
    --------
    >>> tile = auto_tile_shape_cellpose((60, 4096, 4096), "uint16", 30, use_gpu=False)
    >>> tile[0], min(tile[1:]) > 240
    (1, True)
    """
    extents, itemsize = checked_extents("shape", shape), checked_dtype(dtype).itemsize
    size = NET_DIAMETER if diameter is None else checked_diameter(diameter)
    n_tiled = 3 if do_3D else 2
    if not n_tiled <= len(extents) <= 4:
        raise InputError(
            f"shape={extents}, do_3D={do_3D}: expected {n_tiled} to 4 axes; choose a channel or a "
            f"time point, or leave do_3D out for an image of 2 axes"
        )
    n_leading = len(extents) - n_tiled
    halo = (halo_around(size),) * n_tiled
    layout = TileLayout.of(
        extents,
        is_tiled=(False,) * n_leading + (True,) * n_tiled,
        halo=(0,) * n_leading + halo,
    )
    layout = replace(layout, reach=(1,) * n_leading + (ceil(DIAMETERS * size),) * n_tiled)
    place = threads_here(n_workers, _gpus(use_gpu))
    need = CellposeNeed.of(size, do_3D=do_3D)
    found = propose_tile_shape(layout, _budget(place, itemsize, len(extents), need))
    logger.info(
        "Cellpose, diameter %g: tiles of %s voxels, %d and %d bytes per voxel in RAM and on a GPU; "
        "limited by %s", size, found.tile_shape, need.ram_bytes, need.gpu_bytes, found.reason,
    )  # fmt: skip
    return found.tile_shape


def _gpus(use_gpu: bool | None) -> Sequence[Gpu]:
    """Return the GPUs to fit; where nobody said there are any, none is no error."""
    if use_gpu is None:
        try:
            return visible_gpus()
        except PatchworksError:
            logger.info("Cellpose: no GPU is counted; use_gpu=True says why none can be used")
            return ()
    return visible_gpus() if use_gpu else ()


def _budget(place: WorkPlace, itemsize: int, ndim: int, need: CellposeNeed) -> TileBudget:
    budget = tile_budget(replace(place, gpu=None), itemsize, ndim, need.ram_bytes)
    if place.gpu is None:
        return budget
    planned = int(GPU_SHARE * place.gpu.free_bytes)
    beside_net = planned - min(NET_BYTES, int(MAX_NET_SHARE * planned))
    on_gpu = Limit(
        what=f"GPU memory beside the net, {place.gpu}",
        n_bytes=beside_net,
        bytes_per_voxel=need.gpu_bytes,
    )
    return replace(budget, limits=(*budget.limits, on_gpu))
