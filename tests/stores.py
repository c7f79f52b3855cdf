"""Small images and stores for tests, and what lies in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy import ndimage

KINDS = {"t": "time", "c": "channel"}


def blobs(shape: tuple[int, ...], seed: int = 0, sigma: float = 2.0) -> np.ndarray:
    """Return a uint8 image of bright blobs on 0, many of which cross any seam."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, sigma, mode="reflect")
    smooth /= smooth.std()
    return np.where(smooth > 0.8, np.clip(100 + 50 * smooth, 1, 255), 0).astype("uint8")


def components(tile: np.ndarray) -> np.ndarray:
    """Return the face-connected components of a tile: a function that is local."""
    return ndimage.label(tile > 0)[0]


def counting(folder: Path, fn=components):
    """Return `fn`, leaving a file in `folder` per call: counts in all processes and sessions."""
    import uuid

    folder.mkdir(parents=True, exist_ok=True)

    def counted(tile):
        (folder / uuid.uuid4().hex).touch()
        return fn(tile)

    return counted


def n_calls(folder: Path) -> int:
    """Return how often a function made by `counting` was called."""
    return len(list(folder.iterdir())) if folder.exists() else 0


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every file below a folder with its bytes, and every folder with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def files_now(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder that match, while a run makes and removes folders in it.

    `Path.rglob` raises where a folder goes between being found and being read.
    """
    found = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    return [path for path in found if path.match(pattern)]


def chunk_files(folder: Path) -> list[str]:
    """Return the files below a folder that hold voxels."""
    metadata = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
    return [name for name, held in contents(folder).items() if held is not None
            and Path(name).name not in metadata]  # fmt: skip


def ome_zarr(
    path: Path | str,
    levels: Sequence[np.ndarray],
    *,
    version: str = "0.5",
    axes: str = "zyx",
    scale: Sequence[float] | None = None,
    translation: Sequence[float] | None = None,
    unit: str | None = "micrometer",
    chunks: tuple[int, ...] | None = None,
    attributes: dict[str, Any] | None = None,
) -> str:
    """Write an OME-Zarr image of these levels; the scale of a level is told by its shape."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    axes = axes[-levels[0].ndim :]
    scale = scale or (1.0,) * len(axes)
    datasets = []
    for i, level in enumerate(levels):
        fitted = tuple(min(c, n) for c, n in zip(chunks or level.shape, level.shape, strict=True))
        extra = {} if version == "0.4" else {"dimension_names": list(axes)}
        array = group.create_array(
            str(i), shape=level.shape, dtype=level.dtype, chunks=fitted, **extra
        )
        array[...] = level
        factors = [round(a / b) for a, b in zip(levels[0].shape, level.shape, strict=True)]
        steps: list[dict[str, Any]] = [
            {"type": "scale", "scale": [s * f for s, f in zip(scale, factors, strict=True)]}
        ]
        if translation:
            steps.append({"type": "translation", "translation": list(translation)})
        datasets.append({"path": str(i), "coordinateTransformations": steps})
    described = []
    for name in axes:
        axis = {"name": name, "type": KINDS.get(name, "space")}
        if unit and axis["type"] == "space":
            axis["unit"] = unit
        described.append(axis)
    multiscale = {"name": "image", "axes": described, "datasets": datasets}
    if version == "0.4":
        ome: dict[str, Any] = {"multiscales": [{"version": "0.4", **multiscale}]}
    else:
        ome = {"ome": {"version": version, "multiscales": [multiscale]}}
    group.attrs.update({**ome, **(attributes or {})})
    return str(path)
