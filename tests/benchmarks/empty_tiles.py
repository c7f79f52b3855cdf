"""Empty tiles: what the threshold does to real images, and what a maximum map spares.

    python tests/benchmarks/empty_tiles.py thresholds DATA
    python tests/benchmarks/empty_tiles.py volume FULL.zarr SPARSE.zarr [--rounds 3]

DATA is a folder of microscopy files. A tile is lost if it is called empty although an object of a
segmentation of the whole image lies in it: Otsu's threshold on the smoothed image, a threshold over
the local background (which finds dim objects), watershed over that one, and drawn masks where there
are some. Times of the volumes are CPU seconds of all threads: those of the wall depend on what else
the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

from patchworks import estimate_empty_tiles
from patchworks.errors import PatchworksError
from patchworks.geometry.box import Box
from patchworks.geometry.grid import TileGrid
from patchworks.readers.registry import open_reader
from patchworks.segmenters import otsu_threshold
from patchworks.steps.background import find_background

MASKS = {
    "stardist_img2d.tif": "stardist_mask2d.tif",
    "stardist_img3d.tif": "stardist_mask3d.tif",
    "ctc_N2DL-HeLa_02_t0-2_img.tif": "ctc_N2DL-HeLa_02_t0-2_seg.tif",
}
HALO = 8
"""Voxels read around each tile: more than the functions below look around them."""

SMALLEST = 30
"""Voxels of an object at least, in the segmentations made here."""

MOST_VOXELS = 2**24


def images(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Yield the images of the files of a folder, channel by channel, and masks where there are."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".tif", ".tiff", ".ims", ".czi", ".nd2", ".lif"):
            continue
        if path.name in MASKS.values():
            continue
        try:
            reader = open_reader(path)
        except PatchworksError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            continue
        axes, shape = reader.scene.axes, reader.scene.shape
        whole = reader.read(Box.whole(shape), 0)
        reader.close()
        masks = tifffile.imread(folder / MASKS[path.name]) if path.name in MASKS else None
        picked = [axes.index(a) for a in axes if a in "tc"]
        for at in np.ndindex(*[shape[a] for a in picked]):
            index: list[int | slice] = [slice(None)] * len(shape)
            for axis, i in zip(picked, at, strict=True):
                index[axis] = i
            image = whole[tuple(index)].squeeze()
            is_series = masks is not None and masks.ndim > image.ndim
            mask = masks[at[0]] if is_series else masks
            yield f"{path.name}{list(at) if at else ''}", image[..., :2048, :2048], mask


def segmentations(image: np.ndarray) -> dict[str, np.ndarray]:
    """Return labels of the whole image, by several functions."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1)
    wide = [min(n, 15) if n < 64 else 51 for n in image.shape]
    noise = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    local = smooth > ndimage.uniform_filter(smooth, wide) + max(3 * noise, 1)
    found = {"otsu": large(smooth > otsu_threshold(smooth)), "local": large(local)}
    peaks = ndimage.maximum_filter(smooth, 9) == smooth
    seeds, _ = ndimage.label(peaks & local)
    height = np.interp(-smooth, (-smooth.max(), -smooth.min()), (0, 65535)).astype("uint16")
    flooded = ndimage.watershed_ift(height, seeds.astype(np.int32))
    return found | {"watershed": np.where(found["local"] > 0, flooded, 0)}


