"""Zeiss CZI, through Zeiss's own library pylibCZIrw."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from pylibCZIrw import czi

from patchworks.geometry.box import Box
from patchworks.readers.czi_metadata import channels_in, scene_names_in, spacing_in
from patchworks.readers.scene import Scene, SceneReader

DTYPES = {
    "Gray8": "uint8",
    "Gray16": "uint16",
    "Gray32Float": "float32",
    "Bgr24": "uint8",
    "Bgr48": "uint16",
    "Bgr96Float": "float32",
}
"""Type of the numbers in each of the pixel types that the library decodes."""

Tile = tuple[int, int, int, int]
"""x, y, width and height of a subblock, in pixels of the file's own plane."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one scene's subblocks lie.

    Parameters
    ----------
    place : tuple of (str, int)
        What sets the scene apart: its index on S and on the axes that are none of x, y, z, c, t.
    first, size : dict of str to int
        First index and extent on ``T``, ``C`` and ``Z``, which need not start at 0.
    tiles : frozenset of Tile
        Outlines of the subblocks, of all planes together.
    pixel_types : tuple of str
        One per channel, in the order of the indices on ``C``.
    """

    place: tuple[tuple[str, int], ...]
    first: dict[str, int]
    size: dict[str, int]
    tiles: frozenset[Tile]
    pixel_types: tuple[str, ...]

    @property
    def corner(self) -> tuple[int, int]:
        """Position (y, x) of the bounding rectangle; may be negative."""
        return min(y for _, y, _, _ in self.tiles), min(x for x, _, _, _ in self.tiles)

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the bounding rectangle."""
        top, left = self.corner
        bottom = max(y + height for _, y, _, height in self.tiles)
        return bottom - top, max(x + width for x, _, width, _ in self.tiles) - left

    @property
    def n_samples(self) -> int:
        """Numbers per pixel: 3 for colour images, else 1."""
        return 3 if self.pixel_types[0].startswith("Bgr") else 1

    @property
    def dtype(self) -> np.dtype:
        """The smallest type that holds all channels."""
        unknown = sorted(set(self.pixel_types) - set(DTYPES))
        if unknown:
            raise ValueError(f"pixel type {unknown}; expected one of {sorted(DTYPES)}")
        if len({p.startswith("Bgr") for p in self.pixel_types}) > 1:
            raise ValueError(f"grey and colour channels in one image: {self.pixel_types}")
        return np.result_type(*[np.dtype(DTYPES[p]) for p in self.pixel_types])

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Extents as (t, c, z, y, x)."""
        n_channels = self.size["C"] * self.n_samples
        return (self.size["T"], n_channels, self.size["Z"], *self.extent)

    @property
    def block(self) -> tuple[int, int, int, int, int]:
        """What is decoded at once, as (t, c, z, y, x): subblocks are, and all samples of a pixel.

        On a regular mosaic the step of its grid; otherwise the largest tile.
        """
        top, left = self.corner
        rows = {(y - top, height) for _, y, _, height in self.tiles}
        columns = {(x - left, width) for x, _, width, _ in self.tiles}
        return (1, self.n_samples, 1, _step(rows), _step(columns))


class CziReader(SceneReader):
    """One scene of a CZI file, its mosaic composed from the tiles at full resolution.

    The image is the bounding rectangle of the scene's tiles; pixels that no tile covers are 0, and
    so are planes that were never acquired. Where tiles overlap, the one acquired last is seen, as
    Zeiss's library has it. Illuminations, phases, rotations and views (axes I, H, R, V, B) are
    scenes of their own. Colour pixels become three channels in the order red, green, blue. The
    file's own pyramid is not used.

    Every thread reads through a handle of its own: pylibCZIrw releases the interpreter lock while
    it decodes, but the reads of one handle wait for each other.
    """

    format = "CZI"

    def __init__(self, path: Path, index: int = 0) -> None:
        super().__init__(path, index)
        self._opened = ExitStack()
        self._idle: list[Any] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def close(self) -> None:
        """Close the file; it is opened again when read again."""
        self._idle.clear()
        self._opened.close()

    @contextmanager
    def _document(self) -> Iterator[Any]:
        """Lend a handle to the calling thread; appending to and popping off a list are atomic."""
        try:
            document = self._idle.pop()
        except IndexError:
            document = self._opened.enter_context(czi.open_czi(str(self.path)))
        try:
            yield document
        finally:
            self._idle.append(document)

    @functools.cached_property
    def _layouts(self) -> tuple[Layout, ...]:
        return _described(self.path)[0]

    @classmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]:
        return _names(*_described(path))

    def _describe(self) -> Scene:
        found, root = _described(self.path)
        layout = found[self.index]
        extents = dict(zip("tczyx", layout.shape, strict=True))
        block = dict(zip("tczyx", layout.block, strict=True))
        axes = "".join(axis for axis, n in extents.items() if n > 1 or axis in "yx")
        spacing = {a: s for a, s in spacing_in(root, extents["t"]).items() if a in axes}
        # The file counts pixels from anywhere: what they tell is where scenes lie to each other.
        home = [min(one.corner[i] for one in found) for i in (0, 1)]
        origin = {
            axis: (start - first) * spacing[axis][0]
            for axis, start, first in zip("yx", layout.corner, home, strict=True)
            if axis in spacing and start != first
        }
        return Scene(
            name=_names(found, root)[self.index],
            axes=axes,
            shapes=(tuple([extents[a] for a in axes]),),
            dtype=layout.dtype,
            block=tuple([block[a] for a in axes]),
            spacing=spacing,
            origin=origin,
            channels=channels_in(
                root, layout.first["C"], layout.size["C"], layout.n_samples, layout.dtype
            ),
            files=(self.path,),
        )

    def _read(self, box: Box, level: int) -> np.ndarray:
        if level:
            raise ValueError(f"level {level}; expected 0, the only one that is read")
        scene, layout = self.scene, self._layouts[self.index]
        parts = dict(zip(scene.axes, zip(box.start, box.stop, strict=True), strict=True))
        (t0, t1), (c0, c1), (z0, z1) = [parts.get(axis, (0, 1)) for axis in "tcz"]
        (y0, y1), (x0, x1) = parts["y"], parts["x"]
        top, left = layout.corner
        roi = (left + x0, top + y0, x1 - x0, y1 - y0)
        n = layout.n_samples
        voxels = np.empty((t1 - t0, c1 - c0, z1 - z0, y1 - y0, x1 - x0), scene.dtype)
        if voxels.size == 0:
            return voxels.reshape(box.shape)
        with self._document() as document:
            for t, c, z in itertools.product(
                range(t0, t1), range(c0 // n, -(-c1 // n)), range(z0, z1)
            ):
                samples = _plane(document, layout, (t, c, z), roi)
                low, high = max(c0, c * n), min(c1, (c + 1) * n)
                voxels[t - t0, low - c0 : high - c0, z - z0] = samples[low - c * n : high - c * n]
        return voxels.reshape(box.shape)


def _described(path: Path) -> tuple[tuple[Layout, ...], ElementTree.Element]:
    """Return the layouts of the scenes and the metadata of a file; it does not stay open."""
    found = path.stat()
    return _described_then(path.absolute(), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # or a file of many scenes would be gone through for each of them
def _described_then(
    path: Path,
    _n_bytes: int,
    _changed: int,
) -> tuple[tuple[Layout, ...], ElementTree.Element]:
    with czi.open_czi(str(path)) as document:
        return layouts(document), ElementTree.fromstring(document.raw_metadata)


def layouts(document: Any) -> tuple[Layout, ...]:
    """Return the layout of every scene, from the directory of the subblocks of full resolution."""
    tiles: dict[tuple[tuple[str, int], ...], set[Tile]] = {}
    indices: dict[tuple[tuple[str, int], ...], dict[str, set[int]]] = {}
    pixel_types: dict[tuple[tuple[tuple[str, int], ...], int], str] = {}

    def note(_: int, subblock: Any) -> bool:
        at = subblock.coordinate.to_dict()
        place = tuple(sorted((d, i) for d, i in at.items() if d not in "TCZ"))
        outline = subblock.logicalRect
        tiles.setdefault(place, set()).add((outline.x, outline.y, outline.w, outline.h))
        on = indices.setdefault(place, {"T": set(), "C": set(), "Z": set()})
        for axis, seen in on.items():
            seen.add(at.get(axis, 0))
        pixel_types.setdefault((place, at.get("C", 0)), subblock.pixelType.name)
        return True

    document.enumerate_subblocks_subset(note, only_layer0=True)
    if not tiles:
        raise ValueError("no image in it; expected at least one subblock of full resolution")
    found = []
    for place in sorted(tiles):
        first = {axis: min(seen) for axis, seen in indices[place].items()}
        size = {axis: max(seen) + 1 - first[axis] for axis, seen in indices[place].items()}
        types = tuple(t for (p, _), t in sorted(pixel_types.items()) if p == place)
        found.append(Layout(place, first, size, frozenset(tiles[place]), types))
    return tuple(found)


def _plane(document: Any, layout: Layout, at: tuple[int, int, int], roi: Tile) -> np.ndarray:
    """Return the samples of a part of the plane (t, c, z), as (sample, y, x)."""
    plane = {d: i for d, i in layout.place if d != "S"}
    for axis, i in zip("TCZ", at, strict=True):
        plane[axis] = layout.first[axis] + i
    pixels: np.ndarray = document.read(roi=roi, plane=plane, scene=dict(layout.place).get("S"))
    return np.moveaxis(pixels, -1, 0)[::-1]  # the library's order is blue, green, red


def _names(found: tuple[Layout, ...], root: ElementTree.Element) -> tuple[str, ...]:
    """Return a name per scene: that of the file, and what else sets it apart."""
    named = scene_names_in(root)
    varying = {
        axis for axis in "RIHVB" if len({dict(layout.place).get(axis) for layout in found}) > 1
    }
    names = []
    for layout in found:
        place = dict(layout.place)
        words = [named.get(place.get("S", 0), "")]
        words += [f"{axis}={i}" for axis, i in layout.place if axis in varying]
        names.append(" ".join(word for word in words if word))
    return tuple(names)


def _step(spans: set[tuple[int, int]]) -> int:
    """Return the step of a grid of (start, extent), or the largest extent if there is none."""
    starts = sorted({start for start, _ in spans})
    largest = max(extent for _, extent in spans)
    steps = [b - a for a, b in itertools.pairwise(starts)]
    step = min(steps, default=largest)
    regular = 2 * step >= largest and all(start % step == 0 for start in starts)
    return step if regular else largest
