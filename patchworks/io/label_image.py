"""The label image on disk: where it goes, how it is written, put in place and registered."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from patchworks.errors import InputError, TargetExistsError
from patchworks.geometry.box import Box
from patchworks.geometry.pyramid import PyramidPlan
from patchworks.io.level_store import PARTIAL_KEY, ZARR_FORMAT, LevelStore, refresh_consolidated
from patchworks.io.location import Location, open_group
from patchworks.io.ngff import (
    PROVENANCE_KEY,
    Calibration,
    Version,
    label_attributes,
    with_label_listed,
)
from patchworks.io.region_chunks import RegionChunks
from patchworks.io.run_lock import RunLock, lock_path_of, waiting_for
from patchworks.io.source import NO_STORE
from patchworks.io.writing import check_writable


@dataclass(frozen=True, kw_only=True)
class LabelTarget:
    """Where a label image goes and what its metadata say.

    Parameters
    ----------
    location : Location
        The label image's group.
    image_group : Location or None
        The image's group, if the label image lies in it and is to be registered there.
    name : str
        Name of the label image.
    version : {"0.4", "0.5"}
        OME-NGFF version, and with it the zarr format (2 or 3).
    calibration : Calibration
        Axes, voxel size and position of level 0.
    is_temporary : bool
        Whether it lies in a folder of its own that ends with the process.
    """

    location: Location
    image_group: Location | None
    name: str
    version: Version
    calibration: Calibration
    is_temporary: bool = False

    @classmethod
    def inside(
        cls, image_group: Location, name: str, version: Version, calibration: Calibration
    ) -> LabelTarget:
        """Return the target ``labels/<name>`` of an image's own store."""
        return cls(
            location=image_group / "labels" / name,
            image_group=image_group,
            name=name,
            version=version,
            calibration=calibration,
        )

    def make_private(self) -> None:
        """Make the folder of a temporary label image, for its owner alone."""
        if self.is_temporary:
            self.location.path.parent.mkdir(mode=0o700, exist_ok=True)

    def finished_run(self) -> dict[str, Any]:
        """Return what the label image at the target says of the run that made it, or nothing."""
        provenance = attributes_of(self.location).get(PROVENANCE_KEY)
        return dict(provenance) if isinstance(provenance, Mapping) else {}

    def register(self) -> None:
        """Add the name to the labels that the image's `labels` group lists, if it is not there."""
        if self.image_group is None:
            return
        # Two label images that end at once would each write a list without the other.
        path = lock_path_of(self.image_group / "labels", self.image_group)
        with waiting_for(RunLock(path, f"{self.image_group}: its list of labels")):
            self._list_in(self.image_group)

    def _list_in(self, image_group: Location) -> None:
        store = (image_group / "labels").store(read_only=False)
        group = zarr.open_group(store, mode="a", zarr_format=ZARR_FORMAT[self.version])
        before = dict(group.attrs)
        after = with_label_listed(before, self.version, self.name, f"{image_group}/labels")
        if after != before:
            group.attrs.put(after)
            refresh_consolidated(image_group)

    def check(self, fingerprint: str, *, overwrite: bool) -> None:
        """Raise unless this run may write here; the run that made what is there always may.

        Raises
        ------
        TargetExistsError
            If another run's label image is there and `overwrite` is False.
        InputError
            If something else is there: that is never replaced. If it could not be listed at the end
            among the labels of the image.
        """
        if self.image_group is not None:
            around = self.image_group / "labels"
            with_label_listed(attributes_of(around), self.version, self.name, str(around))
        if not self.location.exists():
            return
        attributes = attributes_of(self.location)
        ome = attributes.get("ome", attributes)
        partial = attributes.get(PARTIAL_KEY)
        is_label_image = isinstance(ome, Mapping) and "image-label" in ome
        if partial == fingerprint or self.finished_run().get("fingerprint") == fingerprint:
            return
        if not is_label_image and partial is None:
            raise InputError(
                f"{self.location}: something is there that is no label image, and is never "
                f"replaced; give another write_to= or output_component="
            )
        if not overwrite:
            raise TargetExistsError(
                f"{self.location}: a label image made by another run (other arguments, function "
                f"or image) is there; give another name, or overwrite=True to replace it"
            )

    def is_anothers(self, fingerprint: str) -> bool:
        """Whether a group with metadata is there that this run is not writing."""
        attributes = attributes_of(self.location)
        return bool(attributes) and attributes.get(PARTIAL_KEY) != fingerprint

    def check_writable(self) -> None:
        """Raise TargetNotWritableError if nothing can be created at the target."""
        check_writable(self.location, "give another place with write_to=")


def attributes_of(location: Location) -> dict[str, Any]:
    """Return the attributes of the zarr group at a location; empty if none can be read there."""
    with suppress(*NO_STORE):
        return dict(open_group(location).attrs)
    return {}


@dataclass(frozen=True)
class LabelImage:
    """A label image being written: regions in, and the metadata at the end."""

    target: LabelTarget
    pyramid: PyramidPlan
    dtype: np.dtype
    fingerprint: str

    @functools.cached_property
    def store(self) -> LevelStore:
        """Its levels."""
        return LevelStore(
            place=self.target.location,
            version=self.target.version,
            axis_names=tuple([axis.name for axis in self.target.calibration.axes]),
            pyramid=self.pyramid,
            dtype=self.dtype,
            fingerprint=self.fingerprint,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "store"}

    def create(self) -> None:
        """Make the empty levels, in place of any that an interrupted run left."""
        self.store.create()

    def is_begun(self) -> bool:
        """Return whether the levels are there, left by an interrupted run of this kind."""
        return self.store.is_begun()

    def write(self, level: int, box: Box, labels: np.ndarray) -> None:
        """Write labels, which hold whole chunks, to a level; empty chunks make no file."""
        self.store.write(level, box, labels)

    def write_chunks(self, level: int, filled: RegionChunks) -> None:
        """Write the chunks of a region to a level; empty ones make no file."""
        self.store.write_chunks(level, filled)

    def read(self, level: int, box: Box) -> np.ndarray:
        """Return the labels of a box of a level that is written."""
        return self.store.read(level, box)

    def publish(self, provenance: Mapping[str, Any], *, may_replace: bool) -> None:
        """Write the metadata, put the label image in its place and register it.

        What is at the target is looked at once more: it may have come while this was written.

        Raises
        ------
        TargetExistsError, InputError
            As `LabelTarget.check` does; the levels that are written stay.
        """
        target = self.target
        target.check(self.fingerprint, overwrite=may_replace)
        source = None if target.image_group is None else "../../"
        attributes = label_attributes(
            target.version,
            name=target.name,
            calibration=target.calibration,
            pyramid=self.pyramid,
            source=source,
        )
        made = {**attributes, PROVENANCE_KEY: dict(provenance)}
        self.store.publish(made, may_replace=may_replace)
        target.register()
        if target.image_group is not None:
            refresh_consolidated(target.image_group)
