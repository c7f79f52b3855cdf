"""Stores of any size that take no space: metadata, and hardly a chunk."""

from pathlib import Path
from typing import Any

import zarr

KINDS = {"t": "time", "c": "channel"}


def sparse_store(
    path: Path, shape: tuple[int, ...], axes: str, *, n_levels: int = 5, chunk: int = 256
) -> Path:
    """Write an OME-Zarr image of uint16, and a label image in it, with one object in the middle."""
    group = zarr.open_group(path, mode="w")
    group.attrs["ome"] = _written(group, shape, axes, n_levels, chunk, "uint16")
    names = {"version": "0.5", "labels": ["cells"]}
    cells = group.create_group("labels", attributes={"ome": names}).create_group("cells")
    kept = [axes.index(axis) for axis in axes if axis != "c"]
    spatial = tuple([shape[axis] for axis in kept])
    axes = axes.replace("c", "")
    written = _written(cells, spatial, axes, n_levels, chunk, "uint32")
    cells.attrs["ome"] = {**written, "image-label": {}}
    for level in range(n_levels):
        middle = [n // 2 for n in spatial[:-2]]
        cells[str(level)][(*middle, slice(0, 512 >> level), slice(0, 512 >> level))] = 7
    return path


def _written(
    group: zarr.Group, shape: tuple[int, ...], axes: str, n_levels: int, chunk: int, dtype: str
) -> dict[str, Any]:
    datasets = []
    for level in range(n_levels):
        extents = (*shape[:-2], shape[-2] >> level, shape[-1] >> level)
        chunks = [1 if axis in "tc" else 16 if axis == "z" else chunk for axis in axes]
        group.create_array(
            str(level), shape=extents, dtype=dtype,
            chunks=tuple(map(min, chunks, extents)), dimension_names=list(axes),
        )  # fmt: skip
        size = {"z": 1.0, "y": 0.2 * 2**level, "x": 0.2 * 2**level}
        moved = {"y": 0.1 * (2**level - 1), "x": 0.1 * (2**level - 1)}
        steps = [
            {"type": "scale", "scale": [size.get(axis, 1.0) for axis in axes]},
            {"type": "translation", "translation": [moved.get(axis, 0.0) for axis in axes]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    described = [
        {"name": a, "type": KINDS.get(a, "space")} | ({} if a in KINDS else {"unit": "micrometer"})
        for a in axes
    ]
    multiscale = {"name": "big", "axes": described, "datasets": datasets}
    return {"version": "0.5", "multiscales": [multiscale]}
