"""TIFF, through tifffile: plain, ImageJ, OME, BigTIFF, pyramids, slides, in any compression."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchworks.errors import InputError
from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.readers.mapped_files import MappedFiles
from patchworks.readers.ome_xml import OmeImage
from patchworks.readers.scene import ORDER, Scene, SceneReader
from patchworks.readers.tiff_file import check_file, parsed
from patchworks.readers.tiff_metadata import calibration_in, channels_in
from patchworks.readers.tiff_pages import Level, level_of
from patchworks.readers.tiff_structure import check_extent

SAMPLES = "s"
READ_ORDER = "tcszyx"
"""The canonical order, with a pixel's samples behind its channel: the two become one axis."""
UNNAMED = "qi"
"""What tifffile calls a stack of pages that does not say what it is."""


@dataclass(frozen=True)
class Image:
    """One image of a file: what it says, and where its voxels lie."""

    scene: Scene
    names: str
    """Name of each of the file's own axes; samples are ``"s"`` if there are channels too."""
    levels: tuple[Level, ...]


class TiffReader(SceneReader):
    """One image (series) of a TIFF file.

    The pixels of a stack stored as they are, are taken from the file mapped into memory. All others
    are decoded strip by strip or tile by tile, only those that a box needs, in the calling thread:
    the decoders release the interpreter lock. Samples of a pixel are channels. An unnamed axis
    of pages is z. Planes and tiles that were never written are 0.

    Resolution tags are a calibration only with ImageJ's unit. In others they are mostly a screen's
    or printer's 72 or 96 dots per inch.

    Parameters
    ----------
    path : Path
        The file.
    index : int
        Which of its images.
    axes : str, optional
        Names of the file's own axes, in their order, those of extent 1 left out, such as
        ``"tzyx"``.
    """

    format = "TIFF"

    def __init__(self, path: Path, index: int = 0, axes: str | None = None) -> None:
        super().__init__(path, index)
        self.axes = axes
        self._maps = MappedFiles()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "axes": self.axes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def identity(self) -> str:
        """Return a digest that changes when one of the image's files is written anew."""
        return digest(super().identity(), self._image.names)

    def close(self) -> None:
        """Close the file; it is opened again when read again."""
        self._maps.close()

    @classmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]:
        with parsed(path) as file:
            return tuple(
                [
                    series.name if image is None else image.name
                    for series, image in zip(file.tif.series, file.images, strict=True)
                ]
            )

    @functools.cached_property
    def _image(self) -> Image:
        with parsed(self.path) as file:
            series, ome = file.tif.series[self.index], file.images[self.index]
            check_extent(series)
            kept, names = own_axes(series, self.axes, self.path)
            levels = _levels(series, kept)
            _check_planes(levels[0], ome, self.path)
            scene = _scene(file.tif, series, levels, names, ome, self.path)
            if self.axes is None:
                _check_described(scene, series, ome, self.path)
        for other in levels[0].files:
            if other.resolve() != self.path.resolve():
                check_file(other)
        return Image(scene, names, levels)

    def _describe(self) -> Scene:
        return self._image.scene

    def _read(self, box: Box, level: int) -> np.ndarray:
        image = self._image
        stored = image.levels[level]
        spans = dict(zip(image.scene.axes, box.slices, strict=True))
        first = 0
        if SAMPLES in image.names:
            n = stored.shape[image.names.index(SAMPLES)]
            spans["c"], spans[SAMPLES], first = _channels_and_samples(spans["c"], n)
        voxels = stored.read(tuple([spans[axis] for axis in image.names]), self._maps)
        order = sorted(range(voxels.ndim), key=lambda i: READ_ORDER.index(image.names[i]))
        voxels = voxels.transpose(order)
        if SAMPLES in image.names:
            at = image.scene.axes.index("c")
            merged = voxels.reshape(*voxels.shape[:at], -1, *voxels.shape[at + 2 :])
            voxels = merged[(slice(None),) * at + (slice(first, first + box.shape[at]),)]
        return voxels.astype(image.scene.dtype, copy=False)


