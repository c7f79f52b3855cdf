"""Microscope files → calibrated OME-Zarr images with a pyramid.

Reads TIFF (plain, ImageJ, OME) and NumPy arrays. Nothing is made up: a pixel size the file does not
have is left out, with a warning.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from patchworks.errors import InputError, SourceNotFoundError, TargetExistsError
from patchworks.execution.progress import with_progress
from patchworks.fingerprint import digest
from patchworks.geometry.pyramid import PyramidPlan, plan_image_pyramid
from patchworks.io.location import Location, open_array, open_group
from patchworks.io.ngff import (
    Axis,
    Calibration,
    default_axis_names,
    image_attributes,
    read_multiscale,
)
from patchworks.io.source import NOT_ZARR
from patchworks.steps.pyramid import pool_image

logger = logging.getLogger(__name__)

ORDER = "tczyx"
SOURCE_KEY = "patchworks-source"
OME_UNITS = {"µm": "micrometer", "nm": "nanometer", "mm": "millimeter", "Å": "angstrom"}
IMAGEJ_UNITS = {"micron": "micrometer", "um": "micrometer", "µm": "micrometer", "nm": "nanometer"}


@dataclass(frozen=True)
class Voxels:
    """An image as a file holds it: lazily sliced, with what is known of its axes."""

    array: Any
    axes: str
    spacing: Mapping[str, tuple[float, str]]
    """Voxel size and unit per axis, for the axes where the file says it."""
    identity: str


def to_ome_zarr(
    source: str | os.PathLike[str] | np.ndarray,
    target: str | os.PathLike[str],
    *,
    axes: str | None = None,
    pixel_size: Mapping[str, float] | None = None,
    n_levels: int | None = None,
    downscale: int = 2,
    chunks: Sequence[int] | None = None,
    scene: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Convert an image to OME-Zarr (OME-NGFF 0.5).

    Parameters
    ----------
    source : path or numpy.ndarray
        A TIFF file, or an array.
    target : path
        The store to make. It appears under its name only when it is whole. One that was made from
        this very file is left as it is.
    axes : str, optional
        Axes of the source, such as ``"czyx"``; by default as the file says.
    pixel_size : mapping of str to float, optional
        Micrometers per axis, such as ``{"y": 0.2, "x": 0.2}``; by default as the file says.
    n_levels : int, optional
        Levels; by default as many as bring y and x under 1024.
    downscale : int
        Factor in y and x from one level to the next; each level is the mean of the one above.
    chunks : sequence of int, optional
        Chunk shape.
    scene : int
        Which image of the file.
    overwrite : bool
        Replace an OME-Zarr image that is there.
    progress : bool
        Show a bar.

    Returns
    -------
    pathlib.Path
        The target.

    Raises
    ------
    SourceNotFoundError, InputError
        If the source cannot be read, or an argument does not fit it.
    TargetExistsError
        If something else is at the target.
    """
    place = Location.parse(target)
    voxels = _open(source, axes, scene)
    if _is_made_from(place, voxels.identity):
        logger.info("%s was made from this file already", place)
        return place.path
    if place.exists() and not (overwrite and _is_image(place)):
        raise TargetExistsError(
            f"{place}: something is there already; give another target, or overwrite=True to "
            f"replace an OME-Zarr image"
        )
    calibration = _calibration(voxels, pixel_size or {})
    pyramid = plan_image_pyramid(
        voxels.array.shape,
        chunks=None if chunks is None else tuple(chunks),
        n_levels=n_levels,
        downscale=downscale,
    )
    building = Location(str(place.path.with_name(f".{place.path.name}.partial")))
    shutil.rmtree(building.path, ignore_errors=True)
    try:
        attributes = image_attributes(place.name, calibration, pyramid)
        _write(voxels, building, pyramid, progress=progress)
        group = open_group(building, mode="r+")
        group.attrs.put({**attributes, SOURCE_KEY: voxels.identity})
        shutil.rmtree(place.path, ignore_errors=True)
        building.path.rename(place.path)
    finally:
        shutil.rmtree(building.path, ignore_errors=True)
    return place.path


def _is_made_from(place: Location, identity: str) -> bool:
    with suppress(*NOT_ZARR):
        return open_group(place).attrs.get(SOURCE_KEY) == identity
    return False


def _is_image(place: Location) -> bool:
    with suppress(*NOT_ZARR):
        return read_multiscale(dict(open_group(place).attrs), str(place)) is not None
    return False


def _open(source: Any, axes: str | None, scene: int) -> Voxels:
    """Return the voxels of a source with their axes named, in canonical order."""
    if isinstance(source, np.ndarray):
        voxels = Voxels(source, "".join(default_axis_names(source.ndim)), {}, digest(source))
    else:
        voxels = _open_tiff(Path(os.fspath(source)).expanduser(), scene)
    named = voxels.axes if axes is None else axes.lower()
    if len(named) != voxels.array.ndim or set(named) - set(ORDER) or len(set(named)) != len(named):
        raise InputError(
            f"{source if not isinstance(source, np.ndarray) else 'array'}: axes {named!r} for "
            f"shape {voxels.array.shape}; name each axis once, out of {ORDER!r}, with axes="
        )
    if not {"y", "x"} <= set(named) or sorted(named, key=ORDER.index) != list(named):
        raise InputError(f"axes {named!r}: expected y and x, in the order {ORDER!r}")
    return Voxels(voxels.array, named, voxels.spacing, voxels.identity)


