"""The label image on disk: built beside its place, put there when it is whole, then registered.

On a local file system the levels are written to a hidden sibling and renamed, so that under its
name a label image is either whole or not there, and one that is replaced stays until the new one
is finished. Object stores know no renaming: there the metadata that makes a group a label image
is written last.
"""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from numcodecs import Zstd
from zarr.codecs import ZstdCodec

from patchworks.errors import InputError, TargetExistsError, TargetNotWritableError
from patchworks.geometry.box import Box
from patchworks.geometry.pyramid import PyramidPlan
from patchworks.io.location import Location, ZarrArray, open_array, open_group
from patchworks.io.ngff import (
    PROVENANCE_KEY,
    Calibration,
    Version,
    label_attributes,
    with_label_listed,
)
from patchworks.io.source import NOT_ZARR

ZARR_FORMAT: dict[Version, Literal[2, 3]] = {"0.4": 2, "0.5": 3}

PARTIAL_KEY = "patchworks-partial"


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

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of what lies at the target; empty if it is no zarr group."""
        with suppress(*NOT_ZARR):
            return dict(open_group(self.location).attrs)
        return {}

    def finished_run(self) -> dict[str, Any]:
        """Return what the label image at the target says of the run that made it, or nothing."""
        provenance = self.attributes().get(PROVENANCE_KEY)
        return dict(provenance) if isinstance(provenance, Mapping) else {}

    def register(self) -> None:
        """Add the name to the labels that the image's `labels` group lists, if it is not there."""
        if self.image_group is None:
            return
        store = (self.image_group / "labels").store(read_only=False)
        group = zarr.open_group(store, mode="a", zarr_format=ZARR_FORMAT[self.version])
        before = dict(group.attrs)
        after = with_label_listed(before, self.version, self.name)
        if after != before:
            group.attrs.put(after)
            self._consolidate(self.image_group)

    def _consolidate(self, image_group: Location) -> None:
        """Bring the image's consolidated metadata up to date, if it has any."""
        image = open_group(image_group, mode="r+")
        if image.metadata.consolidated_metadata is None:
            return
        with warnings.catch_warnings():  # consolidated metadata are no part of zarr 3; it has them
            warnings.simplefilter("ignore", UserWarning)
            zarr.consolidate_metadata(
                image_group.store(read_only=False), zarr_format=ZARR_FORMAT[self.version]
            )

    def check(self, fingerprint: str, *, overwrite: bool) -> None:
        """Raise unless this run may write here; the run that made what is there always may.

        Raises
        ------
        TargetExistsError
            If another run's label image is there and `overwrite` is False.
        InputError
            If something else is there: that is never replaced.
        """
        if not self.location.exists():
            return
        attributes = self.attributes()
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

    def check_writable(self) -> None:
        """Raise TargetNotWritableError if nothing can be created at the target."""
        if not self.location.is_local:
            return
        folder = self.location.path.parent
        made = []
        try:
            while not folder.exists():
                made.append(folder)
                folder = folder.parent
            folder = self.location.path.parent
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{self.location.path.name}.probe"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise TargetNotWritableError(
                f"{self.location}: cannot be written ({error.strerror or error}); give another "
                f"place with write_to="
            ) from error
        finally:
            for empty in made:
                with suppress(OSError):
                    empty.rmdir()


@dataclass(frozen=True)
class LabelImage:
    """A label image being written: level arrays, regions in, and the metadata at the end."""

    target: LabelTarget
    pyramid: PyramidPlan
    dtype: np.dtype
    fingerprint: str

    @property
    def building(self) -> Location:
        """Where the levels are written before the label image is whole."""
        target = self.target.location
        if not target.is_local:
            return target
        name = f".{target.path.name}.{self.fingerprint[:8]}.partial"
        return Location(str(target.path.parent / name))

    def create(self) -> None:
        """Make the empty levels, in place of any that an interrupted run left."""
        self._clear()
        store = self.building.store(read_only=False)
        group = zarr.open_group(store, mode="w", zarr_format=ZARR_FORMAT[self.target.version])
        for level, (shape, chunks) in enumerate(
            zip(self.pyramid.shapes, self.pyramid.chunks, strict=True)
        ):
            group.create_array(
                str(level),
                shape=shape,
                chunks=chunks,
                dtype=self.dtype,
                fill_value=0,
                **self._encoding(),
            )
        group.attrs[PARTIAL_KEY] = self.fingerprint  # last: now it is begun

    def _encoding(self) -> dict[str, Any]:
        if self.target.version == "0.4":
            separator = {"name": "v2", "separator": "/"}
            return {"compressors": Zstd(level=1), "chunk_key_encoding": separator}
        names = [axis.name for axis in self.target.calibration.axes]
        return {"compressors": ZstdCodec(level=1), "dimension_names": names}

    def is_begun(self) -> bool:
        """Return whether the levels are there, left by an interrupted run of this kind."""
        with suppress(*NOT_ZARR):
            return open_group(self.building).attrs.get(PARTIAL_KEY) == self.fingerprint
        return False

    def _clear(self) -> None:
        if self.building.is_local:
            shutil.rmtree(self.building.path, ignore_errors=True)
            self.building.path.parent.mkdir(parents=True, exist_ok=True)
        elif self.building.exists():
            filesystem, path = self.building.filesystem()
            filesystem.rm(path, recursive=True)

    @functools.cached_property
    def levels(self) -> list[ZarrArray]:
        """The level arrays, opened for writing once per process."""
        return [
            open_array(self.building, str(level), mode="r+")
            for level in range(self.pyramid.n_levels)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "levels"}

    def write(self, level: int, box: Box, labels: np.ndarray) -> None:
        """Write labels, which hold whole chunks, to a level; empty chunks make no file."""
        self.levels[level][box.slices] = labels

    def read(self, level: int, box: Box) -> np.ndarray:
        """Return the labels of a box of a level that is written."""
        return np.asarray(self.levels[level][box.slices])

    def publish(self, provenance: Mapping[str, Any]) -> None:
        """Write the metadata, put the label image in its place and register it."""
        target = self.target
        source = None if target.image_group is None else "../../"
        attributes = label_attributes(
            target.version,
            name=target.name,
            calibration=target.calibration,
            pyramid=self.pyramid,
            source=source,
        )
        group = open_group(self.building, mode="r+")
        group.attrs.put({**attributes, PROVENANCE_KEY: dict(provenance)})
        if self.building != target.location:
            self._move_into_place()
        target.register()

    def _move_into_place(self) -> None:
        place = self.target.location.path
        old = place.with_name(f".{place.name}.{self.fingerprint[:8]}.old")
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        self.building.path.rename(place)
        shutil.rmtree(old, ignore_errors=True)
