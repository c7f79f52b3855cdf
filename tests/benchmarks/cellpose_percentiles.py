"""Percentiles of an image by its sample and by its pyramid levels, against those of all voxels.

    PYTHONPATH=. python tests/benchmarks/cellpose_percentiles.py NUCLEI.tif

tiles the nuclei to a field of 4096², each tile turned and with a brightness of its own, a third of
them empty, and prints how far the difference of 99th and 1st percentile is off.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from tifffile import imread

from patchworks.geometry.box import Box
from patchworks.plan import describe_image
from patchworks.plugins.ome_zarr import to_ome_zarr


def field(nuclei, n=8):
    rng = np.random.default_rng(0)
    base = np.percentile(nuclei, 1)
    rows = []
    for _ in range(n):
        row = []
        for _ in range(n):
            turned = np.rot90(nuclei, rng.integers(4)).astype(float)
            brightness = rng.uniform(0.3, 1) if rng.random() > 1 / 3 else 0
            noise = rng.normal(50, 20, turned.shape).clip(0, 100)
            row.append(base + ((turned - base) * brightness).clip(0) + noise)
        rows.append(np.hstack(row))
    return np.vstack(rows).astype("uint16")


def main():
    image = field(imread(sys.argv[1]))
    whole = np.percentile(image, (1, 99))
    print(f"whole image {image.shape}: {whole[0]:.0f} to {whole[1]:.0f}")
    with tempfile.TemporaryDirectory() as folder:
        path = to_ome_zarr(image, Path(folder) / "field.zarr", axes="yx", n_levels=4)
        source = describe_image(str(path))
        parts = {f"sample of {n} voxels": source.sample(n) for n in (2**22, 2**18)}
        for level, coarse in enumerate(source.coarser_levels(), start=1):
            parts[f"level {level}"] = coarse.read(Box.whole(coarse.shape))
    for name, voxels in parts.items():
        low, high = np.percentile(voxels, (1, 99))
        off = (high - low) / (whole[1] - whole[0]) - 1
        print(f"{name:<26} {low:.0f} to {high:.0f}, high - low off by {off:+.1%}")


if __name__ == "__main__":
    main()
