"""What napari shows of a store, without a window: `napari.components.ViewerModel`."""

import sys
import tomllib
import warnings
from importlib import import_module
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.cli import main
from patchworks import tile_process
from patchworks.errors import InputError, MissingExtraError, SourceNotFoundError
from patchworks.io.image_source import HeldArray, ImageSource
from patchworks.io.ngff import Calibration
from patchworks.plugins.napari import view_in_napari
from patchworks.plugins.napari.lazy_level import lazy_level
from patchworks.plugins.napari.reader import get_reader
from patchworks.plugins.napari.sample import nuclei
from patchworks.plugins.napari.view import label_colors
from patchworks.plugins.ome_zarr import to_ome_zarr
from tests.sparse_store import sparse_store
from tests.stores import blobs, components, ome_zarr

ROOT = Path(__file__).parents[2]

QTS = ("PyQt6", "PySide6", "PyQt5")

with warnings.catch_warnings():
    # napari's own imports warn of what they deprecate among themselves.
    warnings.simplefilter("ignore")
    napari_model = pytest.importorskip("napari.components")


@pytest.fixture
def viewer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield napari_model.ViewerModel()


@pytest.fixture
def all_levels(monkeypatch):
    """Of images as small as these, napari would be shown the first level alone."""
    monkeypatch.setattr("patchworks.plugins.napari.layers.SCREEN", 1)


def placed(store, scales, translations):
    """Say of each level how large its voxels are and where it begins."""
    group = zarr.open_group(store, mode="r+")
    ome = group.attrs["ome"]
    datasets = ome["multiscales"][0]["datasets"]
    for dataset, scale, translation in zip(datasets, scales, translations, strict=True):
        dataset["coordinateTransformations"] = [
            {"type": "scale", "scale": list(scale)},
            {"type": "translation", "translation": list(translation)},
        ]
    group.attrs["ome"] = ome


SIZES = {"t": 2, "c": 3, "z": 5, "y": 40, "x": 36}


