"""`estimate_empty_tiles`: which tiles hold signal, before anything is segmented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np

from patchworks.auto_tile_shape import without_auto
from patchworks.emptiness import Emptiness, check_threshold, sampled_background
from patchworks.errors import InputError
from patchworks.execution.executor import Executor, ThreadExecutor, batched
from patchworks.execution.machine import available_cores
from patchworks.geometry.apart import resolve_grid_apart
from patchworks.io.channels import ChannelChoice
from patchworks.io.image_source import HeldArray
from patchworks.io.tile_reader import TileReader
from patchworks.plan import axes_apart, describe_image
from patchworks.steps.occupancy import is_occupied


class EmptyTiles(TypedDict):
    """Which tiles hold signal; `occupied` is a bool array on the tile grid."""

    n_tiles: int
    n_occupied: int
    n_empty: int
    empty_fraction: float
    threshold: float
    occupied: np.ndarray


def estimate_empty_tiles(
    image: Any,
    tile_shape: tuple[int, ...],
    *,
    channel: ChannelChoice = 0,
    level: int = 0,
    threshold: float | None = None,
    overlap: int | Sequence[int] = 0,
) -> EmptyTiles:
    """Return which tiles read any voxel above a threshold.

    Exact, voxel by voxel, those of the halo too. An image in a store is read once for it: the
    largest voxel of each small box is kept beside the store, in a folder that ends with
    ``.maxima``, so that the next call and runs with ``skip_empty`` hardly read anything.

    Parameters
    ----------
    image, channel, level
        As in `patchworks.tile_process`.
    tile_shape : tuple of int
        Core of a tile, in voxels.
    threshold : float, optional
        Intensity up to which a voxel is no signal; by default found in a sample of the image, below
        Otsu's threshold and above the background's noise. Where the sample does not fall into
        background and signal, no tile with a voxel above 0 counts as empty.
    overlap : int or sequence of int
        Voxels read on each side of a core.

    Raises
    ------
    InputError
        If the threshold is no finite number, is negative for an image without negative voxels, or
        an argument of `tile_process` would be refused.

    Examples
    --------
    >>> image = np.zeros((8, 8), "uint8")
    >>> image[0, 0] = 9
    >>> found = estimate_empty_tiles(image, (4, 4), threshold=5)
    >>> found["n_empty"], found["occupied"].tolist()
    (3, [[True, False], [False, False]])
    """
    source = describe_image(image, channel=channel, level=level)
    given = check_threshold("threshold", threshold, source.dtype)
    if isinstance(source.stored, HeldArray) and hasattr(source.stored.array, "__dask_graph__"):
        held = HeldArray(_Computed(source.stored.array))
        source = replace(source, stored=held, chunks=None)
    if source.lead and given is None:
        raise InputError(
            f"channel={channel!r}: what is signal differs between channels; give threshold=, which "
            f"holds for all of them"
        )
    grid = resolve_grid_apart(
        source.shape,
        source.dtype,
        axes_apart(source),
        tile_shape=without_auto(source, tile_shape, overlap),
        overlap=overlap,
        chunks=None,
        storage_chunks=None,
    )
    executor = ThreadExecutor(available_cores())
    known = Emptiness.of(source)
    if known is None:
        limit = sampled_background(source).threshold if given is None else given
        reader = TileReader(source, grid, by_index=True)
    else:
        limit = known.choose_threshold(given)
        _look_at_all(known, executor)
        reader = TileReader(source, grid, maxima=known.maxima, by_index=True)

    def look(tiles: Sequence[int]) -> list[tuple[int, bool]]:
        return [(i, is_occupied(reader, grid[i], limit)) for i in tiles]

    occupied = np.zeros(grid.n_tiles, bool)
    for batch in executor.map(look, batched(range(grid.n_tiles), executor.max_batches)):
        for index, found in batch:
            occupied[index] = found
    n_occupied = int(occupied.sum())
    return EmptyTiles(
        n_tiles=grid.n_tiles,
        n_occupied=n_occupied,
        n_empty=grid.n_tiles - n_occupied,
        empty_fraction=1 - n_occupied / grid.n_tiles,
        threshold=limit,
        occupied=occupied.reshape(grid.dims),
    )


def _look_at_all(known: Emptiness, executor: Executor) -> None:
    """Read what is not known of an image, and keep it."""
    if not known.maxima.is_complete:
        for _ in executor.map(known.look_at, batched(range(known.units.n_tiles), 2**20)):
            pass
    known.keep()


class _Computed:
    """Gives parts of a Dask array as NumPy arrays, computed in the thread that asks."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self.array[index].compute(scheduler="synchronous"))
