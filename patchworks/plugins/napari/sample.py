"""A sample image for napari's File > Open Sample, made on the spot."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

SHAPE = (32, 256, 256)
N_NUCLEI = 120
SPACING = (0.5, 0.25, 0.25)
"""Micrometers in z, y and x."""


def nuclei() -> list[tuple[Any, dict[str, Any], str]]:
    """Return a stack of round nuclei, some of which touch, as napari's readers return a layer.

    uint16, ``(z, y, x)``, 0.5 x 0.25 x 0.25 micrometers; the same at every call.
    """
    rng = np.random.default_rng(4)
    sizes = np.array(SHAPE)[:, None]
    places = (rng.uniform(0.04, 0.96, (3, N_NUCLEI)) * sizes).astype(int)
    seeds = np.zeros(SHAPE, np.float32)
    seeds[tuple(places)] = 1
    distance = ndimage.distance_transform_edt(seeds == 0, sampling=SPACING)
    bright = ndimage.gaussian_filter((distance < 2.2).astype(np.float32), (1, 2, 2))
    texture = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE).astype(np.float32), (1, 2, 2))
    counts = rng.poisson(40 + 900 * bright * (1 + 1.5 * texture).clip(0.4))
    options = {
        "name": "nuclei",
        "scale": SPACING,
        "units": ["micrometer"] * 3,
        "axis_labels": ["z", "y", "x"],
        "contrast_limits": (0, 1200),
    }
    return [(counts.astype(np.uint16), options, "image")]
