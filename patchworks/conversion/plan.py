"""What was asked for → a checked `ConversionPlan`; nothing is written."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import uuid4

import numpy as np

from patchworks.conversion.calibration import calibrate, name_channels
from patchworks.errors import InputError, PatchworksError, TargetExistsError
from patchworks.fingerprint import digest
from patchworks.geometry.image_pyramid import (
    MANY_FILES,
    ImageLayout,
    check_layout,
    plan_image_pyramid,
    plan_kept_levels,
)
from patchworks.geometry.pyramid import PyramidPlan
from patchworks.io.conversion_stage import ConversionStage
from patchworks.io.level_store import PARTIAL_KEY, Codec, LevelStore
from patchworks.io.location import Location, open_group
from patchworks.io.ngff import PROVENANCE_KEY, Calibration, Channel, Version
from patchworks.io.source import NO_STORE
from patchworks.io.writing import check_writable
from patchworks.readers.array import stores_of
from patchworks.readers.registry import open_reader
from patchworks.readers.scene import Scene, SceneReader
from patchworks.run import whole_number

logger = logging.getLogger(__name__)

FORMAT = 1
"""Changes when the same plan would write other bytes."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """What `to_ome_zarr` was asked for, beside source and target; see there."""

    axes: str | None = None
    pixel_size: Mapping[str, float] | None = None
    n_levels: int | None = None
    downscale: int = 2
    chunks: Sequence[int] | None = None
    shard: bool | None = None
    channel_names: Sequence[str] | None = None
    scene: int | str = 0
    ngff_version: str = "0.5"
    reuse_pyramid: bool = False
    codec: str = "blosc"
    reader: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """A conversion, ready to be worked on by any process that sees source and target.

    Parameters
    ----------
    reader : SceneReader
        The image.
    store : LevelStore
        Where its levels go.
    calibration : Calibration
        Axes, size and position.
    channels : tuple of Channel
        What is known of the channels; empty if nothing is.
    name : str
        Name of the image.
    source : str
        Digest of the image's content.
    fingerprint : str
        Digest of the content and of all that decides the result.
    keeps_levels : bool
        Whether the file's own pyramid is taken over.
    pooled : bool
        Whether a voxel of a lower level stands for a whole cell of the level above.
    called : str
        What messages call the target, where that is not its place: a part of a collection.
    attempt : str
        Names this try to carry it out.
    may_replace : bool
        Whether an OME-Zarr image that is at the target may be replaced.
    """

    reader: SceneReader
    store: LevelStore
    calibration: Calibration
    channels: tuple[Channel, ...]
    name: str
    source: str
    fingerprint: str
    keeps_levels: bool = False
    pooled: bool = True
    called: str = ""
    attempt: str = field(default_factory=lambda: uuid4().hex[:8])
    may_replace: bool = False

    def check_target(self) -> None:
        """Raise TargetExistsError if something is there that may not be replaced.

        Once more when the lock is held, and when all is written: another run may have ended since
        this one was planned, or another program have put something there.
        """
        check_target(self.place, self.fingerprint, self.source, overwrite=self.may_replace)

    @property
    def place(self) -> Location:
        """Where the image is to be."""
        return self.store.place

    @property
    def target(self) -> str:
        """What messages call the target."""
        return self.called or str(self.place)

    @property
    def pyramid(self) -> PyramidPlan:
        """Its levels and regions."""
        return self.store.pyramid

    @property
    def stage(self) -> ConversionStage:
        """What is kept beside it meanwhile."""
        return ConversionStage.beside(self.place, self.fingerprint, self.attempt)

    @property
    def read_levels(self) -> range:
        """The levels that are read from the file; the others are made from the level above."""
        return range(self.pyramid.n_levels if self.keeps_levels else 1)

    @property
    def passes(self) -> list[int]:
        """The levels that have a pass of their own, in order."""
        return [0, *range(self.pyramid.n_fused, self.pyramid.n_levels)]

    def n_bytes(self, level: int) -> int:
        """Return the bytes of a level, uncompressed."""
        return int(np.prod(self.pyramid.shapes[level])) * self.store.dtype.itemsize


def plan_conversion(source: Any, target: PathLike, options: ConversionOptions) -> ConversionPlan:
    """Check everything that can be checked before work, and plan the conversion of one scene.

    Raises
    ------
    SourceNotFoundError, MissingExtraError, InputError
        If the source cannot be read, or an option does not fit it.
    TargetExistsError, TargetNotWritableError
        If something else is at the target, or nothing can be written there.
    """
    place = Location.parse(target, "target").followed("target")
    check_apart(source, place)
    reader = open_reader(source, scene=options.scene, axes=options.axes, reader=options.reader)
    try:
        plan = plan_scene(reader, place, options)
        plan.check_target()
        if made_from(place).get("fingerprint") != plan.fingerprint:
            check_writable(place, "give another target")
    except PatchworksError:
        reader.close()
        raise
    return plan


def plan_scene(reader: SceneReader, place: Location, options: ConversionOptions) -> ConversionPlan:
    """Return the plan for one scene; what is at the target is not looked at."""
    scene, version = reader.scene, _version(options.ngff_version)
    _check_flags(options)
    if scene.dtype.kind not in "biuf" or scene.dtype.itemsize > 8:
        raise InputError(
            f"{reader.name}: voxels of dtype {scene.dtype}; expected booleans, integers or real "
            f"numbers, of 64 bits at most"
        )
    if reader.is_labels:
        raise InputError(
            f"{reader.name}: a label image, whose pyramid is not made of means; write it into the "
            f"store of its image with patchworks.plugins.ome_zarr.write_labels"
        )
    if 0 in scene.shape:
        raise InputError(f"{reader.name}: shape {scene.shape}; there is no voxel in it")
    calibration = calibrate(scene, options.pixel_size, reader.name)
    channels = name_channels(scene, options.channel_names, reader.name)
    keeps = bool(options.reuse_pyramid) and len(scene.shapes) > 1
    pyramid = _plan_pyramid(scene, options, version, keeps=keeps)
    if options.shard is None and pyramid.shards is not None:
        logger.info(
            "%s: more than %d chunks: shards of %s hold several chunks each",
            place,
            MANY_FILES,
            pyramid.shards[0],
        )
    codec = _codec(options.codec)
    identity, name = reader.identity(), scene.name or place.name
    pooled = scene.pooled if keeps else True
    result = (pyramid, calibration, channels, name, version, codec, pooled)
    fingerprint = digest("conversion", FORMAT, identity, repr(result))
    store = LevelStore(
        place=place,
        version=version,
        axis_names=tuple(scene.axes),
        pyramid=pyramid,
        dtype=scene.dtype,
        fingerprint=fingerprint,
        codec=codec,
    )
    return ConversionPlan(
        reader=reader,
        store=store,
        calibration=calibration,
        channels=channels,
        name=name,
        source=identity,
        fingerprint=fingerprint,
        keeps_levels=keeps,
        pooled=pooled,
        may_replace=options.overwrite,
    )


def _plan_pyramid(
    scene: Scene, options: ConversionOptions, version: Version, *, keeps: bool
) -> PyramidPlan:
    n_levels = options.n_levels
    layout = ImageLayout(
        chunks=_extents("chunks", options.chunks),
        n_levels=None if n_levels is None else whole_number("n_levels", n_levels, 1, 32),
        downscale=whole_number("downscale", options.downscale, 2, 64),
        shard=_sharded(options.shard, version),
    )
    check_layout(layout, scene.axes)
    itemsize = scene.dtype.itemsize
    if keeps:
        shapes = scene.shapes[:n_levels]
        if any(
            m > n for above, below in pairwise(shapes) for n, m in zip(above, below, strict=True)
        ):
            raise InputError(
                f"reuse_pyramid=True: the source holds levels of shapes {shapes}, which do not get "
                f"smaller; leave it out"
            )
        return plan_kept_levels(scene.axes, shapes, itemsize, scene.block, layout)
    return plan_image_pyramid(scene.axes, scene.shape, itemsize, scene.block, layout)


def _extents(name: str, extents: Sequence[int] | None) -> tuple[int, ...] | None:
    if extents is None:
        return None
    if isinstance(extents, (str, bytes)) or not isinstance(extents, (Sequence, np.ndarray)):
        raise InputError(f"{name}={extents!r}: expected one integer per axis")
    return tuple([whole_number(name, extent, 1, 2**40) for extent in extents])


def _sharded(shard: bool | None, version: Version) -> bool | None:
    if version == "0.4":
        if shard:
            raise InputError("shard=True: OME-NGFF 0.4 knows no shards; use ngff_version='0.5'")
        return False
    return None if shard is None else bool(shard)


def _check_flags(options: ConversionOptions) -> None:
    for name in ("shard", "reuse_pyramid", "overwrite"):  # "no" would be taken for True
        value = getattr(options, name)
        if not (isinstance(value, (bool, np.bool_)) or (name == "shard" and value is None)):
            raise InputError(f"{name}={value!r}: expected True or False")


def _version(version: str) -> Version:
    if version == "0.4":
        return "0.4"
    if version == "0.5":
        return "0.5"
    raise InputError(f"ngff_version={version!r}: expected '0.5' or '0.4'")


def _codec(codec: str) -> Codec:
    if codec == "blosc":
        return "blosc"
    if codec == "zstd":
        return "zstd"
    raise InputError(f"codec={codec!r}: expected 'blosc' or 'zstd'")


def check_apart(source: Any, place: Location) -> None:
    """Raise InputError if the target is the source itself, or one lies in the other."""
    for here in places_of(source):
        if is_inside(here, place) or is_inside(place, here):
            raise InputError(
                f"target={place}: lies at or in the source {here}, or holds it; give another target"
            )


def places_of(source: Any) -> list[Location]:
    """Return where a path, or the stores that an array reads from, lie."""
    if isinstance(source, (str, os.PathLike)):
        return [Location.parse(source, "source")]
    return stores_of(source)


def is_inside(inner: Location, outer: Location) -> bool:
    """Whether a location is another one or lies in it, by whatever way they are named."""
    if inner.is_local and outer.is_local:
        return inner.path.resolve().is_relative_to(outer.path.resolve())
    if inner.is_local or outer.is_local:
        return False
    (first, inside), (second, around) = inner.filesystem(), outer.filesystem()
    return type(first) is type(second) and f"{inside}/".startswith(f"{around}/")


def made_from(place: Location) -> Mapping[str, Any]:
    """Return what an image at a place says of the conversion that made it; empty if nothing."""
    with suppress(*NO_STORE):
        found = open_group(place).attrs.get(PROVENANCE_KEY)
        return found if isinstance(found, Mapping) else {}
    return {}


def check_target(place: Location, fingerprint: str, source: str, *, overwrite: bool) -> None:
    """Raise TargetExistsError unless the conversion may write to its target."""
    if not place.exists():
        return
    made = made_from(place)
    if made.get("fingerprint") == fingerprint or partial_of(place) == fingerprint:
        return
    if made.get("source") == source and not overwrite:
        raise TargetExistsError(
            f"{place}: was made from this very file with other options; give another target, or "
            f"overwrite=True to make it anew (its labels go too)"
        )
    if not _is_image(place):
        raise TargetExistsError(
            f"{place}: something is there that is no OME-Zarr image, and is never replaced; give "
            f"another target"
        )
    if not overwrite:
        raise TargetExistsError(
            f"{place}: an OME-Zarr image is there already; give another target, or overwrite=True "
            f"to replace it (its labels go too)"
        )


def _attributes(place: Location) -> dict[str, Any]:
    with suppress(*NO_STORE):
        return dict(open_group(place).attrs)
    return {}


def partial_of(place: Location) -> Any:
    """Return the fingerprint of the conversion that an interruption left at a place, or None."""
    return _attributes(place).get(PARTIAL_KEY)


def _is_image(place: Location) -> bool:
    attributes = _attributes(place)
    ome = attributes.get("ome", attributes)
    found = isinstance(ome, Mapping) and ("multiscales" in ome or "bioformats2raw.layout" in ome)
    return found or PARTIAL_KEY in attributes
