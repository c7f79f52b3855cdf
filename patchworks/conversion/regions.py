"""What an engine runs: batches of regions of a conversion. The library and the flows share it.

Every function takes a plan and indices; voxels pass through storage. Each may be run again at any
time: what is written again is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cloudpickle
import numpy as np

from patchworks.conversion.maxima import keep_maxima, note_maxima
from patchworks.conversion.plan import ConversionPlan
from patchworks.errors import ImageReadError, Patience
from patchworks.io.conversion_stage import ConversionStage
from patchworks.io.location import Location
from patchworks.io.ngff import PROVENANCE_KEY, Channel, image_attributes, omero_of
from patchworks.io.writing import writing
from patchworks.steps.levels import build_region, write_region
from patchworks.steps.pyramid import pool_image

PLAN_FILE = "plan.pickle"


def begin(plan: ConversionPlan) -> None:
    """Make the empty levels and the stage, or go on with those of an interrupted try."""
    with writing(plan.place):
        if plan.stage.exists() and plan.store.is_begun():
            plan.stage.take_over()
            plan.store.sweep()
        else:
            plan.stage.begin()
            plan.store.create()
        plan.stage.write(PLAN_FILE, cloudpickle.dumps(plan))


class StoredPlan(ConversionPlan):
    """A plan that travels to a worker as the place of its stage, where it is read once."""

    def __reduce__(self) -> tuple[Any, ...]:
        return load_plan, (self.stage.root.url, self.attempt)


def load_plan(stage: str, attempt: str) -> ConversionPlan:
    """Return the plan of a try; read once per process, so that a file is opened once."""
    return _load_plan(stage, attempt)


@lru_cache(maxsize=4)
def _load_plan(stage: str, _attempt: str) -> ConversionPlan:
    plan: ConversionPlan = cloudpickle.loads(ConversionStage(Location(stage)).read(PLAN_FILE))
    return plan


def todo(plan: ConversionPlan, level: int) -> list[int]:
    """Return the regions of the pass for a level that are still to be written."""
    finished = plan.stage.finished(level)
    return [i for i in range(plan.pyramid.regions(level).n_tiles) if i not in finished]


def write_regions(
    plan: ConversionPlan, level: int, regions: Sequence[int], *, max_failures: int = 1
) -> int:
    """Write regions of the pass for `level`: level 0 from the file, the others from the one above.

    The pass for level 0 writes the first levels of the pyramid too, whose cells lie inside its
    regions. What is marked as written is left alone; `max_failures` regions may fail before the
    rest is left.

    Returns
    -------
    int
        Bytes of the level that were written, uncompressed.

    Raises
    ------
    ImageReadError
        If a part of the file cannot be decoded.
    TargetNotWritableError
        If the target cannot be written: the disk is full, say.
    """
    n_bytes, patience = 0, Patience(max_failures)
    for index in regions:
        if not plan.stage.is_marked(level, index):
            with patience.part():
                n_bytes += _write_one(plan, level, index)
    patience.end()
    return n_bytes


def _write_one(plan: ConversionPlan, level: int, index: int) -> int:
    """Write a region of the pass for `level`; returns its bytes."""
    region = plan.pyramid.regions(level)[index].core
    if level in plan.read_levels:
        voxels = plan.reader.read(region, level)
        with writing(plan.place):
            if level == 0:
                write_region(plan.store, region, voxels, pool_image)
                note_maxima(plan, index, region, voxels)
            else:
                plan.store.write(level, region, voxels)
    else:
        with writing(plan.place):
            build_region(plan.store, level, region, pool_image)
    with writing(plan.place):
        plan.stage.mark(level, index)
    return region.size * plan.store.dtype.itemsize


def check_source(plan: ConversionPlan) -> None:
    """Make sure that all was read from one and the same image, once all is written.

    By the process that planned the conversion: another host may see other times of the same file.

    Raises
    ------
    ImageReadError
        If a file of the image was written to meanwhile: nothing of the mixture is kept. If it
        cannot be looked at, all is.
    """
    name = plan.reader.name
    try:
        changed = plan.reader.has_changed(plan.source)
    except OSError as error:
        raise ImageReadError(
            f"{name}: whether it changed while it was read cannot be seen ({error}); call again "
            f"once it can be read"
        ) from error
    if changed:
        with writing(plan.place):
            plan.stage.remove()
            if plan.store.is_begun():
                plan.store.building.remove()
        raise ImageReadError(
            f"{name}: changed while it was read; what was written was a mixture and is deleted. "
            f"Call again when nothing writes to it any more"
        )


def publish(plan: ConversionPlan) -> None:
    """Write the metadata and put the image in its place.

    Raises
    ------
    TargetExistsError
        If something came to the target since the conversion began, and may not be replaced.
    """
    plan.check_target()
    with writing(plan.place):
        attributes = image_attributes(
            plan.store.version,
            name=plan.name,
            calibration=plan.calibration,
            pyramid=plan.pyramid,
            pooled=plan.pooled,
            omero=_omero(plan),
        )
        made = {"source": plan.source, "fingerprint": plan.fingerprint}
        made_so = {**attributes, PROVENANCE_KEY: made}
        plan.store.publish(made_so, may_replace=plan.may_replace)
        keep_maxima(plan)
        plan.stage.remove()


def _omero(plan: ConversionPlan) -> dict[str, Any] | None:
    """Return how the channels are shown, if anything is known of them."""
    if not any(channel != Channel() for channel in plan.channels):
        return None
    dtype = plan.store.dtype
    measured = _measured(plan, len(plan.channels))
    if dtype.kind in "iu":
        limits = (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    elif dtype.kind == "b":
        limits = (0.0, 1.0)
    else:
        limits = (min(low for low, _ in measured), max(high for _, high in measured))
    return omero_of(plan.channels, limits, measured)


MEASURED_VOXELS = 2**24
"""Voxels of the smallest level that are looked at for contrast."""

WIDEST = 4096
"""Extent in y and x of what is looked at, around the middle."""


def _measured(plan: ConversionPlan, n_channels: int) -> list[tuple[float, float]]:
    """Return the darkest and brightest intensities of each channel, but for a thousandth."""
    level = plan.pyramid.n_levels - 1
    array = plan.store.levels[level]
    names = plan.store.axis_names
    # Planes spread over the other axes, so that neither time nor depth makes it long.
    found = []
    plane = int(np.prod([min(extent, WIDEST) for extent in array.shape[-2:]]))
    middle = [
        slice(max(0, extent - WIDEST) // 2, max(0, extent - WIDEST) // 2 + WIDEST)
        for extent in array.shape[-2:]
    ]
    for channel in range(n_channels):
        index: list[Any] = []
        per_axis = max(1, int((MEASURED_VOXELS / plane) ** (1 / max(1, array.ndim - 2))))
        for name, extent in zip(names[:-2], array.shape[:-2], strict=True):
            step = max(1, extent // per_axis)
            index.append(slice(channel, channel + 1) if name == "c" else slice(None, None, step))
        voxels = np.asarray(array[(*index, *middle)])
        finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
        low, high = (0.0, 1.0)
        if finite.size:  # hot pixels would leave all else black
            low, high = [float(v) for v in np.percentile(finite, (0.1, 99.9), method="nearest")]
        found.append((low, high if high > low else low + max(1.0, abs(low) / 2**20)))
    return found
