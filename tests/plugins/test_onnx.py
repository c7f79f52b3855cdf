"""ONNX files as segmentation functions, run by the real ONNX Runtime."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage

from patchworks import plan_run, tile_process
from patchworks.errors import InputError, MissingExtraError, SegmenterError
from patchworks.fingerprint import digest
from patchworks.plugins.onnx import onnx_fn
from patchworks.segmenters import resolve_segmenter
from tests import cells
from tests.networks import loads, noting

FLOAT = TensorProto.FLOAT
ROOT = Path(__file__).parents[2]

IMAGE = cells.make((150, 170), 14, spread=0.3)
KNOWN = {"normalize": "given", "scale": [1000]}
"""What makes the intensities of `IMAGE` lie between 0 and 1."""


def save(path, nodes, shape, dtype=FLOAT, outputs=(("y", FLOAT),), weights=()):
    """Write a model whose input is ``x``."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, path)
    return path


def smoothing(path, ndim=2, n_channels=1, at=0.3, size=5):
    """Write a model: mean over a box, then a sigmoid that is 0.5 at an intensity of `at`."""
    box = np.full((1, n_channels, *[size] * ndim), 1 / size**ndim / n_channels, "float32")
    nodes = [
        helper.make_node("Conv", ["x", "box"], ["mean"], pads=[size // 2] * 2 * ndim),
        helper.make_node("Sub", ["mean", "at"], ["above"]),
        helper.make_node("Mul", ["above", "steep"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["y"]),
    ]
    axes = ["z", "y", "x"][-ndim:]
    weights = [("box", box), ("at", np.float32(at)), ("steep", np.float32(20))]
    return save(path, nodes, [1, n_channels, *axes], weights=weights)


def identity(path, shape=(1, "c", "h", "w"), dtype=FLOAT):
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(path, [node], list(shape), dtype, outputs=[("y", dtype)])


def expected(image, at=0.3):
    mean = ndimage.uniform_filter(image / 1000, 5, mode="constant")
    return ndimage.label(mean > at)[0]


# --- what it computes ---------------------------------------------------------------------------


def test_a_network_and_a_threshold_are_what_they_are_in_scipy(tmp_path):
    segment = onnx_fn(smoothing(tmp_path / "m.onnx"), multiple=1, **KNOWN)
    found = segment(IMAGE)
    assert found.max() > 50
    assert cells.same_partition(found, expected(IMAGE))


def test_in_three_axes_too(tmp_path):
    image = cells.make((24, 40, 50), 12)
    found = onnx_fn(smoothing(tmp_path / "m.onnx", ndim=3), multiple=8, **KNOWN)(image)
    inside = (slice(3, -3),) * 3  # beyond, the image is reflected to a multiple
    np.testing.assert_array_equal(found[inside] > 0, expected(image)[inside] > 0)


def test_tiled_it_is_what_it_is_untiled(tmp_path):
    segment = onnx_fn(
        smoothing(tmp_path / "m.onnx"), postprocess="watershed", seed_threshold=0.9, min_size=20
    )
    whole = segment.prepare(IMAGE.ravel())(IMAGE)
    tiled = tile_process(IMAGE, segment, tile_shape=(48, 64), overlap=32, progress=False)
    score = cells.agreement(whole, np.asarray(tiled))
    assert score["whole"] > 50
    assert score["f1"] == 1


def test_sides_are_padded_to_a_multiple_of_their_own(tmp_path):
    path = identity(tmp_path / "m.onnx", (1, 1, 6, 32, 48))
    assert onnx_fn(path, multiple=[3, 16, 16])(np.ones((5, 30, 40))).shape == (5, 30, 40)
    assert onnx_fn(path, multiple=[6, 16, 16])(np.ones((1, 30, 40))).shape == (1, 30, 40)
    with pytest.raises(SegmenterError, match=r"multiple=\[16, 16\]: the tile has 3 axes"):
        onnx_fn(path, multiple=[16, 16])(np.ones((5, 30, 40)))


def test_several_channels_are_the_networks_channels(tmp_path):
    image = np.stack([IMAGE, IMAGE[:, ::-1]])
    segment = onnx_fn(smoothing(tmp_path / "m.onnx", n_channels=2), **KNOWN)
    found = segment.segment_view(image, ((0, 0), (0, 0)))
    prepared = segment.prepare(image.reshape(2, -1))
    np.testing.assert_array_equal(prepared(image), found)
    inside = (slice(3, -3),) * 2
    np.testing.assert_array_equal(found[inside] > 0, (expected(image.mean(axis=0)) > 0)[inside])
    with pytest.raises(SegmenterError, match=r"\(1, 1, 160, 176\): axis 1 is fixed"):
        segment.segment_view(IMAGE, ((0, 0), (0, 0)))


def test_channels_may_be_the_last_axis(tmp_path):
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[3], keepdims=1)]
    path = save(tmp_path / "m.onnx", nodes, [1, "h", "w", 2])
    segment = onnx_fn(path, layout="channels last", normalize="none", threshold=3)
    image = np.stack([IMAGE, IMAGE[::-1]]).astype("float32")
    found = segment.segment_view(image, ((0, 0), (0, 0)))
    assert cells.same_partition(found, ndimage.label(image.mean(axis=0) > 3)[0])


def test_a_model_of_labels_gives_the_labels(tmp_path):
    path = identity(tmp_path / "m.onnx", ("h", "w"), TensorProto.INT32)
    segment = onnx_fn(path, postprocess="labels", layout="plain", normalize="none", multiple=1)
    labels = np.arange(12).reshape(3, 4).astype("uint16")
    np.testing.assert_array_equal(segment(labels), labels)


@pytest.mark.parametrize("dtype", ["FLOAT16", "DOUBLE", "UINT8", "UINT16", "INT64"])
def test_the_network_gets_the_type_it_takes(tmp_path, dtype):
    path = identity(tmp_path / "m.onnx", dtype=getattr(TensorProto, dtype))
    segment = onnx_fn(path, normalize="none", threshold=100)
    image = (IMAGE // 8).astype("uint8")
    assert cells.same_partition(segment(image), ndimage.label(image > 100)[0])


def test_one_of_several_outputs_is_chosen(tmp_path):
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Neg", ["x"], ["negative"]),
    ]
    outputs = [("same", FLOAT), ("negative", FLOAT)]
    path = save(tmp_path / "m.onnx", nodes, [1, 1, "h", "w"], outputs=outputs)
    found = onnx_fn(path, output=1, normalize="none", threshold=-100)(IMAGE)
    np.testing.assert_array_equal(found > 0, IMAGE < 100)
    with pytest.raises(SegmenterError, match="2 outputs; expected one numbered output=2"):
        onnx_fn(path, output=2)(IMAGE)


# --- what is wrong ------------------------------------------------------------------------------


def test_a_stack_for_a_network_of_images_is_told_the_way_out(tmp_path):
    segment = onnx_fn(smoothing(tmp_path / "m.onnx"))
    with pytest.raises(SegmenterError, match=r"5 axes instead of 4.*slice_wise=True"):
        segment(np.zeros((4, 32, 32)))
    stack = np.stack([IMAGE] * 2)
    tiled = tile_process(
        stack, segment, slice_wise=True, tile_shape=(64, 64), overlap=16, progress=False
    )
    assert int(tiled.max()) > 50


def test_an_output_of_another_size_is_named_beside_the_expected_one(tmp_path):
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    path = save(tmp_path / "m.onnx", [node], [1, 1, "h", "w"])
    named = r"gave an output of shape \(1, 1, 16, 24\) .* \(32, 48\); expected \(1, K, 32, 48\)"
    with pytest.raises(SegmenterError, match=named):
        onnx_fn(path)(np.zeros((30, 40)))


def test_a_fixed_size_is_named(tmp_path):
    path = identity(tmp_path / "m.onnx", (1, 1, 64, 64))
    with pytest.raises(SegmenterError, match=r"\(1, 1, 48, 64\): axis 2 is fixed; export"):
        onnx_fn(path)(np.zeros((48, 64)))
    assert onnx_fn(path)(np.ones((64, 64))).shape == (64, 64)


def test_an_error_of_the_runtime_says_what_it_was_given(tmp_path):
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    weights = [("shape", np.array([7, 7], "int64"))]
    path = save(tmp_path / "m.onnx", [node], None, weights=weights)
    with pytest.raises(SegmenterError, match=r"failed on an input of shape \(1, 1, 16, 16\)"):
        onnx_fn(path)(np.zeros((16, 16)))


def test_a_file_that_is_no_model_is_named_on_the_first_tile(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(SegmenterError, match=r"m\.onnx"):
        onnx_fn(tmp_path / "m.onnx")(IMAGE)


@pytest.mark.parametrize(
    "keywords, named",
    [
        ({"postprocess": "magic"}, "postprocess='magic'"),
        ({"normalize": "zscore"}, "normalize='zscore'"),
        ({"layout": "NCHW"}, "layout='NCHW'"),
        ({"multiple": 0}, "multiple=0"),
        ({"multiple": [1, 0.5]}, "multiple=0.5"),
        ({"output": -1}, "output=-1"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"foreground_channels": []}, "foreground_channels"),
        ({"scale": [0], "normalize": "given"}, "no 0"),
    ],
)
def test_a_bad_parameter_is_refused_before_any_work(tmp_path, keywords, named):
    path = identity(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=named):
        onnx_fn(path, **keywords)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"onnx_fn model .*nothing at .*m\.onnx"):
        onnx_fn(tmp_path / "m.onnx")