class TestImage:
    @pytest.mark.parametrize(
        "version, axes", [("0.4", "tczyx"), ("0.5", "cyx"), ("0.5", "zyx"), ("0.5", "yx")]
    )
    def test_channels_levels_and_calibration_are_those_of_the_store(
        self, tmp_path, viewer, all_levels, version, axes
    ):
        image = blobs(tuple(SIZES[axis] for axis in axes))
        size = {"z": 2.0, "y": 0.5, "x": 0.25}
        store = to_ome_zarr(
            image, tmp_path / "scan.ome.zarr", axes=axes, n_levels=3, ngff_version=version,
            pixel_size={a: size[a] for a in axes if a in size}, progress=False,
        )  # fmt: skip
        view_in_napari(store, viewer=viewer)
        n_channels = SIZES["c"] if "c" in axes else 1
        assert len(viewer.layers) == n_channels
        at, kept = axes.find("c"), axes.replace("c", "")
        for channel, layer in enumerate(viewer.layers):
            for level, shown in enumerate(layer.data):
                stored = zarr.open_array(store, path=str(level), mode="r")[...]
                expected = stored if at < 0 else np.take(stored, channel, at)
                np.testing.assert_array_equal(np.asarray(shown), expected)
            assert layer.scale.tolist() == [size.get(axis, 1.0) for axis in kept]
            assert layer.axis_labels == tuple(kept)
            units = ["pixel" if axis == "t" else "micrometer" for axis in kept]
            assert [str(unit) for unit in layer.units] == units

    def test_names_colours_and_contrast_are_those_of_the_store(self, tmp_path, viewer):
        channels = [
            {"label": "DAPI", "color": "0000FF", "window": {"start": 3, "end": 90}},
            {"label": "GFP", "color": "00ff00", "window": {"start": 0, "end": 200}},
        ]
        store = ome_zarr(
            tmp_path / "a.zarr", [blobs((2, 20, 20))], axes="cyx", translation=(0, 7, 9)
        )
        group = zarr.open_group(store, mode="r+")
        group.attrs["ome"] = {**group.attrs["ome"], "omero": {"channels": channels}}
        view_in_napari(store, viewer=viewer)
        one, two = viewer.layers
        assert [one.name, two.name] == ["DAPI", "GFP"]
        assert one.contrast_limits == [3, 90]
        assert one.colormap.colors[-1].tolist() == [0, 0, 1, 1]
        assert two.colormap.colors[-1].tolist() == [0, 1, 0, 1]
        assert one.translate.tolist() == [7, 9]
        assert {one.blending, two.blending} == {"additive"}

    def test_contrast_is_measured_where_the_store_says_none(self, tmp_path, viewer):
        image = np.full((200, 200), 100, "uint16")
        image[50:150, 50:150] = 700
        view_in_napari(ome_zarr(tmp_path / "a.zarr", [image]), viewer=viewer)
        assert viewer.layers[0].contrast_limits == [100, 700]

    def test_a_level_that_lies_elsewhere_is_left_out(self, tmp_path, viewer, all_levels, caplog):
        image = blobs((64, 64))
        # A half, a half that is moved, and the whole.
        levels = [image, image[:, :32], image[::2, ::2], image[::4, ::4]]
        scales = [(1, 1), (1, 1), (2, 2), (4, 4)]
        store = ome_zarr(tmp_path / "a.zarr", levels)
        placed(store, scales, [(0, 0), (0, 0), (0, 9), (1.5, 1.5)])
        view_in_napari(store, viewer=viewer)
        assert [level.shape for level in viewer.layers[0].data] == [(64, 64), (16, 16)]
        assert caplog.text.count("lies elsewhere than the image") == 2

    def test_a_whole_whose_scale_is_said_wrong_is_shown(self, tmp_path, viewer, all_levels):
        image = blobs((60, 80))
        store = ome_zarr(tmp_path / "a.zarr", [image, image[::4, ::4]])
        placed(store, [(1, 1), (2, 2)], [(0, 0), (0, 0)])
        view_in_napari(store, viewer=viewer)
        assert [level.shape for level in viewer.layers[0].data] == [(60, 80), (15, 20)]

    def test_images_of_a_collection_are_seen_one_at_a_time(self, tmp_path, viewer):
        for index, name in enumerate(("overview", "detail")):
            to_ome_zarr(blobs((20, 30)), tmp_path / "all.zarr" / str(index), progress=False)
            group = zarr.open_group(tmp_path / "all.zarr" / str(index), mode="r+")
            ome = group.attrs["ome"]
            ome["multiscales"][0]["name"] = name
            group.attrs["ome"] = ome
        group = zarr.open_group(tmp_path / "all.zarr", mode="a")
        group.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
        view_in_napari(tmp_path / "all.zarr", viewer=viewer)
        assert [(one.name, one.visible) for one in viewer.layers] == [
            ("overview", True), ("detail", False),
        ]  # fmt: skip

    def test_a_plate_is_refused(self, tmp_path, viewer):
        group = zarr.open_group(tmp_path / "a.zarr", mode="w")
        group.attrs["ome"] = {"version": "0.5", "plate": {"wells": []}}
        with pytest.raises(InputError, match=r"a plate; give one field of a well.*/A/1/0"):
            view_in_napari(tmp_path / "a.zarr", viewer=viewer)

    def test_at_a_url(self, viewer):
        store = "memory://napari/scan.zarr"
        to_ome_zarr(blobs((20, 30)), store, progress=False)
        tile_process(store, components, progress=False)
        view_in_napari(store, viewer=viewer)
        assert [layer.name for layer in viewer.layers] == ["scan", "labels"]

    @pytest.mark.parametrize("place", ["nothing.zarr", "s3:/"])
    def test_what_is_not_there_is_said_before_anything_is_shown(self, tmp_path, viewer, place):
        with pytest.raises(SourceNotFoundError, match="there is nothing at this path"):
            view_in_napari(tmp_path / place, viewer=viewer)
        assert not viewer.layers