def _open_tiff(path: Path, scene: int) -> Voxels:
    if not path.exists():
        raise SourceNotFoundError(f"{path}: there is nothing at this path")
    try:
        file = tifffile.TiffFile(path)
    except (tifffile.TiffFileError, OSError) as error:
        raise SourceNotFoundError(
            f"{path}: cannot be read as TIFF ({error}); other formats need conversion to OME-Zarr "
            f"or TIFF first"
        ) from error
    if not 0 <= scene < len(file.series):
        raise InputError(f"scene={scene}: {path} has {len(file.series)} image(s)")
    series = file.series[scene]
    kept = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX"]
    names = "".join(a for a, _ in kept).lower()
    if len(names) == 3 and names[0] in "qi":
        names = f"z{names[1:]}"  # a stack of pages that does not say what it is
    array = series.asarray().reshape([n for _, n in kept])
    status = path.stat()
    identity = digest("tiff", path.name, status.st_size, status.st_mtime_ns, scene)
    return Voxels(array, names.replace("s", "c"), _tiff_spacing(file, scene), identity)


def _tiff_spacing(file: tifffile.TiffFile, scene: int) -> dict[str, tuple[float, str]]:
    """Return the voxel size that OME or ImageJ metadata give, per axis."""
    if file.ome_metadata:
        return _ome_spacing(tifffile.xml2dict(file.ome_metadata), scene)
    return _imagej_spacing(file, dict(file.imagej_metadata or {}))


def _ome_spacing(described: Any, scene: int) -> dict[str, tuple[float, str]]:
    images = described["OME"]["Image"]
    pixels = (images[scene] if isinstance(images, list) else images)["Pixels"]
    found = {}
    for axis in "zyx":
        size = pixels.get(f"PhysicalSize{axis.upper()}")
        unit = pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm")
        if size and unit in OME_UNITS:
            found[axis] = (float(size), OME_UNITS[unit])
    return found


def _imagej_spacing(
    file: tifffile.TiffFile, described: dict[str, Any]
) -> dict[str, tuple[float, str]]:
    unit = IMAGEJ_UNITS.get(str(described.get("unit", "")).replace("\\u00B5", "µ"))
    if unit is None:
        return {}
    found = {"z": (float(described["spacing"]), unit)} if "spacing" in described else {}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        numerator, denominator = file.pages.first.tags[tag].value
        if numerator:
            found[axis] = (denominator / numerator, unit)
    return found


def _calibration(voxels: Voxels, pixel_size: Mapping[str, float]) -> Calibration:
    """Return axes and scale: what was given, else what the file says, else nothing made up."""
    spacing = dict(voxels.spacing)
    for axis, size in pixel_size.items():
        if axis not in voxels.axes or not size > 0:
            raise InputError(
                f"pixel_size={dict(pixel_size)!r}: expected micrometers > 0 for axes of "
                f"{voxels.axes!r}"
            )
        spacing[axis] = (float(size), "micrometer")
    missing = [a for a in voxels.axes if a in "zyx" and a not in spacing]
    if missing:
        logger.warning(
            "no pixel size for %s in the file; give pixel_size= if you know it", ", ".join(missing)
        )
    kinds = {"t": "time", "c": "channel"}
    axes = [Axis(a, kinds.get(a, "space"), spacing.get(a, (1, None))[1]) for a in voxels.axes]
    scale = [spacing.get(a, (1.0, ""))[0] for a in voxels.axes]
    return Calibration(tuple(axes), tuple(scale), (0.0,) * len(axes))


def _write(voxels: Voxels, building: Location, pyramid: PyramidPlan, *, progress: bool) -> None:
    """Write all levels, region by region, each level from the one above."""
    group = zarr.open_group(building.store(read_only=False), mode="w", zarr_format=3)
    arrays = []
    for level, (shape, chunks) in enumerate(zip(pyramid.shapes, pyramid.chunks, strict=True)):
        group.create_array(
            str(level),
            shape=shape,
            chunks=chunks,
            dtype=voxels.array.dtype,
            dimension_names=list(voxels.axes),
        )
        arrays.append(open_array(building, str(level), mode="r+"))
    for level, array in enumerate(arrays):
        regions = pyramid.regions(level)
        bar = with_progress(
            regions,
            total=len(regions),
            what=f"convert level {level}",
            unit="region",
            shown=progress,
            count=lambda _: 1,
        )
        for tile in bar:
            if level == 0:
                array[tile.core.slices] = voxels.array[tile.core.slices]
            else:
                above = arrays[level - 1][pyramid.voxels_of(level, tile.core).slices]
                array[tile.core.slices] = pool_image(np.asarray(above), pyramid.factor)