def large(mask: np.ndarray) -> np.ndarray:
    """Return the components of a mask that are no specks."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found: np.ndarray = np.where(sizes[labels] >= SMALLEST, labels, 0)
    return found


def thresholds(folder: Path) -> None:
    """Print a line for each image."""
    print("| image | shape | Otsu | threshold | tiles | occupied | lost: Otsu | local | watershed "
          "| masks |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    lost = 0
    for name, image, mask in images(folder):
        tile = tuple([min(n, 16 if axis + 3 == image.ndim else 32)
                      for axis, n in enumerate(image.shape)])  # fmt: skip
        halo = [min(HALO, t) if n > t else 0 for n, t in zip(image.shape, tile, strict=True)]
        found = estimate_empty_tiles(image, tile, overlap=halo)
        grid = TileGrid.regular(image.shape, tile, (0,) * image.ndim)
        labels = segmentations(image) | ({} if mask is None else {"masks": mask})
        cells = []
        for way in ("otsu", "local", "watershed", "masks"):
            if way not in labels:
                cells.append("-")
                continue
            held = np.array([labels[way][t.core.slices].any() for t in grid])
            n_lost = int(np.count_nonzero(held & ~found["occupied"].ravel()))
            lost += n_lost
            cells.append(f"{n_lost} of {np.count_nonzero(held)}")
        numbers = [f"{otsu_threshold(image):g}", f"{found['threshold']:g}"]
        numbers += [str(found["n_tiles"]), str(found["n_occupied"])]
        row = [name, "x".join(map(str, image.shape)), *numbers, *cells]
        print("| " + " | ".join(row) + " |", flush=True)
    print(f"\ntiles with objects that were called empty: {lost}")
    rng = np.random.default_rng(0)
    noise = rng.normal(100, 10, 2**20)
    hot = np.where(rng.random(noise.size) < 1e-4, 65535, noise)
    cells_ = np.where(rng.random(noise.size) < 0.05, rng.normal(900, 100, noise.size), noise)
    made = {
        "zeros": np.zeros(10**6),
        "noise alone": noise,
        "noise and hot pixels": hot,
        "cells": cells_,
        "cells and hot pixels": np.where(hot > 60000, hot, cells_),
        "all signal": rng.normal(3000, 400, noise.size),
        "dim and bright cells": np.where(rng.random(noise.size) < 0.02, 250, cells_),
        "saturated": np.full(10**6, 65535),
    }
    for name, values in made.items():
        sample = values.clip(0, 65535).astype("uint16")
        found_ = find_background(sample)
        share = (sample > found_.threshold).mean()
        print(f"{name}: Otsu {otsu_threshold(sample):g}, threshold {found_.threshold:g} "
              f"({share:.2%} above; {found_.said})")  # fmt: skip


TILES = ("64,512,512", "128,256,256")


def cpu_seconds(image: str, skip: str, tile: str) -> tuple[float, float, str]:
    """Run a job; return CPU seconds, wall seconds, and what it says of its tiles."""
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    program = [sys.executable, str(Path(__file__).with_name("jobs.py")), "label", image, "auto"]
    done = subprocess.run(
        [*program, skip, tile], check=True, capture_output=True, text=True, env=env
    )
    said = done.stderr.splitlines()[-1].split("(", 1)[1].split(";")[0]
    found = json.loads(done.stdout.splitlines()[-1])
    return found["cpu"], found["seconds"], said


def volume(full: str, sparse: str, rounds: int) -> None:
    """Print what leaving out empty tiles costs and spares, by medians of ratios in one round."""
    for tile in TILES:
        found: dict[str, list[float]] = {}
        walls: dict[str, list[float]] = {}
        said = {}
        for _ in range(rounds):
            shutil.rmtree(f"{sparse}.maxima", ignore_errors=True)
            runs = {"full": (full, ""), "all tiles": (sparse, ""),
                    "skip, no map": (sparse, "skip"), "skip, map": (sparse, "skip")}  # fmt: skip
            for name, (image, skip) in runs.items():
                cpu, wall, said[name] = cpu_seconds(image, skip, tile)
                found.setdefault(name, []).append(cpu)
                walls.setdefault(name, []).append(wall)
        for name, seconds in found.items():
            ratio = np.median(np.array(seconds) / found["full"])
            wall_ratio = np.median(np.array(walls[name]) / walls["full"])
            print(f"{tile} {name}: CPU {np.median(seconds):.2f} s ({ratio:.2f} of full), wall "
                  f"{np.median(walls[name]):.2f} s ({wall_ratio:.2f}); {said[name]}")  # fmt: skip


def main() -> None:
    """Print the table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["thresholds", "volume"])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "thresholds":
        thresholds(Path(options.paths[0]))
    else:
        volume(*options.paths, options.rounds)


if __name__ == "__main__":
    main()
