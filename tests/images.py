"""Images and stores that several test modules use."""

from pathlib import Path

import numpy as np
import zarr
from scipy import ndimage


def smooth_noise(shape: tuple[int, ...] = (24, 90, 70), seed: int = 5) -> np.ndarray:
    """Return smooth noise, uint16: objects of all sizes above 1100."""
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    return (1000 + 8000 * ndimage.gaussian_filter(noise, 2.5)).clip(0).astype("uint16")


def above_1100(tile: np.ndarray) -> np.ndarray:
    return ndimage.label(tile > 1100)[0]


def ome_zarr(
    path: Path, image: np.ndarray, version: str = "0.5", axes: str = "zyx", n_levels: int = 1
) -> Path:
    """Write an OME-Zarr image with 2.0 µm in z and 0.5 µm in y and x."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    kinds = {"t": "time", "c": "channel"}
    datasets, size = [], {"t": 1.0, "c": 1.0, "z": 2.0, "y": 0.5, "x": 0.5}
    for level in range(n_levels):
        data = image[..., :: 2**level, :: 2**level]
        chunks = tuple(min(n, 32) for n in data.shape)
        more = {} if version == "0.4" else {"dimension_names": list(axes)}
        array = group.create_array(
            str(level), shape=data.shape, chunks=chunks, dtype=data.dtype, **more
        )
        array[...] = data
        scale = [size[a] * (2**level if a in "yx" else 1) for a in axes]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    multiscale = {
        "name": "image",
        "axes": [
            {"name": a, "type": kinds.get(a, "space")}
            | ({"unit": "micrometer"} if a in "zyx" else {})
            for a in axes
        ],
        "datasets": datasets,
    }
    if version == "0.4":
        group.attrs.put({"multiscales": [{"version": "0.4", **multiscale}]})
    else:
        group.attrs.put({"ome": {"version": "0.5", "multiscales": [multiscale]}})
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
