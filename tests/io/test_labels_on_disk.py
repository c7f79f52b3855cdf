"""Label images follow OME-NGFF, as published validators and careful readers see it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr_models.v04.image_label import ImageLabel as ImageLabel04
from ome_zarr_models.v04.labels import Labels as Labels04
from ome_zarr_models.v05.image_label import ImageLabel as ImageLabel05
from ome_zarr_models.v05.labels import Labels as Labels05

from patchworks import load_ome_zarr, tile_process
from tests.images import above_1100, ome_zarr, smooth_noise

IMAGE = smooth_noise()
RUN = {"tile_shape": (10, 32, 32), "overlap": 4, "progress": False, "pyramid_levels": 3}
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
MODELS = {"0.4": (ImageLabel04, Labels04), "0.5": (ImageLabel05, Labels05)}


def metadata(group: zarr.Group) -> dict:
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
class TestInTheStore:
    @pytest.fixture
    def store(self, tmp_path, version):
        store = ome_zarr(tmp_path / "i.zarr", IMAGE[None, None], version, axes="tczyx")
        tile_process(store, above_1100, output_component="nuclei", **RUN)
        return store

    def test_the_label_image_is_valid(self, store, version):
        group = zarr.open_group(store / "labels" / "nuclei", mode="r")
        assert group.metadata.zarr_format == (2 if version == "0.4" else 3)
        MODELS[version][0].from_zarr(group)

    def test_the_labels_group_is_valid_and_lists_it(self, store, version):
        group = zarr.open_group(store / "labels", mode="r")
        MODELS[version][1].from_zarr(group)
        assert metadata(group)["labels"] == ["nuclei"]

    def test_another_label_image_is_listed_beside_it(self, store, version):
        tile_process(store, above_1100, output_component="again", **RUN)
        assert metadata(zarr.open_group(store / "labels", mode="r"))["labels"] == [
            "nuclei",
            "again",
        ]

    def test_it_names_its_image(self, store, version):
        label = metadata(zarr.open_group(store / "labels" / "nuclei", mode="r"))["image-label"]
        assert label["source"] == {"image": "../../"}

    def test_axes_and_scale_are_those_of_the_image(self, store, version):
        image = metadata(zarr.open_group(store / "labels" / "nuclei", mode="r"))["multiscales"][0]
        assert image["axes"] == [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
        steps = [d["coordinateTransformations"] for d in image["datasets"]]
        assert [s[0] for s in steps] == [
            {"type": "scale", "scale": [2.0, 0.5 * f, 0.5 * f]} for f in (1, 2, 4)
        ]
        # the centre of a cell of f voxels lies (f - 1) / 2 voxels into it
        assert [s[1:] for s in steps] == [
            [],
            [{"type": "translation", "translation": [0.0, 0.25, 0.25]}],
            [{"type": "translation", "translation": [0.0, 0.75, 0.75]}],
        ]

    def test_levels_are_integers_and_halve_y_and_x_alone(self, store, version):
        group = zarr.open_group(store / "labels" / "nuclei", mode="r")
        assert [group[str(i)].shape for i in range(3)] == [(24, 90, 70), (24, 45, 35), (24, 23, 18)]
        assert all(group[str(i)].dtype == np.uint32 for i in range(3))

    def test_dimension_names_go_with_zarr_3(self, store, version):
        group = zarr.open_group(store / "labels" / "nuclei", mode="r")
        if version == "0.5":
            assert group["0"].metadata.dimension_names == ("z", "y", "x")
        else:
            array = json.loads((store / "labels" / "nuclei" / "0" / ".zarray").read_text())
            assert array["dimension_separator"] == "/"


def test_the_scale_of_the_level_that_was_segmented_counts(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", IMAGE, n_levels=2)
    tile_process(store, above_1100, level=1, **RUN)
    image = metadata(zarr.open_group(store / "labels" / "labels", mode="r"))["multiscales"][0]
    first = image["datasets"][0]["coordinateTransformations"][0]
    assert first == {"type": "scale", "scale": [2.0, 1.0, 1.0]}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_label_image_of_its_own_is_valid(tmp_path, version):
    store = ome_zarr(tmp_path / "i.zarr", IMAGE, version)
    tile_process(store, above_1100, write_to=tmp_path / "o.zarr", **RUN)
    group = zarr.open_group(tmp_path / "o.zarr", mode="r")
    MODELS[version][0].from_zarr(group)
    assert "source" not in metadata(group)["image-label"]


def test_labels_of_an_array_are_valid_and_make_up_no_unit(tmp_path):
    tile_process(IMAGE, above_1100, write_to=tmp_path / "o.zarr", **RUN)
    group = zarr.open_group(tmp_path / "o.zarr", mode="r")
    ImageLabel05.from_zarr(group)
    assert all("unit" not in axis for axis in metadata(group)["multiscales"][0]["axes"])


def test_a_real_slide_of_the_older_version(tmp_path):
    if not SHARED.exists():
        pytest.skip("the folder of real microscopy files is not here")
    store = tmp_path / "slide.ome.zarr"
    shutil.copytree(SHARED / "CMU-1-Small-Region_s0.ome.zarr", store)
    for path in [store, *store.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    run = {"tile_shape": (1, 1024, 1024), "overlap": 16, "progress": False}

    def stained(tile: np.ndarray) -> np.ndarray:
        return (tile < 120).astype("uint8")

    labels = tile_process(store, stained, channel=1, **run)
    assert labels.shape == (1, 2967, 2220)
    ImageLabel04.from_zarr(zarr.open_group(store / "labels" / "labels", mode="r"))
    image = load_ome_zarr(store, channel=1)
    assert ((labels > 0) == (image < 120)).all().compute()
    described = metadata(zarr.open_group(store / "labels" / "labels", mode="r"))["multiscales"][0]
    assert described["datasets"][0]["coordinateTransformations"][0]["scale"][1:] == [0.499, 0.499]
