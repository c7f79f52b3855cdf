"""The frozen description of a run, and the fingerprints that say whether two runs are one."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Literal, cast

from patchworks.errors import InputError
from patchworks.fingerprint import digest
from patchworks.geometry.crops import CropRule
from patchworks.geometry.grid import TileGrid
from patchworks.geometry.halves import THINNEST, CutRule
from patchworks.geometry.pyramid import PyramidPlan, plan_pyramid
from patchworks.geometry.seam import SeamPlan

Stitch = Literal["auto", "overlap", "touch"]
STITCHES: tuple[Stitch, ...] = ("auto", "overlap", "touch")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """How an image is tiled, stitched and written; no image and no function in it.

    Parameters
    ----------
    grid : TileGrid
        The tiles.
    stitch : {"auto", "overlap", "touch"}
        How seams are judged. ``"auto"``: by piece agreement on axes with a halo, by touch on the
        others. ``"overlap"``: agreement everywhere. ``"touch"``: touch everywhere.
    connectivity : int
        How many axes a step between two touching voxels may change.
    pyramid_levels, pyramid_downscale : int
        Levels of the label image, level 0 included, and the factor between them in y and x.
    skip_empty : bool
        Whether tiles without signal are left out.
    empty_threshold : float or None
        The intensity up to which a voxel is no signal; None until it is known.
    cut_halo : tuple of int, optional
        Voxels that the halves of a tile read beyond the seam between them, where the function has
        no memory for the whole; by default the halo of the grid. Changes nothing else, and is in no
        fingerprint.
    time_axis, slice_axis : int or None
        Axes of the grid that are apart: time, and the one whose slices are segmented one by one.
    link_time : bool
        Whether objects of a time point and the next can be one, as those of slices are.
    link_iou : float
        The least intersection over union of two objects of neighbouring slices that are one.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    grid: TileGrid
    stitch: Stitch = "auto"
    connectivity: int = 1
    pyramid_levels: int = 5
    pyramid_downscale: int = 2
    skip_empty: bool = False
    empty_threshold: float | None = None
    cut_halo: tuple[int, ...] | None = None
    time_axis: int | None = None
    slice_axis: int | None = None
    link_time: bool = False
    link_iou: float = 0.25

    def __post_init__(self) -> None:
        grid = self.grid
        if not 2 <= grid.ndim <= 5:
            raise InputError(f"an image of {grid.ndim} axes {grid.shape}: expected 2 to 5")
        if self.stitch not in STITCHES:
            raise InputError(f"stitch={self.stitch!r}: expected one of {STITCHES}")
        whole_number("connectivity", self.connectivity, 1, grid.ndim - len(grid.apart))
        whole_number("pyramid_levels", self.pyramid_levels, 1, 32)
        whole_number("pyramid_downscale", self.pyramid_downscale, 2, 64)
        link_iou = finite_number("link_iou", self.link_iou)
        if link_iou is None or not 0 < link_iou <= 1:
            raise InputError(f"link_iou={self.link_iou!r}: expected a number above 0, at most 1")
        split = [a for a, n in enumerate(grid.dims) if n > 1 and a not in grid.apart]
        bare = [a for a in split if grid.halo[a] == 0]
        if self.stitch == "overlap" and bare:
            raise InputError(
                f"stitch='overlap': there is no overlap on axis {bare[0]} of tiles "
                f"{grid.tile_shape}; give one with overlap=, or stitch='auto'"
            )

    @functools.cached_property
    def seams(self) -> SeamPlan:
        """Which planes are kept and which tiles compared."""
        slab = tuple([h > 0 and self.stitch != "touch" for h in self.grid.halo])
        return SeamPlan(self.grid, slab, self.connectivity)

    @functools.cached_property
    def cuts(self) -> CutRule:
        """How a tile is cut that the function has no memory for; seams are judged alike."""
        halo = self.grid.halo if self.cut_halo is None else self.cut_halo
        slab = tuple([h > 0 and self.stitch != "touch" for h in halo])
        return CutRule(halo, slab, THINNEST)

    @functools.cached_property
    def crops(self) -> CropRule | None:
        """How tiles are cut down to where their signal is, if they are."""
        rule = CropRule.of(self.grid)
        return rule if self.skip_empty and rule.can_cut else None

    @functools.cached_property
    def pyramid(self) -> PyramidPlan:
        """The levels of the label image."""
        return plan_pyramid(self.grid, self.pyramid_levels, self.pyramid_downscale, self.time_axis)

    @property
    def linked(self) -> tuple[int, ...]:
        """The axes on which whole objects are compared with those of the next slice, in order."""
        found = (self.slice_axis, self.time_axis if self.link_time else None)
        return tuple([axis for axis in found if axis is not None])

    @property
    def judging(self) -> str:
        """What names the way in which tiles of one stage are compared."""
        return f"c{self.connectivity}" + "".join([f"-{axis}" for axis in self.linked])

    def tiles_fingerprint(self, image: str, segmenter: str) -> str:
        """Return what decides the stage: image, function, tiles, and the planes kept."""
        parts = (self.grid.edges, self.grid.halo, self.seams.slab)
        threshold: object = self.empty_threshold
        if self.skip_empty and threshold is None:
            threshold = "of the image 1"  # the rule by which it is found
        apart = [self.grid.apart, self.grid.layer] if self.grid.apart else []
        skips = "around signal 1" if self.skip_empty else False  # the rule by which tiles are cut
        return digest("tiles 1", image, segmenter, parts, skips, threshold, *apart)

    def labels_fingerprint(self, tiles: str) -> str:
        """Return what decides the label image: the stage, how it is joined, its levels."""
        given = (tiles, self.connectivity, self.pyramid_levels, self.pyramid_downscale)
        linked = [self.linked, float(self.link_iou)] if self.linked else []
        return digest("labels 1", *given, *linked)


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """Return `value` as an int from `low` to `high`, or raise InputError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise InputError(f"{name}={value!r}: expected an integer from {low} to {high}")
    return int(value)


def finite_number(name: str, value: object) -> float | None:
    """Return `value` as a float, None as None; raise InputError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
        raise InputError(f"{name}={value!r}: expected a finite number")
    return float(value)


def parse_stitch(value: str) -> Stitch:
    """Return `value` as a stitch; an unknown one is refused by `RunSpec`."""
    return cast(Stitch, value)
