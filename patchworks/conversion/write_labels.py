"""Labels that exist already → a label image of the store of their image."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any

import numpy as np

from patchworks.conversion.plan import is_inside, made_from, places_of
from patchworks.errors import (
    ImageReadError,
    InputError,
    SourceNotFoundError,
    TargetExistsError,
)
from patchworks.execution.executor import Batch, ThreadExecutor, batched
from patchworks.execution.machine import available_cores
from patchworks.execution.progress import with_progress
from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.geometry.image_pyramid import ImageLayout, plan_image_pyramid
from patchworks.io.label_image import LabelImage, LabelTarget
from patchworks.io.location import Location
from patchworks.io.ngff import Calibration
from patchworks.io.run_lock import RunLock, lock_path_of
from patchworks.io.source import FoundArray, find_array
from patchworks.io.writing import writing
from patchworks.readers.axes import AxisOrder, axis_letters
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
    """Write labels to ``labels/<name>`` of an image's store; returns where they are.

    Raises
    ------
    TargetInUseError
        If another run is writing that label image.
    """
    workers = available_cores()
    if max_workers is not None:
        workers = whole_number("max_workers", max_workers, 1, 2**16)
    found = find_array(store, 0)
    if found.group is None or found.level is None or found.axes is None:
        raise SourceNotFoundError(
            f"{store}: not an OME-Zarr image; give the store of the image that the labels belong to"
        )
    reader, calibration, order = _open_labels(labels, found, store)
    with closing(reader):
        dtype = _label_dtype(reader)
        if n_levels is None:
            n_levels = found.n_levels if found.n_levels > 1 else DEFAULT_LEVELS
        layout = ImageLayout(n_levels=whole_number("n_levels", n_levels, 1, 32))
        scene = reader.scene
        planned = plan_image_pyramid(
            order.canonical, scene.shape, dtype.itemsize, scene.block, layout
        )
        pyramid = planned.reordered(order.to_held)
        target = LabelTarget.inside(found.group, _plain(name), found.version, calibration)
        # Older versions turned the labels of an image whose axes have another order.
        turned = [] if order.held == order.canonical else [order.held]
        described = repr((pyramid, calibration))
        identity = reader.identity()
        fingerprint = digest("labels", identity, described, name, *turned)
        _check_apart(labels, target.location)
        lock = RunLock(lock_path_of(target.location, found.group), str(target.location))
        if _is_made(target, fingerprint, overwrite=overwrite):
            lock.clear()
            return target.location
        target.check_writable()
        image = LabelImage(target, pyramid, dtype, fingerprint)
        with lock:
            # Once more: another run may have ended just before.
            if not _is_made(target, fingerprint, overwrite=overwrite):
                executor = ThreadExecutor(workers)
                _write_levels(image, reader, order, executor, progress=progress)
                lock.check()
                _check_source(image, reader, identity)
                _publish(image, may_replace=overwrite)
    return target.location


def _is_made(target: LabelTarget, fingerprint: str, *, overwrite: bool) -> bool:
    """Whether these very labels are there; raises TargetExistsError if others are."""
    target.check(fingerprint, overwrite=overwrite)
    if made_from(target.location).get("fingerprint") != fingerprint:
        return False
    target.register()
    return True


def _write_levels(
    image: LabelImage,
    reader: SceneReader,
    order: AxisOrder,
    executor: ThreadExecutor,
    *,
    progress: bool,
) -> None:
    """Write all levels; nothing stays of what fails."""
    place, pyramid = image.target.location, image.pyramid
    with ExitStack() as undo:
        undo.callback(_discard, image)
        with writing(place):
            image.create()
        for level in (0, *range(pyramid.n_fused, pyramid.n_levels)):
            todo = range(pyramid.regions(level).n_tiles)
            work = partial(_write, image, reader, order, level)
            results = executor.map(work, batched(todo, executor.max_batches))
            what = f"write {image.target.name}" if level == 0 else f"level {level}"
            for _ in with_progress(
                results, total=len(todo), what=what, unit="region", shown=progress, count=int
            ):
                pass
        undo.pop_all()  # from here on it may be another run's


def _check_source(image: LabelImage, reader: SceneReader, identity: str) -> None:
    """Raise ImageReadError, and keep nothing, if the labels changed while they were read."""
    changed = True
    with suppress(OSError):  # what cannot be looked at may have changed
        changed = reader.has_changed(identity)
    if changed:
        _discard(image)
        raise ImageReadError(
            f"{reader.name}: changed while it was read, and what was written is a mixture; call "
            f"again when nothing writes to it any more"
        )


def _publish(image: LabelImage, *, may_replace: bool) -> None:
    """Put a label image in its place, unless another program has put something there."""
    try:
        with writing(image.target.location):
            image.publish({"fingerprint": image.fingerprint}, may_replace=may_replace)
    except (TargetExistsError, InputError):
        if image.target.location.is_local:  # an object store has one place for both
            _discard(image)
        raise


def _discard(image: LabelImage) -> None:
    """Delete what is written of a label image that does not become whole."""
    place = image.target.location
    if not place.is_local and image.target.is_anothers(image.fingerprint):
        return
    image.store.building.remove()
    if place.is_local:
        with suppress(OSError):  # there are others in it
            place.path.parent.rmdir()


def _check_apart(labels: Any, place: Location) -> None:
    """Raise InputError if the labels are read from the label image that would be replaced."""
    for here in places_of(labels):
        if is_inside(here, place):
            raise InputError(
                f"{place}: the source of the labels, {here}, lies in it; give another name"
            )


def _open_labels(
    labels: Any, found: FoundArray, store: Location
) -> tuple[SceneReader, Calibration, AxisOrder]:
    """Return the labels' reader, and their axes: those of the image without its channels.

    Both as calibration and as the order in which the image stores them; readers have an order of
    their own, and the labels are stored in that of the image.

    One time point of an image need not be a time axis of its labels.
    """
    axes, shape, level = found.axes or (), found.stored.array.shape, found.level
    assert level is not None
    kept = [i for i, axis in enumerate(axes) if axis.type != "channel"]
    still = [i for i in kept if axes[i].type != "time" or shape[i] > 1]
    if isinstance(labels, (str, os.PathLike)):
        reader = open_reader(labels)
        chosen = kept if len(reader.scene.shape) == len(kept) else still
    else:
        chosen = kept if getattr(labels, "ndim", 0) == len(kept) else still
        reader = open_reader(labels, axes=axis_letters([axes[i] for i in chosen]))
    stored = tuple([shape[i] for i in chosen])
    order = AxisOrder.parse(axis_letters([axes[i] for i in chosen]), stored, str(store))
    if reader.scene.shape != order.shape(stored):
        raise InputError(
            f"{reader.name}: labels of shape {reader.scene.shape} for {store}; expected "
            f"{order.shape(stored)}, axes {order.canonical}"
        )
    calibration = Calibration(
        tuple([axes[i] for i in chosen]),
        tuple([level.scale[i] for i in chosen]),
        tuple([level.translation[i] for i in chosen]),
    )
    return reader, calibration, order


def _plain(name: str) -> str:
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set('/\\:*?"'):
        raise InputError(
            f"name={name!r}: expected a plain name, without '/', not starting with '.'"
        )
    return name


def _label_dtype(reader: SceneReader) -> np.dtype:
    found = reader.scene.dtype
    if found.kind not in "iu":
        raise InputError(
            f"{reader.name}: labels of dtype {found}; expected integers, one per object "
            f"(scipy.ndimage.label makes them from a mask)"
        )
    held = getattr(reader, "array", None)
    if found.kind == "i" and isinstance(held, np.ndarray) and held.min(initial=0) < 0:
        raise InputError(f"{reader.name}: the negative label {held.min()}; labels are 0 or more")
    return np.dtype(np.uint32 if found.itemsize <= 4 else np.uint64)


def _write(
    image: LabelImage, reader: SceneReader, order: AxisOrder, level: int, regions: Batch
) -> int:
    """Write regions of level 0 and of the levels inside them, or of a level above."""
    grid = image.pyramid.regions(level)
    if level > 0:
        with writing(image.target.location):
            return build_level(image, level, regions, pool_labels)
    for index in regions:
        box: Box = grid[index].core
        labels = order.restore(reader.read(order.canonical_box(box)))
        if labels.dtype.kind == "i" and labels.min() < 0:
            raise InputError(
                f"{reader.name}, {box.start} to {box.stop}: the negative label {labels.min()}; "
                f"labels are 0 or more"
            )
        with writing(image.target.location):
            ordered = np.ascontiguousarray(labels, image.dtype)
            write_region(image, box, ordered, pool_labels)
    return len(regions)
