"""Contiguous ids for labels that exist already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from patchworks.errors import InputError
from patchworks.execution.executor import ThreadExecutor, batched
from patchworks.execution.machine import available_cores
from patchworks.fingerprint import digest
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.pyramid import plan_pyramid
from patchworks.io.label_image import LabelImage
from patchworks.io.record import smallest_unsigned
from patchworks.io.source import open_component
from patchworks.lazy import lazy_array
from patchworks.pipeline import build_level
from patchworks.plan import PathLike, RunOptions, choose_target
from patchworks.run import whole_number
from patchworks.steps.levels import write_region
from patchworks.steps.pyramid import pool_labels
from patchworks.temporary import temporary_store

if TYPE_CHECKING:
    import dask.array as da


def relabel_sequential_array(labels: np.ndarray) -> np.ndarray:
    """Return labels with their ids replaced by 1..N, in order; 0 stays background.

    Parameters
    ----------
    labels : numpy.ndarray
        Integers >= 0, any shape.

    Returns
    -------
    numpy.ndarray
        Same shape, the smallest unsigned dtype that holds N.

    Raises
    ------
    InputError
        If the labels are no integers, or negative.

    Examples
    --------
    >>> relabel_sequential_array(np.array([0, 500000, 500000, 7]))
    array([0, 2, 2, 1], dtype=uint8)
    """
    found = np.asarray(labels)
    ids = _ids(found, "labels")
    return _relabeled(found, ids).astype(smallest_unsigned(len(ids)))


def relabel_sequential_zarr(
    store: PathLike,
    component: str = "labels",
    *,
    write_to: PathLike | None = None,
    pyramid_levels: int = 1,
    overwrite: bool = False,
    max_workers: int | None = None,
) -> da.Array:
    """Write a copy of a label array with its ids replaced by 1..N; the input is not changed.

    Two passes over the chunks, in memory of a few chunks and the ids.

    Parameters
    ----------
    store : path or URL
        The store.
    component : str
        The label array in it.
    write_to : path or URL, optional
        Where the new label image goes; by default a temporary store.
    pyramid_levels : int
        Levels of the new label image.
    overwrite : bool
        Replace a label image that is there.
    max_workers : int, optional
        Threads; one per core by default.

    Returns
    -------
    dask.array.Array
        The new labels, lazy.

    Raises
    ------
    SourceNotFoundError, InputError, TargetExistsError
        Before anything is written.
    """
    if max_workers is not None:
        max_workers = whole_number("max_workers", max_workers, 1, 2**16)
    whole_number("pyramid_levels", pyramid_levels, 1, 32)
    source = open_component(store, component)
    grid = TileGrid.regular(source.shape, source.chunks or source.shape, (0,) * len(source.shape))
    options = RunOptions(
        write_to=temporary_store() if write_to is None else write_to,
        is_temporary=write_to is None,
        output_component=component.split("/")[-1],
    )
    target = choose_target(source, options)
    fingerprint = digest("sequential", source.identity())
    target.check(fingerprint, overwrite=overwrite)
    target.check_writable()
    executor = ThreadExecutor(max_workers or available_cores())
    batches = batched(range(grid.n_tiles), executor.max_batches)

    def ids_of(tiles: Sequence[int]) -> np.ndarray:
        return np.unique(
            np.concatenate([_ids(source.read(grid[i].core), source.name) for i in tiles])
        )

    ids = np.unique(np.concatenate(list(executor.map(ids_of, batches))))
    pyramid = plan_pyramid(grid, pyramid_levels, 2)
    dtype = np.dtype(np.uint32 if len(ids) <= np.iinfo(np.uint32).max else np.uint64)
    image = LabelImage(target, pyramid, dtype, fingerprint)
    target.make_private()
    target.check(fingerprint, overwrite=overwrite)  # in an object store what is there goes now
    image.create()
    regions = pyramid.regions()

    def relabel(tiles: Sequence[int]) -> None:
        for index in tiles:
            region = regions[index].core
            labels = _relabeled(source.read(region), ids).astype(dtype)
            write_region(image, region, labels, pool_labels)

    for _ in executor.map(relabel, batched(range(regions.n_tiles), executor.max_batches)):
        pass
    for level in range(pyramid.n_fused, pyramid.n_levels):
        build_level(image, level, range(pyramid.regions(level).n_tiles))
    made = {"fingerprint": fingerprint, "n_objects": len(ids)}
    image.publish(made, may_replace=overwrite)
    return lazy_array(target.location, "0")


def _ids(labels: np.ndarray, where: str) -> np.ndarray:
    """Return the positive ids, sorted; raise InputError where labels are none."""
    if labels.dtype.kind not in "iu":
        raise InputError(f"{where}: dtype {labels.dtype}; labels are integers")
    ids = np.unique(labels)
    if ids.size and ids[0] < 0:
        raise InputError(f"{where}: the negative label {ids[0]}; labels are 0 or more")
    return ids[ids > 0]


def _relabeled(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the rank of every label among `ids`, from 1; 0 for background."""
    return np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0)
