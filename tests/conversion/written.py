"""What lies in a converted store: its metadata, its voxels, and whether the two agree."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from patchworks.steps.pyramid import pool_image

ORDER = "tczyx"
SPACE_UNITS = {"micrometer", "nanometer", "millimeter", "meter", "angstrom"}
TIME_UNITS = {"second", "millisecond", "minute"}


def ome(path: Path | str) -> dict[str, Any]:
    """Return the OME-NGFF part of a group's attributes, whichever version it has."""
    attributes = dict(zarr.open_group(str(path), mode="r").attrs)
    return attributes.get("ome", attributes)


def multiscale(path: Path | str) -> dict[str, Any]:
    return ome(path)["multiscales"][0]


def arrays(path: Path | str) -> list[zarr.Array]:
    """Return the level arrays that the metadata name."""
    group = zarr.open_group(str(path), mode="r")
    return [group[dataset["path"]] for dataset in multiscale(path)["datasets"]]


def levels(path: Path | str) -> list[np.ndarray]:
    """Return the voxels of all levels."""
    return [array[...] for array in arrays(path)]


def axes(path: Path | str) -> str:
    return "".join([axis["name"] for axis in multiscale(path)["axes"]])


def units(path: Path | str) -> list[str | None]:
    return [axis.get("unit") for axis in multiscale(path)["axes"]]


def placed(path: Path | str) -> list[tuple[list[float], list[float]]]:
    """Return scale and translation of every level; a missing translation is 0."""
    found = []
    for dataset in multiscale(path)["datasets"]:
        steps = dataset["coordinateTransformations"]
        assert [step["type"] for step in steps] in (["scale"], ["scale", "translation"])
        held = {step["type"]: step[step["type"]] for step in steps}
        found.append((held["scale"], held.get("translation", [0.0] * len(held["scale"]))))
    return found


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays have the same voxels and dtype; NaN equals NaN."""
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def check_pyramid(path: Path | str, first: np.ndarray, downscale: int, pool=pool_image) -> None:
    """Check that level 0 is `first`, and every other level what `pool` makes of the one above."""
    found = levels(path)
    assert equal(found[0], first)
    factor = (1,) * (first.ndim - 2) + (downscale, downscale)
    for above, below in pairwise(found):
        assert equal(below, pool(above, factor))
    scale, origin = placed(path)[0]
    for level, (scale_here, origin_here) in enumerate(placed(path)):
        factors = [f**level for f in factor]
        np.testing.assert_allclose(scale_here, np.multiply(scale, factors), rtol=1e-12)
        shifted = np.add(origin, np.multiply(scale, np.subtract(factors, 1)) / 2)
        np.testing.assert_allclose(origin_here, shifted, rtol=1e-12, atol=1e-12)


def check_beyond_validators(path: Path | str) -> None:
    """Check what neither the published models nor the schemas look at."""
    found, described = arrays(path), multiscale(path)
    names = axes(path)
    assert list(names) == sorted(names, key=ORDER.index)
    for axis in described["axes"]:
        known = {"space": SPACE_UNITS, "time": TIME_UNITS}.get(axis["type"], set())
        assert axis.get("unit") is None or axis["unit"] in known
    first, (scale, _) = found[0], placed(path)[0]
    for array, (scale_here, origin_here) in zip(found, placed(path), strict=True):
        assert array.dtype == first.dtype
        assert array.ndim == len(names) == len(scale_here) == len(origin_here)
        for n, m, s, here in zip(first.shape, array.shape, scale, scale_here, strict=True):
            assert s > 0
            assert np.ceil(n * s / here - 1e-9) == m
        if array.metadata.zarr_format == 3:
            assert list(array.metadata.dimension_names or names) == list(names)
    channels = ome(path).get("omero", {}).get("channels")
    if channels is not None:
        shape = dict(zip(names, first.shape, strict=True))
        assert len(channels) == shape.get("c", 1)
        for channel in channels:
            assert len(channel["color"]) == 6
            assert set(channel["color"]) <= set("0123456789ABCDEF")
            window = channel["window"]
            assert window["min"] <= window["start"] < window["end"] <= window["max"]


def leftovers(folder: Path) -> list[str]:
    """Return the hidden files and folders that lie beside a target."""
    metadata = {".zgroup", ".zattrs", ".zarray"}
    names = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return [name for name in names if name not in metadata]
