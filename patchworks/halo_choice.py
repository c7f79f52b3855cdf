"""How far tiles have to overlap: a part of the image segmented whole, and cut in tiles.

The part is cut along each axis, with one halo after the other; the smallest with which the objects
are those of the whole is the answer. It is as good as the part is like the rest of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from patchworks.fidelity import Fidelity, compare_objects
from patchworks.geometry.box import Box
from patchworks.geometry.grid import Tile
from patchworks.geometry.halves import CutRule
from patchworks.halving import Halving, VoxelLimit
from patchworks.io.image_source import ImageSource
from patchworks.run import RunSpec
from patchworks.segmenters import Segmenter
from patchworks.steps.segment import segment_tile

HALOS = (4, 8, 16, 24, 32, 48, 64)
"""Voxels along y and x that are tried, in this order."""

AS_GOOD = 0.002
"""F1 by which a halo may be worse than the best and still do, where none gives just the whole."""

FEW = 20
"""With fewer objects on the cuts, their number proves little."""

SPARE_FEW = 16
"""Voxels of halo that are proposed at least, then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HaloTrial:
    """What a halo does.

    Parameters
    ----------
    halo : tuple of int
        Voxels, per axis.
    fidelity : Fidelity
        Of the part in tiles against the part as a whole.
    """

    halo: tuple[int, ...]
    fidelity: Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class HaloChoice:
    """A halo, and what was seen of it and of others.

    Parameters
    ----------
    halo : tuple of int
        Voxels, per axis.
    box : Box
        The part of the image that was looked at.
    trials : tuple of HaloTrial
        In the order of their halos.
    n_cut : int
        Objects that the cuts between the tiles went through.
    """

    halo: tuple[int, ...]
    box: Box
    trials: tuple[HaloTrial, ...]
    n_cut: int

    @property
    def is_certain(self) -> bool:
        """Whether objects enough were cut to tell."""
        return self.n_cut >= FEW

    @property
    def f1(self) -> float:
        """Of the halo that is proposed, or of the nearest that was tried."""
        below = [t for t in self.trials if max(t.halo) <= max(self.halo)]
        return (below[-1] if below else self.trials[0]).fidelity.f1


class _Cutting(Halving):
    """Cuts a part of the image in so many pieces, whatever memory there is."""

    max_voxels = 0.0

    def allows(self, tile: Tile) -> bool:
        """Return whether a piece is small enough."""
        return tile.core.size <= self.max_voxels


class CutPart:
    """A part of an image, segmented as a whole once, and in tiles as often as asked.

    Parameters
    ----------
    source : ImageSource
        The image.
    segmenter : callable
        The function, prepared.
    box : Box
        The part.
    spec : RunSpec
        How seams are judged; the axes that are tiled.
    is_cut : tuple of bool
        Axes that may be cut.
    """

    def __init__(
        self,
        source: ImageSource,
        segmenter: Segmenter,
        box: Box,
        spec: RunSpec,
        is_cut: tuple[bool, ...],
    ) -> None:
        self.source = source
        self.segmenter = segmenter
        self.spec = spec
        self.is_cut = is_cut
        self.tile = Tile(0, (0,) * box.ndim, box, box, spec.grid.apart)
        self.whole = np.asarray(segment_tile(source.read(box), self.tile, segmenter))

    def try_halo(self, halo: tuple[int, ...]) -> HaloTrial:
        """Segment the part in two tiles along each axis that allows it, and compare."""
        box = self.tile.core
        slab = tuple([h > 0 and self.spec.stitch != "touch" for h in halo])
        # An axis that is not to be cut is one that no half could be thick enough for.
        halos = zip(halo, self.is_cut, box.shape, strict=True)
        rule = CutRule(
            halo=tuple([h if c else n for h, c, n in halos]),
            slab=tuple([s or not c for s, c in zip(slab, self.is_cut, strict=True)]),
            thinnest=1,
        )
        halving = _Cutting(self.segmenter, rule, self.spec.connectivity, VoxelLimit(), 1)
        halving.max_voxels = 1.5 * box.size / 2 ** sum(self.is_cut)  # halves differ by a voxel
        labels, _ = halving.of_halves(self.tile, self.source.read)
        return HaloTrial(halo=halo, fidelity=compare_objects(self.whole, labels))

    def n_cut(self) -> int:
        """Return how many objects lie on both sides of the middle of an axis that is cut."""
        found: set[int] = set()
        for axis, is_cut in enumerate(self.is_cut):
            if is_cut:
                middle = self.whole.shape[axis] // 2
                planes = self.whole.take([middle - 1, middle], axis)
                below, above = np.moveaxis(planes, axis, 0)
                found |= set(np.unique(below[(below == above) & (below > 0)]).tolist())
        return len(found)


def choose_halo(
    part: CutPart, spacing: Sequence[float] | None, tried: Sequence[int] = HALOS
) -> HaloChoice | None:
    """Return the smallest halo with which tiles give the objects of the whole.

    None where the part is too small for any.

    Parameters
    ----------
    part : CutPart
        What to try it on.
    spacing : sequence of float, optional
        Size of a voxel on each axis: a halo is about as far on each.
    tried : sequence of int
        Voxels along the axis with the smallest, increasing.
    """
    box = part.tile.core
    finest = min(spacing) if spacing else 1.0
    trials: list[HaloTrial] = []
    for voxels in tried:
        wanted = [ceil(voxels * finest / s) for s in spacing] if spacing else [voxels] * box.ndim
        halo = tuple([h if c else 0 for h, c in zip(wanted, part.is_cut, strict=True)])
        fits = [2 * h <= n // 2 for h, n in zip(halo, box.shape, strict=True)]
        if not all(fits):
            break
        trials.append(part.try_halo(halo))
        if len(trials) > 1 and all(t.fidelity.f1 == 1.0 for t in trials[-2:]):
            break
    if not trials:
        return None
    best = max([t.fidelity.f1 for t in trials])
    least = best - (AS_GOOD if best < 1 else 0)
    good = [t.halo for t in trials if t.fidelity.f1 >= least]
    n_cut = part.n_cut()
    chosen = good[0]
    if n_cut < FEW:
        chosen = tuple(
            [max(h, SPARE_FEW) if c else h for h, c in zip(chosen, part.is_cut, strict=True)]
        )
    return HaloChoice(halo=chosen, box=box, trials=tuple(trials), n_cut=n_cut)