def _channels_and_samples(wanted: slice, n: int) -> tuple[slice, slice, int]:
    """Return which channels of `n` samples to read, which samples, and how many to skip then."""
    channels = slice(wanted.start // n, -(-wanted.stop // n))
    first = wanted.start - channels.start * n
    if channels.stop - channels.start == 1:
        return channels, slice(first, first + wanted.stop - wanted.start), 0
    return channels, slice(0, n), first


def own_axes(series: Any, given: str | None, path: Path) -> tuple[tuple[int, ...], str]:
    """Return which axes of a tifffile series are kept, and what they are called.

    Raises
    ------
    InputError
        If an axis is none of ours, or those given do not fit.
    """
    letters, extents = series.get_axes(False).lower(), series.get_shape(False)
    kept = tuple([i for i, (a, n) in enumerate(zip(letters, extents, strict=True)) if n > 1])
    kept = tuple(sorted({*kept, *[letters.rindex(a) for a in "yx" if a in letters]}))
    found = "".join([letters[i] for i in kept])
    where = f"{path}: image of shape {tuple([extents[i] for i in kept])} with axes {found.upper()}"
    if given is None:
        names = _named(found)
        if not _fits(names):
            raise InputError(
                f"{where}; expected T, C, Z, Y, X and S, each once; say what they are with "
                f"axes=, such as axes={'tczyx'[-len(found) :]!r}"
            )
        return kept, names
    names = given.lower() if isinstance(given, str) else ""
    if len(names) != len(found) or not _fits(names):
        raise InputError(
            f"{where}: axes={given!r}; expected each of its {len(found)} axes once, out of "
            f"{ORDER!r}, y and x among them"
        )
    return kept, _named(names)


def _named(found: str) -> str:
    """Return our names for tifffile's: samples are channels, unnamed pages are z."""
    unknown = [axis for axis in found if axis not in READ_ORDER]
    if len(unknown) == 1 and unknown[0] in UNNAMED and "z" not in found:
        found = found.replace(unknown[0], "z")
    return found if "c" in found else found.replace(SAMPLES, "c")


def _fits(names: str) -> bool:
    once = len(set(names)) == len(names)
    return once and set(names) <= set(READ_ORDER) and {"y", "x"} <= set(names)


def _levels(series: Any, kept: Sequence[int]) -> tuple[Level, ...]:
    """Return the levels of the file's pyramid that have the axes of the first."""
    sizes: dict[Path, int] = {}
    levels: list[Level] = []
    for other in series.levels:
        shape = other.get_shape(False)
        same = other.get_axes(False) == series.get_axes(False) and other.dtype == series.dtype
        if same and all(n == 1 for i, n in enumerate(shape) if i not in kept):
            levels.append(level_of(other, kept, sizes))
    return tuple(levels)


def _scene(
    tif: Any,
    series: Any,
    levels: tuple[Level, ...],
    names: str,
    ome: OmeImage | None,
    path: Path,
) -> Scene:
    axes = "".join([a for a in ORDER if a in names])
    shapes = tuple([_in_order(level.shape, names, axes) for level in levels])
    extents = dict(zip(axes, shapes[0], strict=True))
    channels = channels_in(tif, series, extents.get("c", 1), ome)
    spacing = {a: s for a, s in calibration_in(tif, series, ome).items() if a in axes}
    dtype = np.dtype(series.dtype).newbyteorder("=")
    return Scene(
        name=series.name if ome is None else ome.name,
        axes=axes,
        shapes=shapes,
        dtype=np.dtype(np.uint8) if dtype == np.bool_ else dtype,
        block=_in_order(levels[0].block, names, axes),
        spacing=spacing,
        channels=channels,
        files=tuple(dict.fromkeys([path, *[f for f in levels[0].files if not f.samefile(path)]])),
    )


def _in_order(held: Sequence[int], names: str, axes: str) -> tuple[int, ...]:
    """Return extents on the file's own axes in canonical order, samples counted with channels."""
    extents = dict(zip(names, held, strict=True))
    extents["c"] = extents.get("c", 1) * extents.pop(SAMPLES, 1)
    return tuple([extents[axis] for axis in axes])


def _check_planes(level: Level, ome: OmeImage | None, path: Path) -> None:
    """Raise InputError if planes are missing that the file says are there."""
    n = sum(page is not None for page in level.pages)
    if n == len(level.pages) or (ome is not None and n >= ome.n_planes):
        return
    names = () if ome is None else ome.file_names
    missing = [name for name in names if not (path.parent / name).exists()]
    expected = len(level.pages) if ome is None else ome.n_planes
    raise InputError(
        f"{path}: {n} of {expected} planes found"
        + (f", files missing: {missing}; put them beside it" if missing else "; it was cut off")
    )


def _check_described(scene: Scene, series: Any, ome: OmeImage | None, path: Path) -> None:
    """Raise InputError where tifffile found a plain stack in place of what OME-XML describes.

    It does so if none of the planes is in a file of a name that the description has.
    """
    if ome is None or series.kind == "ome" or not ome.sizes:
        return
    found = dict(zip(scene.axes, scene.shape, strict=True))
    if all(found.get(axis, 1) == n for axis, n in ome.sizes.items()):
        return
    missing = [name for name in ome.file_names if not (path.parent / name).exists()]
    raise InputError(
        f"{path}: describes an image of t, c, z, y, x = {[ome.sizes[a] for a in ORDER]}, but is "
        f"a plain stack of shape {scene.shape}"
        + (f"; files missing: {missing[:8]}: was it renamed?" if missing else "")
        + f" To convert the stack, say what it is with axes=, such as axes={scene.axes!r}"
    )
