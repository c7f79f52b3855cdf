"""The real Cellpose 3 or 4, whichever is installed, through `tile_process`; small, real weights.

Not in the environment of the lock file, which holds neither. `docs/cellpose.md` says how to make
one; in it, from the repository's root:

    PATCHWORKS_SMALL_CELLPOSE=~/small-cellpose python -m pytest --noconftest -m slow \
        tests/plugins/test_cellpose_runs.py

The variable names a folder where weights are kept that take ten minutes to train.
"""

import logging
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from patchworks import plan_run, tile_process
from patchworks.fidelity import compare_objects
from patchworks.plugins.cellpose import cellpose_fn
from patchworks.plugins.ome_zarr import to_ome_zarr

pytest.importorskip("cellpose", reason="needs an environment with Cellpose; see docs/cellpose.md")

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_cellpose import DIAMETER, MAJOR, WithSmallNetwork, install, make_cells, small_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("default"),  # of Cellpose and torch
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = os.environ.get("PATCHWORKS_SMALL_CELLPOSE") or tmp_path_factory.mktemp("weights")
    install()
    return str(small_weights(Path(folder).expanduser()))


@pytest.fixture
def segmenter(weights):
    def made(**keywords):
        return WithSmallNetwork(cellpose_fn(weights, diameter=DIAMETER, **keywords))

    return made


def own(weights, image, **keywords):
    """Cellpose's own evaluation, without patchworks."""
    import torch
    from cellpose.models import CellposeModel

    model = CellposeModel(gpu=False, pretrained_model=weights, device=torch.device("cpu"))
    everything = {"normalize": True, "norm3D": True, "percentile": [1.0, 99.0], "lowhigh": None}
    return model.eval(image, normalize=everything, diameter=DIAMETER, **keywords)[0]


def run(image, fn, tile, overlap, **options):
    options = {"engine": "threads", "max_workers": 1, "progress": False} | options
    return tile_process(image, fn, tile_shape=tile, overlap=overlap, **options).compute()


def uneven(shape=(224, 224)):
    return make_cells(shape, 3, shading=np.linspace(1, 0.2, shape[1])[None, :])[0]


@pytest.fixture(scope="module")
def volume():
    return make_cells((30, 48, 48), 9, spacing=22, fill=1)[0]


def test_an_image_in_one_tile_is_what_cellpose_makes_of_it(weights, segmenter):
    image = uneven()
    channels = {"channels": [0, 0]} if MAJOR == 3 else {}
    expected = own(weights, image, **channels)
    assert expected.max() > 50
    assert compare_objects(expected, run(image, segmenter(), image.shape, 0), 1.0).f1 == 1
    by_tile = run(image, segmenter(normalize="per tile"), image.shape, 0)
    assert compare_objects(expected, by_tile, 1.0).f1 == 1


def test_tiles_agree_with_the_whole_and_better_by_global_percentiles(segmenter):
    image = uneven((320, 320))
    whole = run(image, segmenter(), image.shape, 0)
    f1 = {}
    for normalize in ("global", "per tile"):
        tiled = run(image, segmenter(normalize=normalize), (112, 112), 36)
        f1[normalize] = compare_objects(whole, tiled).f1
    print(f"Cellpose {MAJOR}: F1 at IoU 0.9, tiled against whole: {f1}")
    assert f1["global"] > 0.97
    assert f1["per tile"] < f1["global"]


