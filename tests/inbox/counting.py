"""A slow segmentation function that notes each of its calls: workers import it."""

import os
import time
from pathlib import Path

import numpy as np
from scipy import ndimage


def segment(tile: np.ndarray) -> np.ndarray:
    """Label what is bright, and note the tile by its brightest voxel."""
    with Path(os.environ["CALLS_OF_THE_TEST"]).open("a") as calls:
        calls.write(f"{int(tile.max())}\n")
    time.sleep(2)
    return ndimage.label(tile > 1000)[0]
