"""The forms: groups, bounds, choices, descriptions; unknown keys are refused."""

import importlib
import inspect
import logging
import os

import numpy as np
import pytest
import tifffile
from prefect.exceptions import ParameterTypeError, SignatureMismatchError
from prefect.utilities.callables import parameter_schema
from pydantic_core import PydanticUndefined

from flows.cluster import ClusterSpec
from flows.merge_labels import plan_merging
from flows.parameters import Run, Selection, Tiles, checked, shown, split_keywords
from flows.segment_image import plan_segmentation, segment_image
from flows.segmenter_choice import (
    TYPED,
    Blobs,
    Imported,
    Registered,
    Threshold,
    as_shown,
    segmenter_of,
)
from patchworks.errors import InputError
from patchworks.segmenters import Threshold as ThresholdSegmenter
from patchworks.segmenters import blobs, known_segmenters, threshold
from patchworks.segmenters.registry import package_of
from tests.stores import components, ome_zarr

FLOWS = {
    "convert_image": ("source", "target"),
    "segment_image": ("image",),
    "merge_labels": ("labeled", "labels"),
    "build_pyramid": ("store",),
    "process_image": ("source", "target"),
}


def the_flow(name):
    return getattr(importlib.import_module(f"flows.{name}"), f"{name}_flow")


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_of_a_form_has_a_type_and_is_described(name):
    schema = parameter_schema(the_flow(name)).model_dump()
    assert tuple(schema["required"]) == FLOWS[name]
    for key, parameter in schema["properties"].items():
        reference = parameter.get("$ref", "").rpartition("/")[2]
        group = schema["definitions"].get(reference, {})
        assert parameter.get("description") or group.get("description"), key
    for key, group in schema["definitions"].items():
        if key == "Registered":
            continue  # somebody else's function has parameters that are not known here
        assert group["additionalProperties"] is False, key
        for field, parameter in group["properties"].items():
            assert parameter.get("description"), (key, field)


@pytest.mark.parametrize("name", FLOWS)
def test_unknown_parameters_are_refused(name):
    required = {key: {} if key == "labels" else "x" for key in FLOWS[name]}
    with pytest.raises(SignatureMismatchError):
        the_flow(name).validate_parameters({**required, "nonsense": 1})
    with pytest.raises(ParameterTypeError, match=r"run\.retrys"):
        the_flow(name).validate_parameters({**required, "run": {"retrys": 1}})


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("tiles", "stitch", "glue"),
        ("tiles", "connectivity", 0),
        ("tiles", "empty_threshold", float("nan")),
        ("labels", "pyramid_levels", 0),
        ("selection", "channel", -1),
        ("run", "retries", -1),
        ("run", "tile_timeout_s", 0),
        ("cluster", "kind", "cloud"),
    ],
)
def test_values_out_of_bounds_are_refused(group, key, value):
    with pytest.raises(ParameterTypeError, match=key):
        the_flow("segment_image").validate_parameters({"image": "x", group: {key: value}})


