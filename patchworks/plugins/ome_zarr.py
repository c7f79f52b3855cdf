"""Microscope files and arrays → calibrated OME-Zarr images and label images with a pyramid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchworks.conversion.collection import plan_images
from patchworks.conversion.plan import ConversionOptions, PathLike
from patchworks.conversion.pyramid import extend_pyramid, plan_addition
from patchworks.conversion.run import run_images
from patchworks.conversion.write_labels import write_label_image
from patchworks.io.location import Location
from patchworks.run import whole_number


def to_ome_zarr(
    source: Any,
    target: PathLike,
    *,
    axes: str | None = None,
    pixel_size: Mapping[str, float] | None = None,
    n_levels: int | None = None,
    downscale: int = 2,
    chunks: Sequence[int] | None = None,
    shard: bool | None = None,
    channel_names: Sequence[str] | None = None,
    scene: int | str = 0,
    ngff_version: str = "0.5",
    reuse_pyramid: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    codec: str = "blosc",
    reader: str | None = None,
    max_workers: int | None = None,
) -> Path | str:
    """Convert an image to OME-Zarr, in memory that does not depend on the image's size.

    The image appears under its name only when it is whole. Interrupted, the same call goes on
    where it stopped; one that was made from this very source with these options is left as it is.
    Works in threads, or on the workers of an active Dask client.

    Parameters
    ----------
    source : path, URL, glob pattern, numpy.ndarray, dask.array.Array or zarr.Array
        A file: TIFF (plain, ImageJ, OME, slides), Imaris, CZI, LIF, ND2, or whatever an installed
        bioio plugin reads; a folder or pattern of TIFF files (``"scan_*.tif"``); a zarr or OME-Zarr
        store, local or a URL; an array.
    target : path or URL
        The store to make.
    axes : str, optional
        Axes of the source in its own order, such as ``"czyx"``, where it does not say them: an
        array without names for its axes must have 2, 3 or 5 otherwise, ``"yx"``, ``"zyx"`` or
        ``"tczyx"``. They are written in the order t, c, z, y, x.
    pixel_size : mapping of str to float, optional
        Micrometers per axis (seconds for t), such as ``{"z": 1.0, "y": 0.2, "x": 0.2}``, in place
        of what the source says. What neither says stays unknown: nothing is made up.
    n_levels : int, optional
        Levels of the pyramid; by default as many as bring y and x under 1024 voxels.
    downscale : int
        Factor in y and x from one level to the next; each voxel is the mean of its cell.
    chunks : sequence of int, optional
        Chunk shape; by default 16x256x256 for stacks and 512x512 for planes, fitted to the blocks
        of the file, so that none of them is decoded twice.
    shard : bool, optional
        Whether several chunks share a file (shards of up to 128 MiB); by default if there would be
        more than 100 000 files otherwise.
    channel_names : sequence of str, optional
        Names, one per channel, in place of those of the source.
    scene : int or str
        Which image of the source, by index or name; ``"all"`` makes a collection
        (`bioformats2raw.layout`) of them all, at ``target/0``, ``target/1``, ...
    ngff_version : {"0.5", "0.4"}
        Version of the specification; 0.5 is zarr 3, 0.4 is zarr 2.
    reuse_pyramid : bool
        Take over the levels that the source holds, where it has more than one.
    overwrite : bool
        Replace an OME-Zarr image that is there, its labels included.
    progress : bool
        Show a bar with MB/s.
    codec : {"blosc", "zstd"}
        Compression of chunks.
    reader : str, optional
        Reader to use, such as ``"bioio"``, in place of the one that is chosen by the file.
    max_workers : int, optional
        Threads; by default one per core, fewer if memory is short.

    Returns
    -------
    pathlib.Path or str
        The target; a string if it is a URL.

    Raises
    ------
    SourceNotFoundError, MissingExtraError, InputError
        If the source cannot be read, or an argument does not fit it; nothing is written.
    TargetExistsError, TargetNotWritableError
        If something else is at the target, or comes there meanwhile, or it cannot be written.
    TargetInUseError
        If another run is writing there.
    ImageReadError
        If a part of the source cannot be decoded, or the source changed while it was read.

    Examples
    --------
    >>> to_ome_zarr("scan.czi", "scan.ome.zarr", scene="ScanRegion1")  # doctest: +SKIP
    """
    if max_workers is not None:
        max_workers = whole_number("max_workers", max_workers, 1, 2**16)
    options = ConversionOptions(
        axes=axes,
        pixel_size=pixel_size,
        n_levels=n_levels,
        downscale=downscale,
        chunks=chunks,
        shard=shard,
        channel_names=channel_names,
        scene=scene,
        ngff_version=ngff_version,
        reuse_pyramid=reuse_pyramid,
        codec=codec,
        reader=reader,
        overwrite=overwrite,
    )
    run_images(plan_images(source, target, options), max_workers=max_workers, progress=progress)
    return _place(target)


def add_pyramid(
    store: PathLike,
    *,
    base: str = "0",
    axes: str | None = None,
    n_levels: int | None = None,
    downscale: int = 2,
    pixel_size: Mapping[str, float] | None = None,
    max_workers: int | None = None,
    progress: bool = True,
) -> Path | str:
    """Add a pyramid, and the metadata that make it an OME-Zarr image, to an array in a store.

    Nothing that is there is changed but the group's own metadata, written last: until then the new
    levels are arrays that nothing refers to.

    Parameters
    ----------
    store : path or URL
        A zarr group that holds the array, with or without OME-NGFF metadata.
    base : str
        Path of the array in the group; it becomes level 0.
    axes : str, optional
        Its axes, in its own order, which must be that of t, c, z, y, x; by default as the metadata
        or the array's dimension names say, else ``"yx"``, ``"zyx"`` or ``"tczyx"`` for 2, 3 or 5.
    n_levels : int, optional
        Levels, the base included; by default as many as bring y and x under 1024 voxels.
    downscale : int
        Factor in y and x; images by the mean, labels (`image-label` metadata) by the most frequent.
    pixel_size : mapping of str to float, optional
        Micrometers per axis, in place of what the metadata say.
    max_workers : int, optional
        Threads; one per core by default.
    progress : bool
        Show a bar.

    Returns
    -------
    pathlib.Path or str
        The store.

    Raises
    ------
    SourceNotFoundError, InputError
        If there is no such array, or an argument does not fit it.
    TargetExistsError
        If the image has a pyramid already, or something else has a level's name.
    TargetInUseError
        If another run is writing there.
    """
    if max_workers is not None:
        max_workers = whole_number("max_workers", max_workers, 1, 2**16)
    plan = plan_addition(
        Location.parse(store, "store"),
        base=base,
        axes=axes,
        n_levels=n_levels,
        downscale=downscale,
        pixel_size=pixel_size,
    )
    extend_pyramid(plan, max_workers=max_workers, progress=progress)
    return _place(store)


def write_labels(
    store: PathLike,
    labels: Any,
    *,
    name: str = "labels",
    n_levels: int | None = None,
    overwrite: bool = False,
    max_workers: int | None = None,
    progress: bool = True,
) -> Path | str:
    """Write labels that exist already into the store of their image, as a label image.

    Parameters
    ----------
    store : path or URL
        The OME-Zarr image.
    labels : path, URL, numpy.ndarray, dask.array.Array or zarr.Array
        Integers of the image's spatial shape in the order of its axes, 0 for background; a file is
        read as `to_ome_zarr` reads it, in the order t, z, y, x.
    name : str
        The label image becomes ``labels/<name>`` and is listed there.
    n_levels : int, optional
        Levels of its pyramid, each voxel the most frequent label of its cell; by default as many
        as the image has, 5 if it has no pyramid.
    overwrite : bool
        Replace a label image of this name.
    max_workers : int, optional
        Threads; one per core by default.
    progress : bool
        Show a bar.

    Returns
    -------
    pathlib.Path or str
        The label image.

    Raises
    ------
    SourceNotFoundError, InputError
        If there is no image, or the labels are no integers, negative, or of another shape.
    TargetExistsError
        If another label image of this name is there.
    TargetInUseError
        If another run is writing there.
    ImageReadError
        If the labels cannot be read, or changed while they were.
    """
    place = write_label_image(
        Location.parse(store, "store"),
        labels,
        name=name,
        n_levels=n_levels,
        overwrite=overwrite,
        max_workers=max_workers,
        progress=progress,
    )
    return _place(place.url)


def _place(target: PathLike) -> Path | str:
    location = Location.parse(os.fspath(target))
    return location.path if location.is_local else location.url
