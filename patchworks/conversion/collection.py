"""All images of a file → a collection, as `bioformats2raw.layout` 3 of OME-NGFF describes it.

::

    target/          ome: {"bioformats2raw.layout": 3}
    target/OME       ome: {"series": ["0", "1", ...]}, and METADATA.ome.xml
    target/0, 1, ... the images
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import zarr

from patchworks.conversion.collection_xml import collection_xml
from patchworks.conversion.plan import (
    ConversionOptions,
    ConversionPlan,
    PathLike,
    check_apart,
    check_target,
    made_from,
    partial_of,
    plan_conversion,
    plan_scene,
)
from patchworks.errors import TargetExistsError
from patchworks.fingerprint import digest
from patchworks.io.level_store import PARTIAL_KEY, ZARR_FORMAT, not_ours, put_in_place
from patchworks.io.location import Location
from patchworks.io.ngff import PROVENANCE_KEY
from patchworks.io.writing import check_writable, writing
from patchworks.readers.registry import ALL_SCENES, open_reader, scene_names

LAYOUT = 3


@dataclass(frozen=True, kw_only=True)
class CollectionPlan:
    """A conversion of one image, or of all images of a file.

    Parameters
    ----------
    place : Location
        Where the image, or the collection, is to be.
    parts : tuple of ConversionPlan
        One per image.
    source, fingerprint : str
        What the collection is made from; empty for a single image, which says it itself.
    """

    place: Location
    parts: tuple[ConversionPlan, ...]
    source: str = ""
    fingerprint: str = ""

    @property
    def is_collection(self) -> bool:
        """Whether there is a collection to be made of the parts."""
        return bool(self.fingerprint)

    def check_target(self) -> None:
        """Raise TargetExistsError if something is there that a collection may not replace.

        Once more when the lock is held, and when all is written.
        """
        may_replace = self.parts[0].may_replace
        check_target(self.place, self.fingerprint, self.source, overwrite=may_replace)

    @property
    def building(self) -> Location:
        """Where the images are written before all of them are whole."""
        return _building(self.place, self.fingerprint)


def plan_images(source: Any, target: PathLike, options: ConversionOptions) -> CollectionPlan:
    """Check everything that can be checked before work, and plan one or all images of a source.

    Raises
    ------
    PatchworksError
        As `plan_conversion` does.
    """
    if options.scene != ALL_SCENES:
        plan = plan_conversion(source, target, options)
        return CollectionPlan(place=plan.place, parts=(plan,))
    place = Location.parse(target, "target").followed("target")
    check_apart(source, place)
    readers = [
        open_reader(source, scene=index, axes=options.axes, reader=options.reader)
        for index in range(len(scene_names(source, reader=options.reader)))
    ]
    planned = [plan_scene(reader, place, options) for reader in readers]
    identity = digest("collection", [plan.source for plan in planned])
    fingerprint = digest("collection", [plan.fingerprint for plan in planned])
    check_target(place, fingerprint, identity, overwrite=options.overwrite)
    check_writable(place, "give another target")
    building = _building(place, fingerprint)
    parts = [
        replace(
            plan,
            store=replace(plan.store, place=building / str(index)),
            called=str(place / str(index)),
        )
        for index, plan in enumerate(planned)
    ]
    return CollectionPlan(place=place, parts=tuple(parts), source=identity, fingerprint=fingerprint)


def is_whole(plan: CollectionPlan) -> bool:
    """Whether this very collection is in its place."""
    return plan.is_collection and made_from(plan.place).get("fingerprint") == plan.fingerprint


def begin_collection(plan: CollectionPlan) -> None:
    """Mark a collection in an object store as being written, in place of what was there.

    On a local file system the images are written beside the place, and nothing is to be done.

    Raises
    ------
    TargetExistsError
        If something came to the place since the collection was planned.
    """
    if not plan.is_collection:
        return
    plan.check_target()
    if plan.building != plan.place:
        return
    with writing(plan.place):
        if partial_of(plan.place) == plan.fingerprint:
            return
        plan.place.remove()
        group = zarr.open_group(
            plan.place.store(read_only=False),
            mode="w",
            zarr_format=ZARR_FORMAT[plan.parts[0].store.version],
        )
        group.attrs[PARTIAL_KEY] = plan.fingerprint


def publish_collection(plan: CollectionPlan) -> None:
    """Write the collection's own metadata and put it in its place.

    Raises
    ------
    TargetExistsError
        If something came to the place since the collection was begun.
    """
    _check_still_free(plan)
    version = plan.parts[0].store.version
    series: dict[str, Any] = {"series": [str(index) for index in range(len(plan.parts))]}
    layout: dict[str, Any] = {"bioformats2raw.layout": LAYOUT}
    if version == "0.5":
        series = {"ome": {"version": version, **series}}
        layout = {"ome": {"version": version, **layout}}
    made = {"source": plan.source, "fingerprint": plan.fingerprint}
    building = plan.building
    with writing(plan.place):
        for part, attributes in (("OME", series), ("", {**layout, PROVENANCE_KEY: made})):
            store = (building / part if part else building).store(read_only=False)
            group = zarr.open_group(store, mode="a", zarr_format=ZARR_FORMAT[version])
            group.attrs.put(attributes)
            if part == "OME" and (described := collection_xml(plan.parts)):
                _put(building / "OME/METADATA.ome.xml", described)
        if building != plan.place:
            may_replace = plan.parts[0].may_replace
            put_in_place(building.path, plan.place.path, may_replace=may_replace)


def _check_still_free(plan: CollectionPlan) -> None:
    try:
        plan.check_target()
        if plan.building == plan.place and partial_of(plan.place) != plan.fingerprint:
            raise not_ours(plan.place)
    except TargetExistsError as error:
        error.add_note(
            f"all {len(plan.parts)} images are written and kept in {plan.building}; the same call "
            f"goes on from there"
        )
        raise


def _building(place: Location, fingerprint: str) -> Location:
    if not place.is_local:
        return place
    return Location(str(place.path.with_name(f".{place.path.name}.{fingerprint[:8]}.partial")))


def _put(place: Location, content: bytes) -> None:
    if place.is_local:
        place.path.write_bytes(content)
        return
    filesystem, path = place.filesystem()
    filesystem.pipe_file(path, content)