class TestLabels:
    def test_they_are_found_and_lie_on_the_image(self, tmp_path, viewer, all_levels):
        store = to_ome_zarr(
            blobs((6, 60, 50)), tmp_path / "scan.zarr", n_levels=2, progress=False,
            pixel_size={"z": 2, "y": 0.5, "x": 0.5},
        )  # fmt: skip
        tiles = {"tile_shape": (6, 30, 50), "overlap": 8, "progress": False}
        made = tile_process(str(store), components, output_component="cells", **tiles)
        tile_process(str(store), components, write_to=tmp_path / "scan_2.zarr", **tiles)
        view_in_napari(store, viewer=viewer)
        image, inside, beside = viewer.layers
        assert [image.name, inside.name, beside.name] == ["scan", "cells", "scan_2"]
        for layer in (inside, beside):
            assert layer.multiscale
            assert layer.dtype == np.uint32
            np.testing.assert_array_equal(np.asarray(layer.data[0]), np.asarray(made))
            assert layer.scale.tolist() == image.scale.tolist() == [2, 0.5, 0.5]
            assert layer.units == image.units

    def test_those_that_are_asked_for(self, tmp_path, viewer):
        store = to_ome_zarr(blobs((60, 50)), tmp_path / "scan.zarr", progress=False)
        for name in ("cells", "nuclei"):
            tile_process(str(store), components, output_component=name, progress=False)
        view_in_napari(store, "nuclei", viewer=viewer)
        view_in_napari(store, [], viewer=viewer)
        assert [layer.name for layer in viewer.layers] == ["scan", "nuclei", "scan [1]"]
        with pytest.raises(InputError, match=r"labels='cell'.*\['cells', 'nuclei'\]"):
            view_in_napari(store, ["cell"], viewer=viewer)

    def test_they_are_no_coarser_in_3d_than_the_image(self, tmp_path, viewer):
        store = to_ome_zarr(blobs((6, 60, 50)), tmp_path / "scan.zarr", progress=False)
        tile_process(str(store), components, pyramid_levels=3, progress=False)
        view_in_napari(store, viewer=viewer)
        assert [layer.multiscale for layer in viewer.layers] == [False, False]
        big = sparse_store(tmp_path / "big.zarr", (900, 4096, 4096), "zyx", n_levels=6)
        view_in_napari(big, viewer=viewer)
        shapes = [level.shape for level in viewer.layers[-1].data]
        assert shapes[-1] == (900, 128, 128)
        assert [level.shape for level in viewer.layers[-2].data] == shapes

    def test_a_label_image_alone_is_a_labels_layer(self, tmp_path, viewer):
        made = tile_process(
            blobs((60, 50)), components, write_to=tmp_path / "l.zarr", progress=False
        )
        view_in_napari(tmp_path / "l.zarr", viewer=viewer)
        [layer] = viewer.layers
        assert type(layer).__name__ == "Labels"
        np.testing.assert_array_equal(np.asarray(layer.data), np.asarray(made))

    def test_floats_are_no_labels(self, tmp_path, viewer):
        store = ome_zarr(tmp_path / "a.zarr", [np.zeros((9, 9), "uint8")])
        floats = ome_zarr(tmp_path / "b.zarr", [np.zeros((9, 9), "float32")])
        with pytest.raises(InputError, match="labels of dtype float32; expected integers"):
            view_in_napari(store, floats, viewer=viewer)

    def test_neighbouring_numbers_and_those_of_tiles_below_differ_in_colour(self):
        colors = label_colors()
        ids = np.arange(1, 5000)
        shown = colors.map(ids)
        for apart in (1, 2, 7, 49, 50, 100, 254, 256, 1024, 4096):
            assert (shown[apart:] != shown[:-apart]).any(axis=1).all(), apart
        assert len(np.unique(shown, axis=0)) > 900
        assert (shown[:, :3].max(axis=1) > 0.4).all()  # seen over black
        assert (colors.map(np.array([2**32 - 2, 2**32 - 1]))[:, 3] == 1).all()
        assert colors.map(np.array([0]))[0, 3] == 0


