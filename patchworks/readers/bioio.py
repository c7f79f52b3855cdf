"""Every other format, through bioio and whichever of its plugins are installed."""

from __future__ import annotations

import math
import re
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from bioio import BioImage
from bioio.plugins import get_plugins
from bioio_base.exceptions import UnsupportedFileFormatError

from patchworks.errors import SourceNotFoundError
from patchworks.geometry.box import Box
from patchworks.readers.scene import Channel, Scene, SceneReader

DIMENSIONS = "TCZYX"
LENGTHS = {
    *("angstrom", "picometer", "nanometer", "micrometer", "millimeter", "centimeter", "decimeter"),
    *("meter", "kilometer", "inch", "foot", "yard", "mile"),
}
"""Units of length that OME and OME-NGFF both know; a pixel is none."""
SECONDS = {
    "nanosecond": 1e-9,
    "microsecond": 1e-6,
    "millisecond": 1e-3,
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86400.0,
}
GENERATED_NAME = re.compile(r"(Image|Channel|XYPos):\d+([:-]\d+)*|Series \d+")
"""What bioio calls scenes and channels that the file has no name for."""
RGB = ("FF0000", "00FF00", "0000FF")
METADATA_ERRORS = (NotImplementedError, ValueError, SyntaxError, LookupError, AttributeError)
"""What plugins raise that have no OME metadata, or fail to derive it."""