class TestSegmenters:
    def parse(self, given):
        return the_flow("segment_image").validate_parameters({"image": "x", "segmenter": given})[
            "segmenter"
        ]

    def test_a_built_in_has_typed_parameters(self):
        choice = self.parse({"name": "threshold", "value": 400, "sigma": 1.5})
        assert choice == Threshold(value=400, sigma=1.5)
        assert segmenter_of(choice) == threshold(400, sigma=1.5)

    @pytest.mark.parametrize("bad", [{"sigma": -1}, {"valu": 3}, {"value": "high"}])
    def test_a_built_in_refuses_what_it_does_not_know(self, bad):
        with pytest.raises(ParameterTypeError, match="segmenter"):
            self.parse({"name": "threshold", **bad})

    def test_blobs_take_a_diameter_or_one_per_axis(self):
        assert segmenter_of(self.parse({"name": "blobs", "diameter": 30})) == blobs(30)
        given = {"name": "blobs", "diameter": [3, 9.5, 9.5], "contrast": 2}
        assert segmenter_of(self.parse(given)) == blobs([3, 9.5, 9.5], contrast=2)

    def test_a_local_threshold(self):
        given = {"name": "threshold", "local": "mean", "window": [3, 51, 51], "offset": 4}
        assert segmenter_of(self.parse(given)) == threshold(
            local="mean", window=[3, 51, 51], offset=4
        )

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"name": "blobs"}, "segmenter 'blobs': diameter.*Field required"),
            ({"name": "blobs", "diameter": 0}, "diameter.*greater than 1"),
            ({"name": "threshold", "local": "median"}, "local='median'.*'mean' or 'gaussian'"),
            ({"name": "onnx", "model": "a", "postprocess": "magic"}, "onnx.*postprocess='magic'"),
        ],
    )
    def test_an_error_is_of_the_function_that_was_named_alone(self, given, said):
        with pytest.raises(ParameterTypeError, match=said) as refused:
            self.parse(given)
        assert "Registered" not in str(refused.value)

    def test_the_forms_of_the_built_ins_are_those_of_their_functions(self):
        for form, factory in ((Threshold, threshold), (Blobs, blobs)):
            fields = {k: f.default for k, f in form.model_fields.items() if k != "name"}
            taken = inspect.signature(factory).parameters.values()
            assert {k: d for k, d in fields.items() if d is not PydanticUndefined} == {
                p.name: p.default for p in taken if p.default is not p.empty
            }
            assert list(fields) == [p.name for p in taken]

    def test_every_segmenter_of_this_package_has_a_form(self):
        ours = {name for name, p in known_segmenters().items() if package_of(p) == "patchworks"}
        assert ours == {"threshold", "blobs", "cellpose", "stardist", "torch", "onnx"}
        assert ours <= set(TYPED)

    def test_an_import_path_with_arguments(self):
        given = {"import": "patchworks.segmenters:threshold", "kwargs": {"value": 7}}
        choice = self.parse(given)
        assert isinstance(choice, Imported)
        assert segmenter_of(choice) == threshold(7)

    def test_a_function_of_ones_own(self):
        choice = self.parse({"import": "scipy.ndimage:label"})
        assert segmenter_of(choice).__name__ == "label"

    def test_a_registered_name_keeps_its_parameters(self):
        choice = self.parse({"name": "example", "size": 3})
        assert isinstance(choice, Registered)
        with pytest.raises(InputError, match="'example' is not known"):
            segmenter_of(choice)

    def test_a_path_that_is_none_is_refused(self):
        with pytest.raises(ParameterTypeError, match="import"):
            self.parse({"import": "os.system"})

    def test_what_can_be_imported_is_shown_so_that_it_can_be_run_again(self):
        assert as_shown(threshold) == {"import": "patchworks.segmenters:threshold"}
        assert as_shown("threshold") == {"name": "threshold"}
        assert as_shown("a.b:c") == {"import": "a.b:c"}
        assert "<lambda>" in as_shown(lambda tile: tile)["name"]
        assert as_shown(ThresholdSegmenter(4))["name"].startswith("Threshold")


def test_a_misspelt_keyword_gets_a_hint():
    with pytest.raises(InputError, match=r"unknown keyword 'tile_shap'.*tile_shape"):
        split_keywords({"tile_shap": 1}, {"tiles": Tiles})


def test_keywords_go_to_their_groups():
    groups = {"tiles": Tiles, "run": Run, "selection": Selection}
    assert split_keywords({"overlap": 3, "retries": 1, "level": 2}, groups) == {
        "tiles": {"overlap": 3},
        "run": {"retries": 1},
        "selection": {"level": 2},
    }


def test_a_bad_value_from_python_names_its_keyword():
    with pytest.raises(InputError, match=r"retries=-1: .*greater than or equal to 0"):
        checked(Run, {"retries": -1})


def test_a_name_that_is_not_utf8_is_refused_before_a_server_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.job.prefect_server", None)
    image = tmp_path / os.fsdecode(b"im\xe4.tif")
    # A log that names it is in the test's report, which pytest-xdist cannot send.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    tifffile.imwrite(image, np.zeros((8, 9), "uint8"))
    with pytest.raises(InputError, match=r"im\\xe4\.tif: this name is not UTF-8.*rename it"):
        segment_image(image, segmenter="threshold", max_workers=1)


def test_live_values_are_shown_by_their_names(tmp_path):
    assert shown({"a": tmp_path, "b": (1, 2), "c": threshold}) == {
        "a": str(tmp_path),
        "b": [1, 2],
        "c": "threshold",
    }


@pytest.mark.parametrize("channel", [1, [1], [1, 0]])
def test_an_image_of_several_channels_is_planned_with_those_that_are_chosen(tmp_path, channel):
    store = ome_zarr(tmp_path / "i.zarr", [np.zeros((2, 8, 9), "uint8")], axes="cyx")
    selection = checked(Selection, {"channel": channel})
    job = plan_segmentation(
        store, components, {"selection": dict(selection)}, cluster=ClusterSpec()
    )
    source = job.plan.source
    assert [channel.pick[0] for channel in source.channels] == np.ravel(channel).tolist()
    assert (source.shape, source.lead) == ((8, 9), np.shape(channel))


@pytest.mark.parametrize("plan", ["segment", "merge"])
def test_a_stage_dir_may_be_a_path_object(tmp_path, plan):
    stage_dir = tmp_path / "stage"
    groups = {"labels": {"write_to": tmp_path / "labels.zarr"}, "run": {"stage_dir": stage_dir}}
    store = ome_zarr(tmp_path / "i.zarr", [np.zeros((8, 9), "uint8")], axes="yx")
    if plan == "segment":
        job = plan_segmentation(store, components, groups, cluster=ClusterSpec())
    else:
        merge = {"input_component": "0"}
        job = plan_merging(store, groups | {"merge": merge}, cluster=ClusterSpec())
    assert job.run.stage_dir == str(stage_dir)
    assert stage_dir in job.plan.stage.root.parents
