"""`tile_process`: run a segmentation function on an image of any size, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchworks.engine import Engine, choose_workers, kept_here
from patchworks.execution.progress import Progress
from patchworks.geometry.tile_shape import TileShapeRule
from patchworks.io.channels import ChannelChoice
from patchworks.io.source import kind_of
from patchworks.lazy import lazy_array
from patchworks.plan import PathLike, RunOptions, plan_run
from patchworks.run_plan import run_plan
from patchworks.temporary import temporary_store

if TYPE_CHECKING:
    import dask.array as da


def tile_process(
    image: Any,
    fn: Callable[[np.ndarray], np.ndarray],
    *,
    tile_shape: TileShapeRule | None = None,
    overlap: int | Sequence[int] | None = None,
    channel: ChannelChoice = 0,
    level: int = 0,
    use_gpu: bool = False,
    max_workers: int | None = None,
    engine: Engine = "auto",
    progress: Progress = True,
    write_to: PathLike | None = None,
    output_component: str = "labels",
    pyramid_levels: int | None = None,
    pyramid_downscale: int = 2,
    sequential_labels: bool = False,  # noqa: ARG001 - labels always are: it costs nothing
    skip_empty: bool = False,
    empty_threshold: float | None = None,
    stage_dir: PathLike | None = None,
    keep_stage: bool = False,
    stitch: str = "auto",
    connectivity: int = 1,
    slice_wise: bool = False,
    link_time: bool = False,
    link_iou: float = 0.25,
    resume: bool = True,
    overwrite: bool = False,
) -> da.Array:
    """Run a segmentation function on an image of any size, tile by tile, and merge the labels.

    For a function whose answer at a voxel depends on fewer than `overlap` voxels around it, the
    result is that of the function on the whole image, up to the numbering.

    Parameters
    ----------
    image : path, URL, zarr.Array, dask.array.Array, numpy.ndarray or xarray.DataArray
        An OME-Zarr or plain zarr store, or an array, ``(z, y, x)`` or any 2 to 5 axes. Of an image
        whose metadata name a time axis each time point is segmented by itself.
    fn : callable
        ``fn(tile) -> labels``: integers of the tile's shape, 0 for background. Called exactly once
        per tile; but where it runs out of memory (MemoryError, or what torch, cupy, TensorFlow and
        others raise), it is called on the halves of the tile, with the same overlap, again and
        again until it does not, and their labels are joined like those of tiles. If it has a
        method ``prepare(sample)``, that is called once with a sample of the image and gives the
        function to use on every tile.
    tile_shape : tuple of int, "auto", callable or None
        Core of a tile, in voxels. None: the chunks of a Dask array; for a store its chunks, or a
        multiple of tiny and a part of huge ones. "auto": what fits the memory there is, or what an
        interrupted run of the same kind was begun with. A callable gets ``(shape, dtype)``.
    overlap : int or sequence of int, optional
        Voxels read on each side of a core. None: 16, or as much as the tile allows; none on axes
        with one tile or with tiles one voxel thick.
    channel : int or sequence of int
        Channel of a store. Several, such as ``[0, 2]``: tiles are ``(C, Z, Y, X)``, in that order,
        and their labels ``(Z, Y, X)``.
    level : int
        Pyramid level of a store.
    use_gpu : bool
        The function uses a GPU: one tile at a time on each. Where several are visible, each has a
        worker process of its own for the run; a single one is used by this process. "auto" tiles
        fit the free memory of the fullest of them.
    max_workers : int, optional
        Function calls at a time; one per core by default. With `use_gpu`, GPUs to use; all by
        default. All else uses every core.
    engine : {"auto", "threads", "processes"}
        Where the function is called. "auto": in threads, until the first tiles show that it holds
        the interpreter's lock, as pure Python does; then in worker processes, started for it and
        ended after it. With an active Dask client its workers are used whatever is said here.
    progress : bool or callable
        Show bars, and a summary at the end. A callable is told instead, now and then and from any
        thread: ``progress(step, n_done, n_total)``. It must not raise.
    write_to : path or URL, optional
        Where to write the label image. None: ``labels/<output_component>`` in the image's own
        store; for an array, a temporary store that is removed when the process ends.
    output_component : str
        Name of the label image.
    pyramid_levels, pyramid_downscale : int
        Levels, level 0 included, and the factor between them in y and x. By default 5, but in the
        store of an image with a pyramid as many as it has: OME-NGFF asks for that.
    sequential_labels : bool
        Accepted for clarity: labels are 1..N in any case.
    skip_empty, empty_threshold : bool, float
        Leave out tiles that read no voxel above the threshold, halo included, and of the others
        hand the function the part around their signal. By default the threshold is found in a
        sample of the image, between Otsu's threshold and the background's noise; in doubt it is 0.
        What is learned of an image in a store is kept beside it, in ``<store>.maxima``: the next
        run does not read empty tiles.
    stage_dir : path, optional
        Folder for the stage, shared by all workers; by default beside the label image.
    keep_stage : bool
        Keep the stage after the run.
    stitch : {"auto", "overlap", "touch"}
        "auto": labels of two tiles are one object where both tiles saw the same piece of it; on
        axes without overlap, where they touch. "touch": wherever they touch.
    connectivity : int
        For "touch": how many axes a step between touching voxels may change.
    slice_wise : bool
        Segment slice by slice: tiles are ``(Y, X)``. Within a slice they are joined as ever; then
        objects of neighbouring slices are one where each is the other's best partner.
    link_time : bool
        Link the objects of neighbouring time points in the same way. False: no object is in two.
    link_iou : float
        The least intersection over union of two objects that are linked.
    resume : bool
        Go on from what an interrupted run of the same kind left; False starts over.
    overwrite : bool
        Replace a label image that another run made.

    Returns
    -------
    dask.array.Array
        Labels, lazy: uint32 (uint64 above 4 294 967 295 objects), the image's spatial shape,
        1..N, 0 for background.

    Raises
    ------
    InputError, TargetExistsError, TargetNotWritableError, ClientError
        Before any work.
    TargetInUseError
        If another run is writing there.
    SegmenterError
        If the function fails on a tile; the tiles that are done are kept, and the same call goes
        on from there.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import ndimage
    >>> image = np.zeros((64, 64), "uint8")
    >>> image[10:50, 30:34] = 200
    >>> labels = tile_process(image, lambda tile: ndimage.label(tile > 100)[0],
    ...                       tile_shape=(32, 32), overlap=4, progress=False)
    >>> labels.shape, int(labels.max())
    ((64, 64), 1)
    """
    stored = write_to is not None or kind_of(image) == "path"
    workers = choose_workers(max_workers, engine, use_gpu=use_gpu)
    options = RunOptions(
        tile_shape=tile_shape,
        overlap=overlap,
        channel=channel,
        level=level,
        write_to=write_to if stored else temporary_store(),
        is_temporary=not stored,
        output_component=output_component,
        pyramid_levels=pyramid_levels,
        pyramid_downscale=pyramid_downscale,
        skip_empty=skip_empty,
        empty_threshold=empty_threshold,
        stage_dir=stage_dir,
        stitch=stitch,
        connectivity=connectivity,
        slice_wise=slice_wise,
        link_time=link_time,
        link_iou=link_iou,
        overwrite=overwrite,
        place=workers.place,
    )
    plan = plan_run(image, fn, options)
    workers = kept_here(workers, plan)
    kept = {"keep_stage": keep_stage, "resume": resume}
    run_plan(plan, workers.executor, progress=progress, engine=workers.engine, **kept)
    return lazy_array(plan.target.location, "0")
