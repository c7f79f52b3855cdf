"""The maximum maps of an image that is converted: made of voxels that are in hand anyway.

Each region leaves the maxima of its boxes in the stage, and what publishes the image puts them
together. Runs that leave out empty tiles find the maps beside the image; see `io/kept_map.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TypeVar

import numpy as np

from patchworks.conversion.plan import ConversionPlan
from patchworks.geometry.box import Box
from patchworks.geometry.box_grid import BoxGrid, plan_boxes
from patchworks.io.frames import pack, unpack
from patchworks.io.identity import identity_of_files
from patchworks.io.image_source import ImageSource, StoredArray
from patchworks.io.kept_map import KeptMap, paths_of
from patchworks.io.maximum_map import MaximumMap, larger_of, maxima_of
from patchworks.io.ngff import Calibration

logger = logging.getLogger(__name__)

MOST_MAPS = 64
"""Channels and time points up to which there is a map of each; else runs make those they need."""

PICKED = "tc"
"""Axes of which a map has one index."""

PART = "maxima-{}"

Pick = tuple[int | None, ...]

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Layout:
    """Which axes a map has, and its boxes."""

    picked: tuple[bool, ...]
    grid: BoxGrid

    def kept(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """Return the values of the axes that a map has."""
        return tuple([v for v, picked in zip(values, self.picked, strict=True) if not picked])

    def picks(self, box: Box) -> Iterator[tuple[Pick, tuple[slice | int, ...]]]:
        """Yield what is picked in a region, and the index of its voxels there."""
        choices: list[Iterable[int | None]] = [
            range(start, stop) if picked else [None]
            for start, stop, picked in zip(box.start, box.stop, self.picked, strict=True)
        ]
        for pick in product(*choices):
            at = zip(pick, box.start, strict=True)
            yield pick, tuple([slice(None) if i is None else i - start for i, start in at])


def _layout(plan: ConversionPlan) -> _Layout | None:
    """Return how the maps of an image are laid out; None if there are none.

    Parts of a collection are not where they will be, and what lies at a URL is mapped when it is
    first read: its maps would lie in the cache of whoever converts it.
    """
    shape, chunks = plan.pyramid.shapes[0], plan.pyramid.chunks[0]
    picked = tuple([name in PICKED for name in plan.store.axis_names])
    n_maps = prod([n for n, p in zip(shape, picked, strict=True) if p])
    if n_maps > MOST_MAPS or picked.count(False) < 2:
        return None
    if plan.called or not plan.place.is_local or not plan.store.dtype.isnative:
        return None
    kept = [axis for axis, is_picked in enumerate(picked) if not is_picked]
    grid = plan_boxes(tuple([shape[a] for a in kept]), tuple([chunks[a] for a in kept]))
    return _Layout(picked, grid)


def note_maxima(plan: ConversionPlan, index: int, region: Box, voxels: np.ndarray) -> None:
    """Leave the maxima of a region of level 0 in the stage."""
    layout = _layout(plan)
    if layout is None:
        return
    box = Box(layout.kept(region.start), layout.kept(region.stop))
    found = {
        _name(pick): maxima_of(layout.grid, box, voxels[at]) for pick, at in layout.picks(region)
    }
    plan.stage.write(PART.format(index), pack({}, found))


def keep_maxima(plan: ConversionPlan) -> None:
    """Put the maps of an image that is in its place beside it; without them nothing is amiss."""
    layout = _layout(plan)
    if layout is None:
        return
    with suppress(OSError, ValueError, KeyError):  # a stage that an older version began
        identity = identity_of_files(plan.place.path / "0")
        for pick, found in _gathered(plan, layout).items():
            source = _source_of(plan, layout, pick)
            paths = paths_of(plan.place / "0", pick)[:1]
            KeptMap(source, paths, f"{identity}{pick}").write(found)


def _gathered(plan: ConversionPlan, layout: _Layout) -> dict[Pick, MaximumMap]:
    """Return the maps that the parts of all regions make; boxes may lie in several regions."""
    maps: dict[Pick, MaximumMap] = {}
    regions = plan.pyramid.regions()
    for index in range(regions.n_tiles):
        region = regions[index].core
        spans = layout.grid.touching(Box(layout.kept(region.start), layout.kept(region.stop)))
        _, parts = unpack(plan.stage.read(PART.format(index)))
        for pick, _ in layout.picks(region):
            if pick not in maps:
                maps[pick] = MaximumMap.unknown(layout.grid, plan.store.dtype)
            maxima, known, part = maps[pick].maxima, maps[pick].known, parts[_name(pick)]
            maxima[spans] = np.where(known[spans], larger_of(maxima[spans], part), part)
            known[spans] = True
    return maps


def _source_of(plan: ConversionPlan, layout: _Layout, pick: Pick) -> ImageSource:
    shape, chunks = plan.pyramid.shapes[0], plan.pyramid.chunks[0]
    return ImageSource(
        stored=StoredArray(plan.place, "0"),
        pick=pick,
        shape=layout.kept(shape),
        dtype=plan.store.dtype,
        chunks=layout.kept(chunks),
        calibration=Calibration.unknown(layout.kept(plan.store.axis_names)),
        name=str(plan.place),
    )


def _name(pick: Pick) -> str:
    return ".".join("all" if index is None else str(index) for index in pick)