def test_without_the_package_the_line_to_install_it_is_named(tmp_path, monkeypatch):
    path = identity(tmp_path / "m.onnx")
    monkeypatch.setattr("patchworks.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'patchworks\[onnx\]'"):
        onnx_fn(path)


# --- what it is to a run ------------------------------------------------------------------------


def test_its_name_makes_it(tmp_path):
    path = smoothing(tmp_path / "m.onnx")
    spec = {"name": "onnx", "model": str(path), "threshold": 0.6}
    assert resolve_segmenter(spec) == onnx_fn(path, threshold=0.6)


def test_the_content_of_all_its_files_is_part_of_the_run(tmp_path):
    path = smoothing(tmp_path / "m.onnx")
    first = onnx_fn(path)
    assert digest(onnx_fn(path)) == digest(first) == digest(pickle.loads(pickle.dumps(first)))
    assert digest(onnx_fn(path, threshold=0.6)) != digest(first)
    first(IMAGE)
    assert digest(first) == digest(onnx_fn(path))
    smoothing(path, at=0.31)
    second = onnx_fn(path)
    assert digest(second) != digest(first)
    Path(f"{path}.data").write_bytes(b"weights")
    assert digest(onnx_fn(path)) != digest(second)


def test_nothing_heavy_is_imported_before_it_is_used(tmp_path):
    path = smoothing(tmp_path / "m.onnx")
    script = (
        f"import sys; from patchworks.plugins.onnx import onnx_fn; f = onnx_fn({str(path)!r}); "
        f"assert 'onnxruntime' not in sys.modules; import numpy; f(numpy.zeros((9, 9))); "
        f"assert 'onnxruntime' in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, env=env)


@pytest.mark.slow
def test_each_worker_process_loads_it_once(tmp_path):
    segment = noting(onnx_fn(smoothing(tmp_path / "m.onnx"), **KNOWN), tmp_path / "notes")
    tiled = tile_process(
        IMAGE,
        segment,
        tile_shape=(32, 32),
        overlap=16,
        engine="processes",
        max_workers=2,
        progress=False,
    )
    found = loads(tmp_path / "notes")
    assert os.getpid() not in found
    assert set(found.values()) == {1}
    assert 1 <= len(found) <= 2
    whole = onnx_fn(tmp_path / "m.onnx", **KNOWN)(IMAGE)
    assert cells.agreement(whole, np.asarray(tiled))["f1"] == 1


def test_a_probe_of_a_plan_calls_it(tmp_path):
    segment = noting(onnx_fn(smoothing(tmp_path / "m.onnx")), tmp_path / "notes")
    proposal = plan_run(IMAGE, segment, probe=True, probe_seconds=2)
    assert proposal.probe.need.seconds_per_voxel > 0
    assert proposal.n_tiles >= 1
    assert loads(tmp_path / "notes") == {os.getpid(): 1}
