"""Cellpose for real, tiled against whole: object F1 with global and with per-tile normalisation.

In an environment that holds Cellpose 3 or 4 and what patchworks needs (`docs/cellpose.md`):

    PYTHONPATH=. python tests/benchmarks/cellpose_fidelity.py FOLDER [--nuclei FILE.tif]

trains the small network of `tests/small_cellpose.py` into FOLDER, unless its weights are there, and
prints for each image how many objects Cellpose's own evaluation of the whole image and tiles have
in common (intersection over union of 0.9 and more).
"""

import argparse
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tifffile import imread

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_cellpose import DIAMETER, WithSmallNetwork, install, make_cells, small_weights

from patchworks import tile_process
from patchworks.fidelity import compare_objects
from patchworks.plugins.cellpose import cellpose_fn

TILE = 192


def uneven(shape, seed=7):
    """Return cells whose brightness falls to a sixth over the field, a part without any, truth."""
    shading = np.linspace(1, 0.16, shape[1])[None, :] * np.ones(shape)
    shading[shape[0] // 3 : 3 * shape[0] // 4, shape[1] // 2 :] = 0
    image, truth = make_cells(shape, seed, shading=shading)
    return image, np.where(shading > 0, truth, 0)


def own_whole(image, weights, *, bfloat16=True, **keywords):
    """Return the labels of Cellpose's own evaluation of an image: no line of patchworks in it."""
    import torch
    from cellpose.models import CellposeModel

    install()
    is_3 = version("cellpose").startswith("3")
    own, half = ({"channels": [0, 0]}, {}) if is_3 else ({}, {"use_bfloat16": bfloat16})
    device = torch.device("cpu")
    model = CellposeModel(gpu=False, pretrained_model=str(weights), device=device, **half)
    everything = {"normalize": True, "norm3D": True, "percentile": [1.0, 99.0], "lowhigh": None}
    return model.eval(image, normalize=everything, diameter=DIAMETER, **own, **keywords)[0]


def report(name, image, truth, weights, *, overlap, bfloat16):
    started = time.perf_counter()
    whole = own_whole(image, weights, bfloat16=bfloat16)
    print(
        f"{name}: {image.shape}, Cellpose {version('cellpose')}, {whole.max()} objects, "
        f"{time.perf_counter() - started:.1f} s whole; tiles of {TILE}², overlap {overlap}"
    )
    print(f"  whole against truth            F1@0.5 {compare_objects(truth, whole, 0.51).f1:.3f}")
    for normalize in ("global", "per tile"):
        segmenter = cellpose_fn(
            str(weights), diameter=DIAMETER, normalize=normalize, bfloat16=bfloat16
        )
        prepared = segmenter.prepare(image.ravel())
        started = time.perf_counter()
        labels = tile_process(
            image, WithSmallNetwork(segmenter), tile_shape=(TILE, TILE), overlap=overlap,
            progress=False, engine="threads", max_workers=1,
        ).compute()  # fmt: skip
        seconds = time.perf_counter() - started
        same = compare_objects(whole, labels)
        print(
            f"  {normalize:<9} whole against Cellpose's own  F1@0.9 "
            f"{compare_objects(whole, prepared(image)).f1:.4f}; tiles against whole F1@0.9 "
            f"{same.f1:.4f} ({same.n_same} of {same.n_true}, {same.n_found} found), against truth "
            f"F1@0.5 {compare_objects(truth, labels, 0.51).f1:.3f}, {seconds:.1f} s"
        )


def report_volumes(weights, shape=(32, 64, 128)):
    """Print how tiles of a volume agree with the whole, in 3-D and stitched from planes."""
    image, _ = make_cells(shape, 5, spacing=22, fill=1)
    for name, keywords in (("do_3D", {"do_3D": True}), ("stitched", {"stitch_threshold": 0.4})):
        fn = WithSmallNetwork(
            cellpose_fn(str(weights), diameter=DIAMETER, batch_size=32, **keywords)
        )
        options = {"progress": False, "engine": "threads", "max_workers": 1}
        whole = tile_process(image, fn, tile_shape=shape, overlap=0, **options).compute()
        tile, halo = (32, 64, 64), (0, 0, 30)
        tiled = tile_process(image, fn, tile_shape=tile, overlap=halo, **options).compute()
        same = compare_objects(whole, tiled)
        print(
            f"{name}: {shape}, Cellpose {version('cellpose')}; tiles of {tile}, overlap {halo}, "
            f"against whole F1@0.9 {same.f1:.4f} ({same.n_same} of {same.n_true}, {same.n_found} "
            f"found)"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--nuclei", help="real nuclei, a TIFF of two axes")
    parser.add_argument("--masks", help="their masks")
    parser.add_argument("--size", type=int, default=768, help="of the made field; 0: none")
    parser.add_argument("--overlap", type=int, default=48)
    parser.add_argument("--float32", action="store_true", help="Cellpose 4 with all the bytes")
    parser.add_argument("--volumes", action="store_true", help="only 3-D and stitched planes")
    options = parser.parse_args()
    how = {"overlap": options.overlap, "bfloat16": not options.float32}
    weights = small_weights(options.folder)
    install()
    if options.volumes:
        report_volumes(weights)
        return
    if options.size:
        report("uneven field", *uneven((options.size, options.size)), weights, **how)
    if options.nuclei:
        nuclei = imread(options.nuclei)
        masks = imread(options.masks) if options.masks else np.zeros(nuclei.shape, int)
        report("real nuclei", nuclei, masks.astype(int), weights, **how)


if __name__ == "__main__":
    main()
