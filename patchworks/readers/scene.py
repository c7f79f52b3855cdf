"""What a file says of one of its images, and the interface through which its voxels are read."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from patchworks.errors import ImageReadError, PatchworksError, SourceNotFoundError
from patchworks.fingerprint import digest
from patchworks.geometry.box import Box
from patchworks.io.ngff import Channel

__all__ = ["ORDER", "Channel", "Scene", "SceneReader", "vendor_errors"]

ORDER = "tczyx"
"""The order of axes in everything that is written."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image of a file: what can be known without reading voxels.

    Parameters
    ----------
    name : str
        Name of the image in the file; empty if it has none.
    axes : str
        Axes, a part of ``"tczyx"`` in this order, with y and x always among them.
    shapes : tuple of tuple of int
        Shape per level of the pyramid that the file holds; only that of level 0 if it holds none.
    dtype : numpy.dtype
        As read.
    block : tuple of int
        Smallest box that the file decodes at once, per axis, on a grid that starts at 0. An axis
        along which any part can be read at no extra cost has 1.
    spacing : mapping of str to (float, str or None)
        Distance between voxels and its unit as OME-NGFF spells it (``"micrometer"``, ``"second"``),
        for the axes where the file says it, and only for those.
    origin : mapping of str to float
        Position of the first voxel's centre in the unit of `spacing`, where the file says it.
    channels : tuple of Channel
        One per channel if the file says anything of them, else empty.
    files : tuple of Path
        All files that hold the image: what its identity is taken from.
    pooled : bool
        Whether a voxel of a lower level of the file's own pyramid stands for all voxels of its
        cell, and so lies in the cell's middle; False where it is the first of them.
    """

    name: str
    axes: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: np.dtype
    block: tuple[int, ...]
    spacing: Mapping[str, tuple[float, str | None]] = field(default_factory=dict)
    origin: Mapping[str, float] = field(default_factory=dict)
    channels: tuple[Channel, ...] = ()
    files: tuple[Path, ...] = ()
    pooled: bool = True

    def __post_init__(self) -> None:
        known = [a for a in ORDER if a in self.axes]
        if list(self.axes) != known or not {"y", "x"} <= set(self.axes):
            raise ValueError(f"axes {self.axes!r}: expected y and x and others, ordered as tczyx")
        if len(self.block) != len(self.axes) or any(len(s) != len(self.axes) for s in self.shapes):
            raise ValueError(f"axes {self.axes!r}, shapes {self.shapes}, block {self.block}")
        n_channels = dict(zip(self.axes, self.shape, strict=True)).get("c", 1)
        if self.channels and len(self.channels) != n_channels:
            raise ValueError(f"{len(self.channels)} channels described, {n_channels} in the shape")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of level 0, in voxels."""
        return self.shapes[0]


class SceneReader(ABC):
    """One image of a file, to be read box by box, by several threads at once.

    A reader travels between processes as its path and index, and opens the file anew there.

    Parameters
    ----------
    path : Path
        The file.
    index : int
        Which of its images.
    """

    format: str = "image"
    """What messages call the format."""

    def __init__(self, path: Path, index: int = 0) -> None:
        self.path = path
        self.index = index

    @property
    def name(self) -> str:
        """What messages call the image."""
        return str(self.path)

    @property
    def crosses_processes(self) -> bool:
        """Whether other processes can read the image too."""
        return True

    @property
    def is_labels(self) -> bool:
        """Whether the voxels are known to be labels, of which no mean must be made."""
        return False

    def identity(self) -> str:
        """Return a digest that changes when one of the image's files is written anew."""
        files = []
        for file in self.scene.files:
            with vendor_errors(str(file), self.format, ImageReadError):
                files.append((file.name, file.stat().st_size, file.stat().st_mtime_ns))
        return digest(self.format, self.index, self.scene.axes, files)

    def has_changed(self, identity: str) -> bool:
        """Return whether a file was written anew since the image had that identity.

        Voxels are not read for it; OSError is raised where the files cannot be looked at.
        """
        return self.identity() != identity

    @classmethod
    def scene_names(cls, path: Path) -> tuple[str, ...]:
        """Return the names of the images in a file; ``""`` for one without.

        Raises
        ------
        SourceNotFoundError
            If the file cannot be read in this format.
        """
        with vendor_errors(str(path), cls.format, SourceNotFoundError):
            return cls._scene_names(path)

    @functools.cached_property
    def scene(self) -> Scene:
        """What the file says of the image.

        Raises
        ------
        SourceNotFoundError
            If the file cannot be read in this format.
        """
        with vendor_errors(self.name, self.format, SourceNotFoundError):
            return self._describe()

    def read(self, box: Box, level: int = 0) -> np.ndarray:
        """Return the voxels of `box`, in the axes of the scene.

        Parameters
        ----------
        box : Box
            In voxels of `level`, inside the image.
        level : int
            Level of the file's own pyramid.

        Raises
        ------
        ImageReadError
            If that part of the file cannot be decoded.
        """
        scene = self.scene
        with vendor_errors(self.name, f"{self.format}, {box.start} to {box.stop}", ImageReadError):
            voxels = self._read(box, level)
            if voxels.shape != box.shape or voxels.dtype != scene.dtype:
                raise ValueError(
                    f"got {voxels.dtype} {voxels.shape}, expected {scene.dtype} {box.shape}"
                )
        return voxels

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "index": self.index}

    @abstractmethod
    def close(self) -> None:
        """Close the file; it is opened again when read again."""

    @classmethod
    @abstractmethod
    def _scene_names(cls, path: Path) -> tuple[str, ...]: ...

    @abstractmethod
    def _describe(self) -> Scene: ...

    @abstractmethod
    def _read(self, box: Box, level: int) -> np.ndarray: ...


@contextmanager
def vendor_errors(name: str, what: str, kind: type[PatchworksError]) -> Iterator[None]:
    """Turn whatever a vendor's library raises into an error of our own that names the file."""
    try:
        yield
    except (PatchworksError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise anything
        unread = kind(
            f"{name}: cannot be read as {what} ({type(error).__name__}: {error}); the file may be "
            f"damaged or cut off: open it in the vendor's own program, or copy it anew"
        )
        unread.heals = isinstance(error, OSError)  # what cannot be decoded stays so
        raise unread from error
