"""Where `stardist_fn` finds a model, and what it says where there is none; without StarDist."""

import json

import numpy as np
import pytest

from patchworks import tile_process
from patchworks.errors import InputError, MissingExtraError
from patchworks.fingerprint import digest
from patchworks.plugins.stardist import stardist_fn


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    """Nothing of it is imported before a tile is segmented."""
    monkeypatch.setattr("patchworks.extras.find_spec", lambda name: name)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


def model_in(folder, n_dim=2, weights="weights_best.h5"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"n_dim": n_dim, "n_channel_in": 1}))
    (folder / weights).write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("n_dim", [2, 3])
def test_a_folder_is_a_model(tmp_path, n_dim):
    folder = model_in(tmp_path / "mine", n_dim)
    segment = stardist_fn(folder)
    assert segment.n_axes == n_dim
    assert segment.model.arguments[0] == str(folder)
    before = digest(segment)
    (folder / "thresholds.json").write_text("{}")
    assert digest(stardist_fn(folder)) != before


@pytest.mark.parametrize(
    "place", ["", "2D_versatile_fluo", "2D_versatile_fluo_extracted"], ids=["old", "link", "new"]
)
def test_a_name_is_found_where_keras_puts_it(tmp_path, place):
    root = tmp_path / "keras" / "models" / "StarDist2D" / "2D_versatile_fluo"
    folder = model_in(root / place)
    assert stardist_fn("2D_versatile_fluo").model.arguments[0] == str(folder)


def test_the_best_weights_are_taken(tmp_path):
    folder = model_in(tmp_path / "mine", weights="weights_best.h5")
    (folder / "weights_last.h5").write_bytes(b"later")
    assert stardist_fn(folder).model.arguments[1][1].path == str(folder / "weights_best.h5")
    (folder / "weights_best.h5").unlink()
    assert stardist_fn(folder).model.arguments[1][1].path == str(folder / "weights_last.h5")


def test_a_model_that_is_nowhere_names_the_places_and_the_way_to_get_it(tmp_path):
    with pytest.raises(InputError) as raised:
        stardist_fn("3D_demo")
    said = str(raised.value)
    assert str(tmp_path / "keras" / "models" / "StarDist3D" / "3D_demo") in said
    assert "StarDist3D.from_pretrained('3D_demo')" in said


def test_a_folder_without_weights_or_axes_is_refused(tmp_path):
    folder = model_in(tmp_path / "mine")
    (folder / "weights_best.h5").unlink()
    with pytest.raises(InputError, match=r"no weights; expected weights_best\.h5"):
        stardist_fn(folder)
    (folder / "weights.hdf5").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="does not say n_dim"):
        stardist_fn(folder)
    with pytest.raises(InputError, match="n_dim=4; expected 2 or 3"):
        stardist_fn(model_in(tmp_path / "other", n_dim=4))


@pytest.mark.parametrize(
    "keywords, named",
    [
        ({"prob_threshold": 1}, "prob_threshold=1"),
        ({"nms_threshold": "0.3"}, "nms_threshold='0.3'"),
        ({"scale": 0}, "scale=0"),
        ({"min_size": -1}, "min_size=-1"),
        ({"normalize": "zscore"}, "normalize='zscore'"),
        ({"offset": [1]}, "belong to normalize='given'"),
    ],
)
def test_a_bad_parameter_is_refused_before_any_work(tmp_path, keywords, named):
    with pytest.raises(InputError, match=named):
        stardist_fn(model_in(tmp_path / "mine"), **keywords)


def test_without_the_packages_the_line_to_install_them_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("patchworks.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'patchworks\[stardist\]'"):
        stardist_fn(model_in(tmp_path / "mine"))


def test_an_image_that_it_cannot_segment_is_refused_before_any_work(tmp_path):
    image = np.zeros((20, 40, 40), "uint8")
    segment = stardist_fn(model_in(tmp_path / "mine"))
    with pytest.raises(InputError, match=r"of 2 axes cannot segment \(20, 40, 40\).*slice_wise"):
        tile_process(image, segment, progress=False)
    with pytest.raises(InputError, match=r"takes 1 channels, and \(2, 40, 40\) has 2"):
        segment.at_scale((None, None), (2, 40, 40))
    assert segment.at_scale((None, None), (40, 40)) is segment