class BioioReader(SceneReader):
    """One scene of any file that an installed bioio plugin reads.

    Planes are decoded whole, or what the plugin cuts its Dask chunks to. Plugins do not promise to
    be thread-safe, so the reads of one reader wait for each other. Only full resolution is read.

    Calibration is that of the OME metadata, where the plugin has them: ``physical_pixel_sizes`` of
    bioio has no units. A size of exactly 1 without a unit is what plugins give for an image that
    is not calibrated, and is left out.
    """

    format = "image (bioio)"

    def __init__(self, path: Path, index: int = 0) -> None:
        super().__init__(path, index)
        self._lock = threading.RLock()
        self._image: BioImage | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def close(self) -> None:
        """Forget the opened image; it is opened again when read again."""
        with self._lock:
            self._image = None

    @classmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]:
        return tuple([_given(name) or "" for name in _open(path).scenes])

    def _opened(self) -> BioImage:
        """Return the image at its scene; to be called with the lock held."""
        if self._image is None:
            image = _open(self.path)
            image.set_scene(self.index)
            _check_dimensions(image)
            self._image = image
        return self._image

    @cached_property
    def _extents(self) -> dict[str, int]:
        """Extent per axis as (t, c, z, y, x), samples among the channels, and the samples (s)."""
        with self._lock:
            array = self._opened().xarray_dask_data
        sizes = dict(zip(array.dims, array.shape, strict=True))
        n_samples = sizes.get("S", 1)
        extents = {d.lower(): int(sizes[d]) for d in DIMENSIONS}
        return extents | {"c": extents["c"] * n_samples, "s": n_samples}

    def _describe(self) -> Scene:
        extents = self._extents
        n_samples = extents["s"]
        with self._lock:
            image = self._opened()
            array = image.xarray_dask_data
            pixels = _ome_pixels(image, self.index)
            chunks = {
                str(d).lower(): max(c) for d, c in zip(array.dims, array.data.chunks, strict=True)
            }
            chunks["c"] *= n_samples
            axes = "".join(a for a in "tczyx" if extents[a] > 1 or a in "yx")
            spacing = _spacing(image, pixels)
            return Scene(
                name=_given(image.current_scene) or "",
                axes=axes,
                shapes=(tuple([extents[a] for a in axes]),),
                dtype=np.dtype(array.dtype).newbyteorder("="),
                block=tuple([chunks[a] for a in axes]),
                spacing={a: s for a, s in spacing.items() if a in axes},
                channels=_channels(image, pixels, extents["c"] // n_samples, n_samples),
                files=(self.path,),
            )

    def _read(self, box: Box, level: int) -> np.ndarray:
        if level:
            raise ValueError(f"level {level}; expected 0, the only one that is read")
        scene, n = self.scene, self._extents["s"]
        parts = dict(zip(scene.axes, box.slices, strict=True))
        t, c, z, y, x = [parts.get(a, slice(0, 1)) for a in "tczyx"]
        whole = slice(c.start // n, -(-c.stop // n))
        with self._lock:
            chosen = self._opened().xarray_dask_data.data[t, whole, z, y, x]
            voxels = np.asarray(chosen.compute(scheduler="synchronous"))
        if voxels.ndim > len(DIMENSIONS):  # (t, c, z, y, x, s) to (t, c, s, z, y, x)
            voxels = np.moveaxis(voxels, -1, 2)
            voxels = voxels.reshape(len(voxels), -1, *voxels.shape[3:])
        voxels = voxels[:, c.start - whole.start * n : c.stop - whole.start * n]
        return voxels.reshape(box.shape).astype(scene.dtype, copy=False)


def _open(path: Path) -> BioImage:
    """Open with planes as chunks where the plugin can; its default is the whole stack."""
    try:
        try:
            return BioImage(path, chunk_dims=["Y", "X", "S"])
        except TypeError:
            return BioImage(path)
    except UnsupportedFileFormatError as error:
        if path.name.lower().endswith(tuple(get_plugins(use_cache=True))):
            raise  # there is a plugin for it, which could not read this one
        raise SourceNotFoundError(
            f"{path}: no installed reader knows files that end in {path.suffix!r}; install a "
            f"bioio plugin for them (PNG, JPEG: pip install bioio-imageio), or save it as TIFF"
        ) from error


def _check_dimensions(image: BioImage) -> None:
    """Refuse what bioio would silently cut down to its first index."""
    stored = image.reader.xarray_dask_data
    sizes = dict(zip(stored.dims, stored.shape, strict=True))
    is_stitched = image.xarray_dask_data.shape[-3:] != stored.shape[-3:]
    lost = {
        str(d): n
        for d, n in sizes.items()
        if n > 1 and d not in (*DIMENSIONS, "S") and not (d == "M" and is_stitched)
    }
    if lost:
        raise ValueError(f"axes {lost} besides {', '.join(DIMENSIONS)} and S; expected none")
    if sizes.get("S", 1) > 1 and type(image.reader).__module__.startswith("bioio_czi"):
        # measured with bioio-czi 3.0.1: read lazily, all three samples are the last one
        raise ValueError("a colour CZI, which bioio-czi reads wrongly; install pylibCZIrw")


def _ome_pixels(image: BioImage, index: int) -> Any:
    """Return the OME description of the scene, or None if the plugin has none."""
    try:
        images = image.ome_metadata.images
        return images[index].pixels if index < len(images) else None
    except METADATA_ERRORS:
        return None


def _spacing(image: BioImage, pixels: Any) -> dict[str, tuple[float, str | None]]:
    """Return size and unit where the file has them."""
    spacing: dict[str, tuple[float, str | None]] = {}
    for axis in "zyx":
        size, unit = _size_by_bioio(image, axis) if pixels is None else _size_by_ome(pixels, axis)
        is_placeholder = size == 1 and unit is None
        if size is not None and math.isfinite(size) and size > 0 and not is_placeholder:
            spacing[axis] = (size, unit)
    seconds = _seconds(image, pixels)
    if seconds is not None and math.isfinite(seconds) and seconds > 0:
        spacing["t"] = (seconds, "second")
    return spacing


def _size_by_ome(pixels: Any, axis: str) -> tuple[float | None, str | None]:
    """Return size and unit; OME's unit is the micrometre where the file leaves it out."""
    name = f"physical_size_{axis}"
    size, unit = getattr(pixels, name), getattr(pixels, f"{name}_unit").name.lower()
    if size is None or unit not in LENGTHS:
        return None, None
    if size == 1 and f"{name}_unit" not in pixels.model_fields_set:
        return None, None
    return float(size), unit


def _size_by_bioio(image: BioImage, axis: str) -> tuple[float | None, str | None]:
    """Return what bioio has without OME metadata, which is mostly a size without a unit."""
    size = getattr(image.physical_pixel_sizes, axis.upper())
    try:
        unit = getattr(image.dimension_properties, axis.upper()).unit
    except METADATA_ERRORS:
        unit = None
    name = str(unit).lower()
    return None if size is None else float(size), name if name in LENGTHS else None


def _seconds(image: BioImage, pixels: Any) -> float | None:
    if pixels is not None and pixels.time_increment is not None:
        factor = SECONDS.get(pixels.time_increment_unit.name.lower())
        return None if factor is None else float(pixels.time_increment) * factor
    try:
        interval = image.time_interval
    except METADATA_ERRORS:
        return None
    return None if interval is None else float(interval.total_seconds())


def _channels(image: BioImage, pixels: Any, n: int, n_samples: int) -> tuple[Channel, ...]:
    """Return names and colours; samples of a colour channel share its name."""
    described = getattr(pixels, "channels", None) or []
    names: list[str | None] = [None] * n
    if len(described) == n:
        names = [_given(channel.name) for channel in described]
    elif image.channel_names is not None and len(image.channel_names) == n:
        names = [_given(str(name)) for name in image.channel_names]
    channels = []
    for i, name in enumerate(names):
        own = None
        if len(described) == n and "color" in described[i].model_fields_set:
            own = "".join(f"{part:02X}" for part in described[i].color.as_rgb_tuple(alpha=False))
        colors = (*RGB, *[None] * n_samples)[:n_samples] if n_samples > 2 else [own] * n_samples
        channels += [Channel(name, color) for color in colors]
    return tuple(channels) if any(c != Channel() for c in channels) else ()


def _given(name: str | None) -> str | None:
    """Return a name that the file itself has, or None."""
    return None if not name or GENERATED_NAME.fullmatch(name) else name
