"""`stardist_fn` with a StarDist model that is trained here, for a minute.

These tests need stardist and tensorflow, which the lock file does not have; they need no other
package that patchworks does not. In an environment of their own::

    python -m pip install "stardist==0.9.2" "tensorflow-cpu==2.21.0" -e . --group test
    python -m pytest -m slow -s tests/plugins/test_stardist.py

Without stardist they are skipped; with one that cannot be imported they fail.
"""

import contextlib
import io
import os
import pickle
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from patchworks import tile_process
from patchworks.errors import InputError, SegmenterError
from patchworks.fingerprint import digest
from patchworks.plugins.stardist import stardist_fn
from patchworks.process_model import ProcessModel
from tests import cells, nuclei
from tests.networks import loads, noted_load

if find_spec("stardist") is None:
    pytest.skip("stardist is not installed", allow_module_level=True)

from stardist.models import Config2D, Config3D, StarDist2D, StarDist3D

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

TILES = {"tile_shape": (128, 128), "overlap": 32, "progress": False}


def normalized(image):
    low, high = np.percentile(image, (1, 99.8))
    return ((image - low) / (high - low)).astype("float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a small StarDist2D, trained on images made here."""
    made = [nuclei.make((128, 128), seed) for seed in range(14)]
    images, labels = [normalized(image) for image, _ in made], [labels for _, labels in made]
    config = Config2D(
        n_rays=32,
        grid=(2, 2),
        unet_n_depth=2,
        unet_n_filter_base=16,
        net_conv_after_unet=32,
        train_patch_size=(96, 96),
        train_batch_size=4,
        train_epochs=25,
        train_steps_per_epoch=25,
        train_learning_rate=1e-3,
        train_tensorboard=False,
    )
    place = tmp_path_factory.mktemp("stardist")
    with contextlib.redirect_stdout(io.StringIO()):
        model = StarDist2D(config, name="nuclei", basedir=str(place))
        model.train(images[:12], labels[:12], validation_data=(images[12:], labels[12:]))
        model.optimize_thresholds(images[12:], labels[12:])
    return place / "nuclei"


@pytest.fixture(scope="module")
def scan():
    return nuclei.make((640, 600), seed=100)


def test_tiled_it_finds_what_it_finds_in_the_whole_image(folder, scan):
    image, truth = scan
    segment = stardist_fn(folder)
    whole = segment.prepare(image.ravel())(image)
    tiled = np.asarray(tile_process(image, segment, **TILES))
    per_tile = np.asarray(tile_process(image, lambda tile: segment(tile), **TILES))
    score = cells.agreement(whole, tiled)
    print(f"\nStarDist: tiled against whole, F1 at IoU 0.9: {score}")
    print(f"percentiles of each tile: {cells.agreement(whole, per_tile)}")
    print(f"of the truth, F1 at IoU 0.7: {cells.agreement(truth, tiled, iou=0.7)}")
    assert score["f1"] > 0.98
    assert cells.agreement(truth, tiled, iou=0.7)["f1"] > 0.9


def test_it_is_what_stardist_itself_says(folder, scan):
    image = scan[0][:256, :240]
    with contextlib.redirect_stdout(io.StringIO()):
        model = StarDist2D(None, name=folder.name, basedir=str(folder.parent))
    expected, _ = model.predict_instances(normalized(image), axes="YX")
    found = stardist_fn(folder)(image)
    assert cells.same_partition(expected, found)
    strict, _ = model.predict_instances(normalized(image), axes="YX", prob_thresh=0.9, scale=1.5)
    assert cells.same_partition(stardist_fn(folder, prob_threshold=0.9, scale=1.5)(image), strict)


def test_each_worker_process_loads_it_once(folder, scan, tmp_path):
    image, _ = scan
    segment = stardist_fn(folder)
    notes = tmp_path / "notes"
    notes.mkdir()
    model = segment.model
    noted = ProcessModel(noted_load, (str(notes), model.load, model.arguments))
    segment = replace(segment, model=noted)
    here = np.asarray(tile_process(image, segment, engine="threads", **TILES))
    assert loads(notes) == {os.getpid(): 1}
    there = np.asarray(tile_process(image, segment, engine="processes", max_workers=2, **TILES))
    print(f"\nStarDist: loads per process {dict(loads(notes))}")
    assert set(loads(notes).values()) == {1}
    assert 2 <= len(loads(notes)) <= 3
    assert cells.agreement(here, there)["f1"] == 1


def test_slices_of_a_stack(folder):
    stack = np.stack([nuclei.make((160, 150), seed=7)[0]] * 3)
    segment = stardist_fn(folder)
    with pytest.raises(SegmenterError, match="slice_wise=True"):
        segment.segment_view(stack, ((0, 0),) * 3)
    with pytest.raises(InputError, match="slice_wise=True"):
        tile_process(stack, segment, progress=False)
    found = np.asarray(tile_process(stack, segment, slice_wise=True, **TILES))
    assert found.max() == found[1].max() > 30
    np.testing.assert_array_equal(found[0], found[2])


def test_the_content_of_its_files_is_part_of_the_run(folder, scan, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "nuclei"))
    segment = stardist_fn(copy)
    image = scan[0][:128, :128]
    found = segment(image)
    assert (
        digest(segment) == digest(stardist_fn(copy)) == digest(pickle.loads(pickle.dumps(segment)))
    )
    np.testing.assert_array_equal(segment(image), found)
    (copy / "thresholds.json").write_text('{"prob": 0.98, "nms": 0.3}')
    strict = stardist_fn(copy)
    assert digest(strict) != digest(segment)
    assert strict(image).max() < found.max()


def test_three_axes(tmp_path):
    """A model with weights as they were made: that it runs, not that it is right."""
    config = Config3D(
        n_rays=16, grid=(1, 2, 2), unet_n_depth=1, unet_n_filter_base=4, anisotropy=(2, 1, 1)
    )
    with contextlib.redirect_stdout(io.StringIO()):
        model = StarDist3D(config, name="raw", basedir=str(tmp_path))
        model.keras_model.save_weights(str(tmp_path / "raw" / "weights_last.h5"))
    image = nuclei.make((24, 60, 60), seed=5)[0]
    segment = stardist_fn(tmp_path / "raw", prob_threshold=0.5, min_size=1)
    expected, _ = model.predict_instances(normalized(image), axes="ZYX", prob_thresh=0.5)
    assert cells.same_partition(segment(image), expected)
    with pytest.raises(SegmenterError, match="of 3 axes cannot segment"):
        segment.segment_view(image[0], ((0, 0),) * 2)
    with pytest.raises(SegmenterError, match=r"takes 1 channels, and .* has 2"):
        segment.segment_view(np.stack([image, image]), ((0, 0),) * 3)
