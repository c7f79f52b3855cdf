"""What a tile costs beside its function: n x n tiles of 16x16 pixels.

python tests/benchmarks/tiny_tiles.py 64
"""

import sys
import time

import dask.array as da
import numpy as np

from patchworks import tile_process


def ones(tile: np.ndarray) -> np.ndarray:
    return (tile > 0).astype("int32")


def main(n: int) -> None:
    image = np.zeros((n * 16, n * 16), "uint16")
    image[::7, ::5] = 1
    start = time.perf_counter()
    tile_process(da.from_array(image, chunks=(16, 16)), ones, overlap=0, progress=False)
    seconds = time.perf_counter() - start
    print(f"{n * n} tiles, {seconds:.2f} s, {seconds / n / n * 1e3:.2f} ms a tile")


if __name__ == "__main__":
    main(int(sys.argv[1]))
