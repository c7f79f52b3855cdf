"""Small, real weights for the real Cellpose, trained here on images that are made here.

Cellpose 3 gets its own network with fewer channels, Cellpose 4 a small U-Net in place of its
vision transformer, which cannot be had without a network. All else, training and evaluation, is
Cellpose's own. In an environment that holds Cellpose 3 or 4:

    python tests/small_cellpose.py FOLDER

writes ``FOLDER/small_cellpose_3`` or ``FOLDER/small_cellpose_4``, in some minutes on two cores.
"""

import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np

MAJOR = int(version("cellpose").split(".")[0])
NBASE = [8, 16, 32, 64]
DIAMETER = 30
"""With which neither version resizes the image: the networks are trained as the cells are."""


def make_cells(shape, seed, *, spacing=24, shading=None, fill=0.85):
    """Return a uint16 image of round cells of about 20 pixels, and their labels.

    `shading` multiplies the brightness of cells, an array that broadcasts to `shape`.
    """
    rng = np.random.default_rng(seed)
    axes = [np.arange(spacing // 2, n, spacing) for n in shape]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
    centres = centres + rng.uniform(-spacing / 4, spacing / 4, centres.shape)
    signal, labels = np.zeros(shape, "float32"), np.zeros(shape, "int32")
    for number, centre in enumerate(centres[rng.random(len(centres)) < fill], start=1):
        radii = rng.uniform(7.5, 11.5, len(shape))
        box = tuple(
            [
                slice(max(0, int(c - 14)), min(n, int(c + 15)))
                for c, n in zip(centre, shape, strict=True)
            ]
        )
        grid = np.ix_(*[np.arange(b.start, b.stop) for b in box])
        far = np.sqrt(sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)))
        inside = (far < 1) & (labels[box] == 0)
        labels[box][inside] = number
        bright = rng.uniform(0.35, 1) * (1.1 - 0.5 * far[inside] ** 2)
        signal[box][inside] = bright
    if shading is not None:
        signal *= shading
    noisy = 100 + rng.poisson(signal * 400 + 4) * 5 + rng.normal(0, 12, shape)
    return noisy.clip(0, 65535).astype("uint16"), labels


def let_torchvision_load():
    """Define what a torchvision built for another torch asks for; Cellpose never calls it."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        sys.modules.pop("torchvision", None)
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT = []


def install():
    """Put the small network in the place from which Cellpose's models take theirs."""
    if MAJOR == 4:
        let_torchvision_load()
    from cellpose import models

    if MAJOR == 3:
        models.CPnet = cpnet_class()
    else:
        models.CPSAM = unet_class()


class WithSmallNetwork:
    """A segmenter of Cellpose in whatever process, with the small network in its place."""

    def __init__(self, segmenter):
        self.segmenter = segmenter

    def at_scale(self, voxel_size, shape):
        return WithSmallNetwork(self.segmenter.at_scale(voxel_size, shape))

    def prepare(self, sample):
        return WithSmallNetwork(self.segmenter.prepare(sample))

    def __call__(self, tile):
        install()
        return self.segmenter(tile)


def cpnet_class():
    """Cellpose 3's own network with fewer channels, and a style as long as it is expected."""
    import torch
    from cellpose.resnet_torch import CPnet

    class SmallCPnet(CPnet):
        def __init__(self, nbase, *args, **kwargs):
            super().__init__([nbase[0], *NBASE], *args, **kwargs)

        def forward(self, x):
            y, style, downsampled = super().forward(x)
            return y, torch.nn.functional.pad(style, (0, 256 - style.shape[1])), downsampled

    return SmallCPnet


def unet_class():
    import torch
    from cellpose.vit import BaseModel
    from torch import nn

    def twice(n_in, n_out):
        layers = []
        for n in (n_in, n_out):
            layers += [nn.Conv2d(n, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
        return nn.Sequential(*layers)

    class SmallNet(BaseModel):
        backbone = "small"

        def __init__(self, dtype=torch.float32):
            super().__init__(dtype=dtype)
            widths = [3, *NBASE]
            self.down = nn.ModuleList([twice(a, b) for a, b in pairwise(widths)])
            ups = pairwise(reversed(NBASE))
            self.up = nn.ModuleList([twice(a + b, b) for a, b in ups])
            self.out = nn.Conv2d(NBASE[0], 3, 1)
            self.W2 = nn.Parameter(torch.zeros(1), requires_grad=False)  # by which 4 knows its own

        def forward(self, x):
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, 3 - x.shape[1]))
            seen = []
            for i, down in enumerate(self.down):
                x = down(x if i == 0 else nn.functional.max_pool2d(x, 2))
                seen.append(x)
            for up, before in zip(self.up, seen[-2::-1], strict=True):
                wide = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
                x = up(torch.cat([wide, before], 1))
            return self.out(x), torch.zeros((len(x), 256), device=x.device)

    return SmallNet


def train(folder, n_epochs=None):
    """Train the small network on 20 images of 128², and return the path of its weights."""
    import torch

    install()
    from cellpose import train as training

    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - Cellpose draws from it
    rng = np.random.default_rng(0)
    ramps = [np.linspace(*rng.uniform(0.3, 1, 2), 128)[None, :] for _ in range(20)]
    pairs = [make_cells((128, 128), 100 + i, shading=ramp) for i, ramp in enumerate(ramps)]
    images, labels = [image for image, _ in pairs], [label for _, label in pairs]
    if MAJOR == 3:
        net = cpnet_class()([2, *NBASE], 3, sz=3)
        own = {"channels": [0, 0], "learning_rate": 0.01, "n_epochs": n_epochs or 150, "bsize": 112}
    else:
        net = unet_class()()
        own = {"learning_rate": 3e-3, "n_epochs": n_epochs or 250, "bsize": 128}
    found = training.train_seg(
        net, images, labels, batch_size=8, save_path=str(folder), weight_decay=1e-5, rescale=False,
        model_name=f"small_cellpose_{MAJOR}", min_train_masks=1, save_every=10_000, **own,
    )  # fmt: skip
    return Path(found[0] if isinstance(found, tuple) else found)


def small_weights(folder):
    """Return the path of the small weights in a folder, trained if they are not there."""
    path = Path(folder) / "models" / f"small_cellpose_{MAJOR}"
    return path if path.exists() else train(folder)


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO)
    print(small_weights(sys.argv[1]))
