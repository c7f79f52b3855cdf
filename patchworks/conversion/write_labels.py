"""Labels that exist already → a label image of the store of their image."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from patchworks.conversion.plan import made_from
from patchworks.errors import InputError, SourceNotFoundError
from patchworks.execution.executor import Batch, ThreadExecutor, batched
from patchworks.execution.machine import available_cores
from patchworks.execution.progress import with_progress
from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.geometry.image_pyramid import ImageLayout, plan_image_pyramid
from patchworks.io.label_image import LabelImage, LabelTarget
from patchworks.io.location import Location
from patchworks.io.ngff import Calibration
from patchworks.io.source import FoundArray, find_array
from patchworks.io.writing import writing
from patchworks.readers.registry import open_reader
from patchworks.readers.scene import SceneReader
from patchworks.run import whole_number
from patchworks.steps.levels import build_level, write_region
from patchworks.steps.pyramid import pool_labels

DEFAULT_LEVELS = 5


def write_label_image(
    store: Location,
    labels: Any,
    *,
    name: str,
    n_levels: int | None,
    overwrite: bool,
    max_workers: int | None,
    progress: bool,
) -> Location:
    """Write labels to ``labels/<name>`` of an image's store; returns where they are."""
    found = find_array(store, 0)
    if found.group is None or found.level is None or found.axes is None:
        raise SourceNotFoundError(
            f"{store}: not an OME-Zarr image; give the store of the image that the labels belong to"
        )
    calibration, shape = _label_axes(found, labels)
    axes = "".join([axis.name for axis in calibration.axes])
    is_path = isinstance(labels, str) or hasattr(labels, "__fspath__")
    reader = open_reader(labels, axes=None if is_path else axes)
    if reader.scene.shape != shape:
        raise InputError(
            f"{reader.name}: labels of shape {reader.scene.shape} for {store}; expected {shape}, "
            f"axes {axes}"
        )
    dtype = _label_dtype(reader)
    if n_levels is None:
        n_levels = found.n_levels if found.n_levels > 1 else DEFAULT_LEVELS
    layout = ImageLayout(n_levels=whole_number("n_levels", n_levels, 1, 32))
    pyramid = plan_image_pyramid(axes, shape, dtype.itemsize, reader.scene.block, layout)
    target = LabelTarget.inside(found.group, _plain(name), found.version, calibration)
    fingerprint = digest("labels", reader.identity(), repr((pyramid, calibration)), name)
    target.check(fingerprint, overwrite=overwrite)
    if made_from(target.location).get("fingerprint") == fingerprint:
        target.register()
        return target.location
    target.check_writable()
    image = LabelImage(target, pyramid, dtype, fingerprint)
    executor = ThreadExecutor(max_workers or available_cores())
    with writing(target.location):
        image.create()
    for level in (0, *range(pyramid.n_fused, pyramid.n_levels)):
        todo = range(pyramid.regions(level).n_tiles)
        work = partial(_write, image, reader, level)
        results = executor.map(work, batched(todo, executor.max_batches))
        what = f"write {name}" if level == 0 else f"level {level}"
        for _ in with_progress(
            results, total=len(todo), what=what, unit="region", shown=progress, count=int
        ):
            pass
    reader.close()
    with writing(target.location):
        image.publish({"fingerprint": fingerprint})
    return target.location


def _plain(name: str) -> str:
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set('/\\:*?"'):
        raise InputError(
            f"name={name!r}: expected a plain name, without '/', not starting with '.'"
        )
    return name


def _label_axes(found: FoundArray, labels: Any) -> tuple[Calibration, tuple[int, ...]]:
    """Return axes and shape that labels of an image have: all but the channels."""
    level, axes, array = found.level, found.axes, found.stored.array
    assert level is not None
    assert axes is not None
    kept = [i for i, axis in enumerate(axes) if axis.type != "channel"]
    times = [i for i in kept if axes[i].type == "time" and array.shape[i] == 1]
    if times and getattr(labels, "ndim", len(kept) - 1) == len(kept) - 1:
        kept.remove(times[0])  # one time point is no time axis
    calibration = Calibration(
        tuple([axes[i] for i in kept]),
        tuple([level.scale[i] for i in kept]),
        tuple([level.translation[i] for i in kept]),
    )
    return calibration, tuple([array.shape[i] for i in kept])


def _label_dtype(reader: SceneReader) -> np.dtype:
    found = reader.scene.dtype
    if found.kind not in "iu":
        raise InputError(
            f"{reader.name}: labels of dtype {found}; expected integers, one per object "
            f"(scipy.ndimage.label makes them from a mask)"
        )
    return np.dtype(np.uint32 if found.itemsize <= 4 else np.uint64)


def _write(image: LabelImage, reader: SceneReader, level: int, regions: Batch) -> int:
    """Write regions of level 0 and of the levels inside them, or of a level above."""
    grid = image.pyramid.regions(level)
    if level > 0:
        with writing(image.target.location):
            return build_level(image, level, regions, pool_labels)
    for index in regions:
        box: Box = grid[index].core
        labels = reader.read(box)
        if labels.dtype.kind == "i" and labels.min() < 0:
            raise InputError(
                f"{reader.name}, {box.start} to {box.stop}: the negative label {labels.min()}; "
                f"labels are 0 or more"
            )
        with writing(image.target.location):
            write_region(image, box, labels.astype(image.dtype, copy=False), pool_labels)
    return len(regions)
