"""`merge_tile_labels`: stitch labels that a user's own tiling made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patchworks.errors import InputError
from patchworks.execution.dask import choose_executor
from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.io.image_source import ImageSource
from patchworks.io.named_array import bare_array
from patchworks.io.source import kind_of, open_component
from patchworks.lazy import blocks_of, lazy_array
from patchworks.pipeline import RunPlan
from patchworks.plan import PathLike, RunOptions, describe_image, plan_on_grid
from patchworks.run import whole_number
from patchworks.run_plan import run_plan
from patchworks.temporary import temporary_store

if TYPE_CHECKING:
    import dask.array as da


def merge_tile_labels(
    labeled: Any,
    write_to: PathLike | None = None,
    *,
    input_component: str = "labels",
    output_component: str = "labels",
    overlap: int = 0,
    sequential_labels: bool = False,  # noqa: ARG001 - labels always are: it costs nothing
    connectivity: int = 1,
    n_workers: int | None = None,
    stage_dir: PathLike | None = None,
    keep_stage: bool = False,
    progress: bool = False,
    pyramid_levels: int = 5,
    overwrite: bool = False,
) -> da.Array:
    """Make one label image of labels that were made tile by tile, each tile counting for itself.

    Parameters
    ----------
    labeled : dask.array.Array, path or URL
        A Dask array with one block per tile, or a store in which the chunks of `input_component`
        are the tiles. Integers, 0 for background. Never changed.
    write_to : path or URL, optional
        Where the label image goes; by default a temporary store that ends with the process.
    input_component : str
        The label array in a store.
    output_component : str
        Name of the label image.
    overlap : int
        Voxels of halo that the blocks of a Dask array still have on each inner side, as
        ``dask.array.overlap.overlap(..., boundary="none")`` adds them. They are trimmed, and what
        they show is used: labels are joined where both tiles saw the same piece.
    sequential_labels : bool
        Accepted for clarity: labels are 1..N in any case.
    connectivity : int
        Without `overlap`, labels are joined where they touch: how many axes a step between two
        touching voxels may change.
    n_workers : int, optional
        Threads; one per core by default. With an active Dask client its workers are used.
    stage_dir, keep_stage, progress, overwrite
        As in `patchworks.tile_process`.
    pyramid_levels : int
        Levels of the label image, level 0 included.

    Returns
    -------
    dask.array.Array
        Labels 1..N, lazy, without halos.

    Raises
    ------
    InputError, SourceNotFoundError, TargetExistsError, ClientError
        Before any work.
    TargetInUseError
        If another run is writing there.

    Examples
    --------
    >>> import dask.array as da
    >>> tiles = da.from_array(np.array([[1, 1, 1, 0], [0, 2, 0, 2]]), chunks=(2, 2))
    >>> merge_tile_labels(tiles).compute().tolist()
    [[1, 1, 1, 0], [0, 2, 0, 3]]
    """
    options = RunOptions(
        write_to=temporary_store() if write_to is None else write_to,
        is_temporary=write_to is None,
        output_component=output_component,
        connectivity=connectivity,
        pyramid_levels=pyramid_levels,
        stage_dir=stage_dir,
        overwrite=overwrite,
    )
    if n_workers is not None:
        n_workers = whole_number("n_workers", n_workers, 1, 2**16)
    plan = plan_merge(labeled, options, input_component=input_component, overlap=overlap)
    executor = choose_executor(n_workers)
    run_plan(plan, executor, progress=progress, keep_stage=keep_stage)
    return lazy_array(plan.target.location, "0")


def plan_merge(
    labeled: Any, options: RunOptions, *, input_component: str = "labels", overlap: int = 0
) -> RunPlan:
    """Return the plan of a merge, after checking all that can be checked before any work.

    Parameters
    ----------
    labeled, input_component, overlap
        As in `merge_tile_labels`.
    options : RunOptions
        Where the label image goes, and how.

    Raises
    ------
    InputError
        If the labels are no integers, or are not cut into tiles.
    """
    overlap = whole_number("overlap", overlap, 0, 2**31)
    source, grid = _tiles(labeled, input_component, overlap)
    if source.time_axis is not None:
        raise InputError(
            f"{source.name}: labels of {source.shape[source.time_axis]} time points; merge those "
            f"of one at a time"
        )
    if source.dtype.kind not in "iu":
        raise InputError(f"{source.name}: dtype {source.dtype}; labels are integers")
    return plan_on_grid(source, labels_as_given, grid, options)


def labels_as_given(labels: np.ndarray) -> np.ndarray:
    """Return what a tile already holds: the segmentation function of a merge."""
    return labels


def _tiles(labeled: Any, component: str, overlap: int) -> tuple[ImageSource, TileGrid]:
    """Return the labels as an image, and the tiles that made them."""
    kind, labeled = kind_of(labeled), bare_array(labeled)
    if kind == "dask":
        source = describe_image(labeled)
        if not overlap:
            return source, TileGrid.from_chunks(labeled.chunks, (0,) * labeled.ndim)
        grid, starts = blocks_of(labeled, overlap)
        return _with_halos(source, grid, starts), grid
    if overlap:
        raise InputError(f"overlap={overlap}: chunks of a store have no halo; leave it out")
    if kind == "path":
        source = open_component(labeled, component, "input_component")
    else:
        source = describe_image(labeled)
    if source.chunks is None:
        raise InputError("labels in a NumPy array are one tile: there is nothing to merge")
    return source, TileGrid.regular(source.shape, source.chunks, (0,) * len(source.shape))


@dataclass(frozen=True, kw_only=True)
class BlocksWithHalos(ImageSource):
    """Blocks that still have their halos, side by side; reads are whole blocks.

    Parameters
    ----------
    starts : mapping
        Per axis, for the first voxel a tile reads, the first voxel of its block.
    """

    starts: Mapping[int, Mapping[int, int]]

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """Return the block of the tile that reads `box`."""
        start = tuple([self.starts[axis][first] for axis, first in enumerate(box.start)])
        stop = tuple([a + n for a, n in zip(start, box.shape, strict=True)])
        return super().read(Box(start, stop), out)


def _with_halos(
    source: ImageSource, grid: TileGrid, starts: Mapping[int, Mapping[int, int]]
) -> BlocksWithHalos:
    """Return a source that finds a tile's block by what the tile reads."""
    values = {name: getattr(source, name) for name in ImageSource.__dataclass_fields__}
    values |= {"shape": grid.shape, "chunks": None}  # no box but a tile's own can be read
    return BlocksWithHalos(**values, starts=starts)
