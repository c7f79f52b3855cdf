"""Touching cells and a watershed to find them: the fidelity workload (tiled against whole).

`make(shape, pitch, seed)` gives a uint16 image of Gaussian cells about one pitch apart, with no
background between many of them. `segmenter(pitch)` gives a deterministic, nearly local instance
segmentation; its reach is about ``2 * pitch``. `agreement(whole, tiled, iou)` gives object F1
between two label images; `same_partition` says whether they differ only in numbering.
"""

import numpy as np
from scipy import ndimage


def make(shape, pitch, seed=1, spread=0.46):
    rng = np.random.default_rng(seed)
    axes = [np.arange(pitch // 2, n, pitch) for n in shape]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
    centres = centres + rng.uniform(-pitch * 0.25, pitch * 0.25, centres.shape)
    image = np.zeros(shape, "float32")
    for centre in centres:
        box = tuple(slice(max(0, int(c) - pitch), int(c) + pitch + 1) for c in centre)
        grid = np.ix_(
            *[np.arange(b.start, min(b.stop, n)) for b, n in zip(box, shape, strict=True)]
        )
        squared = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
        image[box] = np.maximum(image[box], np.exp(-squared / (pitch * spread) ** 2))
    image += rng.normal(0, 0.02, shape).astype("float32")
    return (np.clip(image, 0, None) * 1000).astype("uint16")


def segmenter(pitch):
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    def segment(tile):
        smooth = ndimage.gaussian_filter(tile.astype("float32"), 2, truncate=3)
        peaks = peak_local_max(
            smooth, min_distance=max(4, pitch // 4), threshold_abs=250, exclude_border=False
        )
        markers = np.zeros(tile.shape, "int32")
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        return watershed(-smooth, markers, mask=smooth > 100).astype("int32")

    return segment


def agreement(whole, tiled, iou=0.9):
    a, b = _ranked(whole), _ranked(tiled)
    both = (a > 0) & (b > 0)
    pairs, shared = np.unique(np.stack([a[both], b[both]], 1), axis=0, return_counts=True)
    area_a, area_b = np.bincount(a), np.bincount(b)
    ious = shared / (area_a[pairs[:, 0]] + area_b[pairs[:, 1]] - shared)
    n_a, n_b = int((area_a[1:] > 0).sum()), int((area_b[1:] > 0).sum())
    return {"f1": 2 * int((ious >= iou).sum()) / max(1, n_a + n_b), "whole": n_a, "tiled": n_b}


def _ranked(labels):
    if labels.min() > 0:
        return labels.reshape(-1)
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def same_partition(whole, tiled):
    if whole.shape != tiled.shape or ((whole > 0) != (tiled > 0)).any():
        return False
    inside = whole > 0
    pairs = np.unique(np.stack([whole[inside], tiled[inside]], 1), axis=0)
    return len(pairs) == len(np.unique(whole[inside])) == len(np.unique(tiled[inside]))