@settings(max_examples=40)
@given(st.data())
def test_a_lazy_level_slices_as_the_array_does(data):
    array = np.arange(7 * 6 * 5).reshape(7, 6, 5)
    source = ImageSource(
        stored=HeldArray(array), pick=(None,) * 3, shape=array.shape, dtype=array.dtype,
        chunks=(3, 4, 5), calibration=Calibration.unknown(("z", "y", "x")), name="array",
    )  # fmt: skip
    index = tuple(data.draw(st.one_of(st.integers(-n, n - 1), st.slices(n))) for n in array.shape)
    np.testing.assert_array_equal(np.asarray(lazy_level(source)[index]), array[index])


def test_opening_reads_the_coarsest_level_alone(tmp_path, viewer):
    store = sparse_store(tmp_path / "big.zarr", (40, 4096, 4096), "zyx", n_levels=4)
    for level in ("0", "1", "2"):
        for folder in (store / level, store / "labels" / "cells" / level):
            chunk = folder / "c" / "1" / "0" / "0"
            chunk.parent.mkdir(parents=True, exist_ok=True)
            chunk.write_bytes(b"no chunk")
    view_in_napari(store, viewer=viewer)
    assert [layer.data[0].shape for layer in viewer.layers] == [(40, 4096, 4096)] * 2
    with pytest.raises(Exception, match=r"."):  # it would have failed
        np.asarray(viewer.layers[0].data[0][20, :9, :9])


class TestPlugin:
    def test_the_manifest_is_valid_and_found_by_its_entry_point(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from npe2 import PluginManifest
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        entry = project["entry-points"]["napari.manifest"]["patchworks"]
        found = EntryPoint("patchworks", entry, "napari.manifest")
        module, name = found.module, found.attr  # which raise where npe2 would not find it
        place = Path(import_module(module).__file__).parent / name
        manifest = PluginManifest.from_file(place)
        assert manifest.name == project["name"]
        said = yaml.safe_load(place.read_text())["contributions"]
        known = {command["id"] for command in said["commands"]}
        menus = [item for items in said["menus"].values() for item in items]
        for used in (*said["readers"], *said["widgets"], *said["sample_data"], *menus):
            assert used["command"] in known
        for command in said["commands"]:
            module, _, attribute = command["python_name"].partition(":")
            if module.endswith("widget"):  # it needs Qt
                text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
                assert f"class {attribute}(" in text
            else:
                assert callable(getattr(import_module(module), attribute))

    def test_the_reader_takes_ome_zarr_and_nothing_else(self, tmp_path):
        store = ome_zarr(tmp_path / "a.zarr", [blobs((20, 20))])
        zarr.create_array(tmp_path / "plain.zarr", shape=(4, 4), dtype="uint8")
        (tmp_path / "empty.zarr").mkdir()
        for place in ("plain.zarr", "empty.zarr", "nothing.zarr"):
            assert get_reader(str(tmp_path / place)) is None
        assert get_reader([store, str(tmp_path / "plain.zarr")]) is None
        [(data, options, kind)] = get_reader([store])(store)
        assert kind == "image"
        assert not options["multiscale"]
        assert data.shape == (20, 20)

    def test_the_sample_can_be_segmented(self):
        [(image, options, kind)] = nuclei()
        assert (image.ndim, kind, len(options["scale"])) == (3, "image", 3)
        assert components((image > 300).astype("uint8")).max() > 50

    def test_without_napari_the_error_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "napari", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'patchworks\[napari\]'"):
            view_in_napari(tmp_path / "a.zarr")

    @pytest.mark.skipif(any(map(find_spec, QTS)), reason="a window would open")
    def test_without_a_qt_the_command_says_what_to_install(self, tmp_path, capsys):
        store = ome_zarr(tmp_path / "a.zarr", [blobs((9, 9))])
        assert main(["view", store]) == 1
        assert "pip install 'patchworks[napari]'" in capsys.readouterr().err
        assert main(["view", str(tmp_path / "b.zarr")]) == 1
        assert "there is nothing at this path" in capsys.readouterr().err