def test_channels_are_those_of_the_run_in_the_order_asked_for(weights, segmenter, tmp_path):
    nuclei, cells = uneven(), make_cells((224, 224), 4)[0]
    path = to_ome_zarr(np.stack([nuclei, nuclei // 2, cells]), tmp_path / "a.zarr", axes="cyx")
    fn = segmenter(channels=[1, 0])
    labels = tile_process(
        str(path), fn, channel=[0, 2], tile_shape=(224, 224), overlap=0, progress=False
    )
    both = np.stack([cells, nuclei], -1)
    chosen = {"channels": [1, 2]} if MAJOR == 3 else {}
    expected = own(weights, both, channel_axis=2, **chosen)
    assert compare_objects(expected, labels.compute(), 1.0).f1 == 1


def test_slices_are_segmented_one_by_one_and_linked(segmenter):
    image = np.stack([uneven()] * 3)
    plane = run(image[0], segmenter(), (224, 224), 0)
    labels = run(image, segmenter(), (1, 128, 128), 40, slice_wise=True)
    assert all(compare_objects(plane, each).f1 > 0.97 for each in labels)
    kept = [np.unique(each) for each in labels]
    assert np.array_equal(kept[0], kept[1])
    assert np.array_equal(kept[0], kept[2])


def test_a_stack_needs_to_be_told_how(segmenter):
    with pytest.raises(ValueError, match="slice_wise=True"):
        run(np.stack([uneven()] * 3), segmenter(), None, 0)


def test_stitched_planes_become_objects_of_a_volume(segmenter):
    image = np.stack([uneven((120, 120))] * 4)
    labels = run(image, segmenter(stitch_threshold=0.5), (4, 120, 120), 0)
    assert labels.shape == image.shape
    assert labels.max() > 10
    assert np.array_equal(labels[0] > 0, labels[3] > 0)
    assert len(np.unique(labels)) == len(np.unique(labels[0]))


def test_volumes_take_their_anisotropy_from_the_image(segmenter, volume, tmp_path, caplog):
    sizes = {"z": 0.5, "y": 0.25, "x": 0.25}
    path = to_ome_zarr(volume[::2], tmp_path / "a.zarr", axes="zyx", pixel_size=sizes)
    tile = {"tile": (15, 48, 48), "overlap": 0}
    with caplog.at_level(logging.INFO):
        labels = run(str(path), segmenter(do_3D=True, batch_size=32), **tile)
    assert "anisotropy 2" in caplog.text
    assert labels.max() >= 2
    told = segmenter(do_3D=True, anisotropy=2.0, batch_size=32)
    again = run(str(path), told, **tile, write_to=tmp_path / "b.zarr")
    assert np.array_equal(labels, again)


def test_the_same_tile_gives_the_same_labels_after_pickling_too(segmenter):
    fn, image = segmenter(), uneven()
    first = fn(image)
    again = pickle.loads(pickle.dumps(fn))
    assert np.array_equal(again(image), first)
    with fn.segmenter.model.use() as one, again.segmenter.model.use() as other:
        assert one is other


def test_what_one_call_normalizes_by_is_not_what_the_next_does(segmenter):
    from cellpose import models

    before = dict(models.normalize_default)
    for normalize in ("global", "per tile", "none"):
        segmenter(normalize=normalize)(uneven((64, 64)))
    assert models.normalize_default == before


def test_worker_processes_load_it_themselves(segmenter):
    image = uneven((224, 112))
    here = run(image, segmenter(), (112, 112), 36)
    there = run(image, segmenter(), (112, 112), 36, engine="processes", max_workers=2)
    assert compare_objects(here, there).f1 > 0.99


class OutOfMemoryAbove(WithSmallNetwork):
    """A GPU that is too small for a tile."""

    n_voxels = 15_000

    def at_scale(self, voxel_size, shape):
        return OutOfMemoryAbove(self.segmenter.at_scale(voxel_size, shape))

    def prepare(self, sample):
        return OutOfMemoryAbove(self.segmenter.prepare(sample))

    def __call__(self, tile):
        import torch

        if tile.size > self.n_voxels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().__call__(tile)


def test_a_tile_too_large_for_the_gpu_is_cut(segmenter):
    image = uneven((160, 160))
    whole = run(image, segmenter(), (160, 160), 0)
    small = OutOfMemoryAbove(segmenter().segmenter)
    assert compare_objects(whole, run(image, small, (160, 160), 24)).f1 > 0.9


def test_a_run_is_planned_with_calls_of_the_real_function(segmenter):
    image = uneven((320, 320))
    proposal = plan_run(
        image, segmenter(), probe_seconds=30, max_workers=1, engine="threads", probe=True
    )
    print(proposal)
    assert proposal.probe.largest.n_objects > 0
    assert proposal.halo is not None


def test_weights_of_nothing_are_refused_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path))
    with pytest.raises(ValueError, match="patchworks models fetch"):
        cellpose_fn()
    with pytest.raises(ValueError, match="no model of Cellpose"):
        cellpose_fn("nuclei_of_ours")
    assert list(tmp_path.iterdir()) == []
