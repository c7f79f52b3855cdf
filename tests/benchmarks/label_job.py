"""Time the label job: threshold + connected components over an OME-Zarr volume, with a pyramid.

    python tests/benchmarks/label_job.py IMAGE.zarr OUT.zarr 64,512,512 16

Prints seconds per step and the peak memory of the process. Compare it with other programs as whole
processes, in turn, on one machine: times of a shared machine drift by a third.
"""

import resource
import shutil
import sys
import time

import numpy as np
from scipy import ndimage

from patchworks import tile_process


def above_400(tile: np.ndarray) -> np.ndarray:
    return ndimage.label(tile > 400)[0]


def main(image: str, target: str, tile_shape: str, overlap: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    tile_process(
        image,
        above_400,
        tile_shape=tuple(int(n) for n in tile_shape.split(",")),
        overlap=int(overlap),
        write_to=target,
    )
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"total {time.perf_counter() - start:.2f} s, peak memory {peak_gib:.2f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
