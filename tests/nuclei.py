"""Round nuclei of different brightness, many of which touch, and their labels: to train networks.

`make(shape, seed)` gives a uint16 image and its true labels; the light falls off towards one
corner, as in real images, so that percentiles of one tile are not those of another.
"""

import numpy as np
from scipy import ndimage

PITCH = 19


def make(shape, seed, pitch=PITCH):
    rng = np.random.default_rng(seed)
    labels, n = np.zeros(shape, "int32"), 0
    radii = rng.uniform(0.29, 0.48, 10**6) * pitch
    axes = [np.arange(pitch // 2, extent - pitch // 3, pitch) for extent in shape]
    for centre in np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape)):
        middle = centre + rng.uniform(-0.16, 0.16, len(shape)) * pitch
        n += 1
        box = tuple(slice(max(0, int(m) - pitch), int(m) + pitch) for m in middle)
        grid = np.ogrid[
            tuple(slice(b.start, min(b.stop, s)) for b, s in zip(box, shape, strict=True))
        ]
        squared = sum((g - m) ** 2 for g, m in zip(grid, middle, strict=True))
        labels[box][(squared < radii[n] ** 2) & (labels[box] == 0)] = n
    light = 1 - 0.6 * np.add.outer(*[np.linspace(0, 0.5, s) for s in shape[-2:]])
    image = (labels > 0) * (500 + 400 * rng.random(n + 1)[labels])
    image = ndimage.gaussian_filter(image, 1.0) * light + 100 + rng.normal(0, 20, shape)
    return image.clip(0).astype("uint16"), labels
