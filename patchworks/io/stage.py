"""The stage of a run: staged labels and records of its tiles, on a file system all workers share.

::

    <stage>/run.json                    what the run is; written first
    <stage>/labels/00000/00000017.lab   staged labels of tile 17
                                        (those of a tiny tile are in its record)
    <stage>/records/00000/00000017.rec  its record: tile 17 is done once this exists
    <stage>/occupancy.npy               which tiles hold signal, if the run skips empty ones
    <stage>/threshold.npy               above which a voxel is signal
    <stage>/joined-*.npy                what the seams of some tiles say, in a flow
    <stage>/relabeling-*.npy            from local to global labels
    <stage>/regions/                    regions of the last pass that are written
    <stage>/image.zarr                  the image, where workers could not read it otherwise
    <stage>/batches.npy, results/       a flow's task runs and what they returned

Staged labels are written once and never changed.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from patchworks.errors import StageError, TargetNotWritableError
from patchworks.geometry.grid import ceil_div
from patchworks.io.location import Location
from patchworks.io.record import LABELS, TileRecord, read_counts
from patchworks.io.staged_labels import LabelVoxels, StagedLabels, from_bytes
from patchworks.io.writing import writing

FORMAT = 3
PER_FOLDER = 4096
HEADER_BYTES = 4096
"""Bytes read for a record's header alone; planes are few, headers are short."""


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file so that it is there as a whole or not at all."""
    folder, name = os.path.split(path)
    temporary = f"{folder}/.{name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:  # noqa: PTH123
            file.write(content)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_one_at_a_time = threading.Lock()


def _mapped(path: Path) -> np.ndarray:
    """Return an array in a file, mapped.

    What NumPy writes at the beginning of a file it reads as Python source, and Python 3.11 raises
    SystemError where two threads parse source at a time: so not two of ours, and once more if
    somebody else does.
    """
    with _one_at_a_time:
        try:
            found: np.ndarray = np.load(path, mmap_mode="r")
        except SystemError:
            found = np.load(path, mmap_mode="r")
    return found


def _content(path: str, n_bytes: int = -1) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read(n_bytes)


@dataclass(frozen=True, slots=True)
class Stage:
    """A run's stage; a path, so that it can be sent to any worker."""

    root: Path

    @classmethod
    def create(cls, root: Path, manifest: Mapping[str, Any], n_tiles: int) -> Stage:
        """Make the stage, or open the one that an interrupted run of the same kind left.

        Raises
        ------
        TargetNotWritableError
            If the place cannot be written.
        StageError
            If another run's stage is there.
        """
        stage = cls(root)
        try:
            stage._make(manifest, n_tiles)
        except OSError as error:
            raise TargetNotWritableError(
                f"stage {root}: cannot be written ({error.strerror or error}); give another place "
                f"with stage_dir="
            ) from error
        found = stage.manifest()
        if found.get("fingerprint") != manifest["fingerprint"] or found.get("format") != FORMAT:
            raise StageError(
                f"stage {root} belongs to another run; delete it, or give another stage_dir="
            )
        return stage

    def _make(self, manifest: Mapping[str, Any], n_tiles: int) -> None:
        for kind in ("labels", "records"):
            for folder in range(ceil_div(n_tiles, PER_FOLDER)):
                (self.root / kind / f"{folder:05d}").mkdir(parents=True, exist_ok=True)
        (self.root / "regions").mkdir(exist_ok=True)
        if not (self.root / "run.json").exists():
            named = {"format": FORMAT, "id": uuid4().hex, **manifest}
            content = json.dumps(named, indent=1, default=str)
            write_whole(self.root / "run.json", content.encode())

    @property
    def id(self) -> str:
        """What names this very stage: one that is made anew in its place has another."""
        return str(self.manifest().get("id", ""))

    def manifest(self) -> dict[str, Any]:
        """Return what the run's first act wrote down; empty if there is none to be read."""
        try:
            content = json.loads((self.root / "run.json").read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def remove(self) -> None:
        """Delete the stage, and the folder around it if it held only this one."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self.root.parent.name.endswith(".stage"):
            try:
                self.root.parent.rmdir()
            except OSError:  # another run's stage is in it
                return

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the whole run."""
        with self._writing():
            write_whole(self.root / name, content)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.root, "make room, and call again")

    def begin_regions(self, relabeling: str) -> None:
        """Drop the marks of finished regions: a label image is begun anew, with this relabeling."""
        with self._writing():
            shutil.rmtree(self.root / "regions", ignore_errors=True)
            (self.root / "regions").mkdir()
            write_whole(self.root / "regions" / "id", uuid4().hex.encode())
            write_whole(self.root / "regions" / "relabeling", relabeling.encode())

    def regions_id(self) -> str:
        """Return what names the label image that was begun last."""
        return (self.root / "regions" / "id").read_text()

    def regions_belong_to(self, relabeling: str) -> bool:
        """Return whether the regions that are marked were written with this relabeling."""
        mark = self.root / "regions" / "relabeling"
        return mark.exists() and mark.read_text() == relabeling

    @property
    def image(self) -> Location:
        """Where a copy of the image lies, if the run needs one."""
        return Location(str(self.root / "image.zarr"))

    def _file(self, kind: str, tile: int, ending: str) -> str:
        # A string: this is asked several times for every tile, and a path takes ten times as long.
        return f"{self.root}/{kind}/{tile // PER_FOLDER:05d}/{tile:08d}.{ending}"

    def is_done(self, tile: int) -> bool:
        """Return whether the tile's record exists."""
        return os.path.exists(self._file("records", tile, "rec"))  # noqa: PTH110

    def done(self) -> list[int]:
        """Return the indices of all tiles that are done, from one look at the folders."""
        tiles = []
        for folder in sorted((self.root / "records").iterdir()):
            names = sorted(entry.name for entry in os.scandir(folder))
            tiles += [int(n.removesuffix(".rec")) for n in names if n.endswith(".rec")]
        return tiles

    def n_done(self) -> int:
        """Return how many tiles are done."""
        folders = list((self.root / "records").iterdir())
        return sum(e.name.endswith(".rec") for folder in folders for e in os.scandir(folder))

    def write_labels(self, tile: int, labels: StagedLabels) -> None:
        """Write the staged labels of a tile, shape of its core."""
        with self._writing():
            write_whole(self._file("labels", tile, "lab"), labels.to_bytes())

    def read_labels(self, tile: int) -> StagedLabels:
        """Return the staged labels of a tile, shape of its core."""
        path = self._file("labels", tile, "lab")
        try:
            if not os.path.exists(path) and (small := self._labels_in_record(tile)) is not None:  # noqa: PTH110
                return LabelVoxels(small)
            return from_bytes(_content(path))
        except (OSError, ValueError) as error:
            raise self._damaged(tile, path, error) from error

    def _labels_in_record(self, tile: int) -> np.ndarray | None:
        return self.read_record(tile).planes.get(LABELS) if self.is_done(tile) else None

    def write_record(self, record: TileRecord) -> None:
        """Mark a tile as done."""
        with self._writing():
            write_whole(self._file("records", record.tile, "rec"), record.to_bytes())

    def read_record(self, tile: int) -> TileRecord:
        """Return a tile's record with its seam planes."""
        path = self._file("records", tile, "rec")
        try:
            record = TileRecord.from_bytes(_content(path))
            if record.tile != tile:
                raise ValueError(f"it is the record of tile {record.tile}")
            return record
        except (OSError, ValueError) as error:
            raise self._damaged(tile, path, error) from error

    def read_counts(self, tile: int) -> tuple[int, int]:
        """Return a tile's number of labels and of nodes, without reading its planes."""
        path = self._file("records", tile, "rec")
        try:
            return read_counts(_content(path, HEADER_BYTES))
        except (OSError, ValueError) as error:
            raise self._damaged(tile, path, error) from error

    def _damaged(self, tile: int, path: str, error: Exception) -> StageError:
        return StageError(
            f"tile {tile}: {path} cannot be read ({error}); delete "
            f"{self._file('records', tile, 'rec')} and call again to do this tile again"
        )

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Write an array of the whole run, such as the occupancy."""
        path = self.root / f"{name}.npy"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with self._writing(), temporary.open("wb") as file:
                np.save(file, array)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def read_array(self, name: str) -> np.ndarray | None:
        """Return a small array of the run, mapped from its file, or None."""
        path = self.root / f"{name}.npy"
        if not path.exists():
            return None
        try:
            found = _mapped(path)
        except (OSError, ValueError, EOFError) as error:
            raise StageError(
                f"{path} cannot be read ({error}); delete it and call again to make it again"
            ) from error
        return found

    def remove_arrays(self, prefix: str) -> None:
        """Delete the arrays of the run whose names begin so."""
        for path in self.root.glob(f"{prefix}*.npy"):
            path.unlink(missing_ok=True)

    def mark_region(self, region: int) -> None:
        """Note that a region of the last pass is written."""
        with self._writing():
            (self.root / "regions" / f"{region:08d}").touch()

    def has_region(self, region: int) -> bool:
        """Return whether a region of the last pass is written."""
        return (self.root / "regions" / f"{region:08d}").exists()

    def finished_regions(self) -> set[int]:
        """Return the regions of the last pass that are written."""
        names = (entry.name for entry in os.scandir(self.root / "regions"))
        return {int(name) for name in names if name.isdigit()}
