"""What `cellpose_fn` says and decides before any network is loaded; Cellpose is not installed."""

import pickle
import zipfile
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchworks.at_scale import at_scale
from patchworks.errors import InputError, MissingExtraError
from patchworks.fingerprint import function_digest
from patchworks.plan import describe_image
from patchworks.plugins.cellpose import cellpose_fn
from patchworks.plugins.cellpose.find_weights import find_weights
from patchworks.plugins.cellpose.known_models import FOLDER_VARIABLE
from patchworks.plugins.cellpose.model import load_model
from patchworks.plugins.cellpose.normalisation import Normalisation
from patchworks.plugins.cellpose.segmenter import Cellpose
from patchworks.plugins.cellpose.settings import Settings
from patchworks.process_model import ProcessModel
from patchworks.segmenters import resolve_segmenter


def is_installed():
    try:
        return bool(version("cellpose"))
    except PackageNotFoundError:
        return False


def save_weights(path, *names):
    """Write a file that looks as PyTorch's do from outside, with weights of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        names_of = pickle.dumps(dict.fromkeys(names, 1.0), protocol=2)
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), names_of)  # without the time
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models"


def made(folder, release="4.2.1.1", weights=("W2",), **fields):
    path = save_weights(folder / "own", *weights)
    arguments = (find_weights(str(path), release), release, None, True)
    return Cellpose(model=ProcessModel(load_model, arguments), version=release, **fields)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"diameter": 0}, "diameter=0"),
        ({"diameter": "30"}, "diameter='30'"),
        ({"channels": [0, 0]}, r"channels=\[0, 0\]"),
        ({"channels": [-1]}, "channels=-1"),
        ({"do_3D": "yes"}, "do_3D='yes'"),
        ({"do_3D": True, "stitch_threshold": 0.3}, "give one of the two"),
        ({"stitch_threshold": 2}, "stitch_threshold=2"),
        ({"anisotropy": -1}, "anisotropy=-1"),
        ({"normalize": "global", "low_high": [5]}, "low_high"),
        ({"low_high": [5, 5]}, "5 is not below 5"),
        ({"normalize": "none", "low_high": [0, 5]}, "give one of the two"),
        ({"normalize": True}, "expected one of"),
        ({"normalize": "none", "invert": True}, "invert"),
        ({"low_percentile": 99, "high_percentile": 1}, "is not below"),
        ({"high_percentile": 101}, "at most 100"),
        ({"flow_threshold": None}, "flow_threshold=None"),
        ({"min_size": 1.5}, "min_size=1.5"),
        ({"max_size_fraction": 0}, "max_size_fraction=0"),
        ({"niter": 0}, "niter=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"tile_overlap": 0.9}, "tile_overlap=0.9"),
        ({"bfloat16": 1}, "bfloat16=1"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"model": 3}, "model=3"),
    ],
)
def test_wrong_parameters_are_refused_first(wrong, said):
    with pytest.raises(InputError, match=said):
        cellpose_fn(**wrong)


@pytest.mark.skipif(is_installed(), reason="Cellpose is installed in this environment")
def test_without_cellpose_the_error_names_the_line_that_installs_it():
    with pytest.raises(MissingExtraError, match=r"pip install 'patchworks\[cellpose\]'"):
        cellpose_fn()
    with pytest.raises(MissingExtraError, match=r"patchworks\[cellpose\]"):
        resolve_segmenter({"name": "cellpose", "diameter": 20})


@pytest.mark.parametrize(
    ("model", "release", "file"),
    [
        ("cyto3", "3.1.1.3", "cyto3"),
        ("nuclei", "3.1.1.3", "nucleitorch_0"),
        ("cpsam", "4.0.1", "cpsam"),
        (None, "3.1.1.3", "cyto3"),
        (None, "4.2.1.1", "cpsam_v2"),
        ("mine", "4.2.1.1", "mine"),
    ],
)
def test_a_name_is_a_file_in_the_folder_of_models(folder, model, release, file):
    path = save_weights(folder / file, "W2" if release[0] == "4" else "output.2.weight")
    assert find_weights(model, release).path == str(path)


def test_weights_that_are_not_there_are_named_with_their_place(folder):
    with pytest.raises(InputError) as caught:
        find_weights("cyto3", "3.1.1.3")
    for part in (str(folder / "cyto3"), FOLDER_VARIABLE, "patchworks models fetch cyto3"):
        assert part in str(caught.value)


def test_an_unknown_name_is_never_the_default(folder):
    save_weights(folder / "cpsam_v2", "W2")
    with pytest.raises(InputError, match=r"'cito3'.*expected one of \['cpsam_v2'"):
        find_weights("cito3", "4.2.1.1")
    with pytest.raises(InputError, match="no such file"):
        find_weights(str(folder / "nothing.pth"), "4.2.1.1")


def test_a_model_of_the_other_version_is_refused(folder):
    with pytest.raises(InputError, match=r"one of Cellpose 3.*cellpose3"):
        find_weights("cyto3", "4.2.1.1")
    path = save_weights(folder / "own", "output.2.weight")
    with pytest.raises(InputError, match="weights of a network of Cellpose 3"):
        find_weights(str(path), "4.2.1.1")


def test_a_page_in_place_of_weights_is_refused(folder):
    folder.mkdir()
    (folder / "cpsam_v2").write_text("<html>Please log in</html>")
    with pytest.raises(InputError, match="no file of PyTorch weights"):
        find_weights(None, "4.2.1.1")


def test_a_network_on_dino_needs_its_package(folder):
    save_weights(folder / "cpdino", "W2", "encoder.cls_token")
    with pytest.raises(MissingExtraError, match="dinov3"):
        find_weights("cpdino", "4.2.1.1")


def test_the_weights_content_is_part_of_the_fingerprint_and_pickling_is_not(folder):
    first = made(folder, normalisation=Normalisation(percentiles=(2.0, 98.0)))
    assert function_digest(pickle.loads(pickle.dumps(first))) == function_digest(first)
    again = made(folder, normalisation=Normalisation(percentiles=(2.0, 98.0)))
    assert function_digest(again) == function_digest(first)
    assert function_digest(made(folder, weights=("W2", "more"))) != function_digest(first)
    other = made(folder, settings=Settings(diameter=20))
    assert function_digest(other) != function_digest(made(folder))


def test_anisotropy_is_that_of_the_image(folder):
    segmenter = made(folder, settings=Settings(do_3D=True))
    assert segmenter.at_scale((2.0, 0.5, 0.5), (9, 99, 99)).settings.anisotropy == 4
    given_by_hand = made(folder, settings=Settings(do_3D=True, anisotropy=3))
    assert given_by_hand.at_scale((2.0, 0.5, 0.5), (9, 99, 99)).settings.anisotropy == 3
    assert made(folder).at_scale((0.5, 0.5), (99, 99)).settings.anisotropy is None


def test_tiles_have_to_overlap_by_an_object(folder):
    assert made(folder).reach == 30
    assert made(folder, settings=Settings(diameter=12)).at_scale((1.0,) * 2, (9, 9)).reach == 12
    volumes = made(folder, settings=Settings(diameter=12, do_3D=True))
    assert volumes.at_scale((2.0, 0.5, 0.5), (9, 99, 99)).reach == (3, 12, 12)


def test_without_a_scale_voxels_are_taken_for_cubes_and_that_is_said(folder, caplog):
    found = at_scale(
        made(folder, settings=Settings(do_3D=True)), describe_image(np.zeros((4, 8, 8)))
    )
    assert found.settings.anisotropy == 1
    assert "does not say how large its voxels are" in caplog.text


@pytest.mark.parametrize(
    ("settings", "voxel_size", "shape", "said"),
    [
        (Settings(), (None,) * 3, (9, 99, 99), "slice_wise=True"),
        (Settings(do_3D=True), (None,) * 2, (99, 99), "several planes"),
        (Settings(stitch_threshold=0.2), (None,) * 3, (1, 99, 99), "several planes"),
        (Settings(channels=(1, 0)), (None,) * 2, (99, 99), "positions among the channels"),
        (Settings(), (None,) * 2, (4, 99, 99), "sees 3 at most"),
    ],
)
def test_an_image_that_cannot_be_segmented_so_is_refused(folder, settings, voxel_size, shape, said):
    with pytest.raises(InputError, match=said):
        made(folder, settings=settings).at_scale(voxel_size, shape)


def test_an_image_of_one_plane_is_a_plane(folder):
    assert made(folder).at_scale((None,) * 3, (1, 99, 99)).image_shape == (1, 99, 99)


@given(
    st.lists(st.integers(0, 4000), min_size=50, max_size=300),
    st.floats(0, 40),
    st.floats(60, 100),
    st.booleans(),
)
def test_normalisation_is_that_of_cellpose_with_the_images_percentiles(values, low, high, invert):
    image = np.array([*values, 0, 5000], np.uint16)
    at = np.percentile(image, (low, high))
    if at[0] == at[1]:
        return
    whole = Normalisation(percentiles=(low, high), invert=invert).of_image(image[None])
    expected = (image.astype(np.float32) - np.float32(at[0])) / np.float32(at[1] - at[0])
    tile = whole.apply(image[None, 20:40])
    np.testing.assert_allclose(
        tile[:, 0], 1 - expected[20:40] if invert else expected[20:40], rtol=1e-5, atol=1e-5
    )


def test_channels_are_normalized_each_by_itself_and_put_last():
    sample = np.stack([np.arange(101), 10 * np.arange(101)])
    whole = Normalisation(percentiles=(0, 100)).of_image(sample)
    assert whole.low_high == ((0, 100), (0, 1000))
    assert whole.apply(sample[:, [50]]).tolist() == [[0.5, 0.5]]


def test_chosen_channels_come_in_the_order_that_was_asked_for(folder):
    segmenter = made(folder, settings=Settings(channels=(2, 0)))
    sample = np.arange(303).reshape(3, 101)
    assert segmenter.prepare(sample).normalisation.low_high == ((203, 301), (1, 99))


def test_a_line_of_the_log_says_what_intensities_are_seen_as_0_and_1(folder):
    said = str(made(folder).prepare(np.arange(101)))
    assert said == "Cellpose 4.2.1.1, own, intensities 1 to 99"


def test_percentiles_that_coincide_are_refused_and_a_constant_image_is_not():
    sparse = np.zeros((1, 10_000))
    sparse[0, :5] = 1000
    with pytest.raises(InputError, match="high_percentile"):
        Normalisation().of_image(sparse)
    assert Normalisation().of_image(np.full((1, 9), 7)).apply(np.full((1, 3), 7)).tolist() == [
        [0],
        [0],
        [0],
    ]


def test_voxels_that_are_no_numbers_are_dark():
    whole = Normalisation(percentiles=(0, 100)).of_image(np.array([[0, np.nan, 2.0]]))
    assert whole.low_high == ((0, 2),)
    assert whole.apply(np.array([[1, np.nan]])).tolist() == [[0.5], [0]]


def test_cellpose_is_always_told_everything_of_normalisation():
    keys = set(Normalisation().for_cellpose(is_volume=False))
    assert keys == {
        "lowhigh", "percentile", "normalize", "norm3D", "sharpen_radius", "smooth_radius",
        "tile_norm_blocksize", "tile_norm_smooth3D", "invert",
    }  # fmt: skip


def test_the_largest_object_is_measured_against_the_image():
    settings = Settings(max_size_fraction=0.25)
    assert settings.for_cellpose((100, 100), (400, 100))["max_size_fraction"] == 1.0
    assert settings.for_cellpose((100, 100), (200, 100))["max_size_fraction"] == 0.5
    assert settings.for_cellpose((100, 100), None)["max_size_fraction"] == 0.25
