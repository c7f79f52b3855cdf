"""`onnx_fn`: a network in an ONNX file as a segmentation function, run by ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from patchworks.errors import InputError, SegmenterError
from patchworks.execution.machine import cores_of_this_process
from patchworks.extras import check_extra, import_extra
from patchworks.image_model import ImageModel, Layout, TileInput, chosen
from patchworks.normalisation import Normalisation, Normalise
from patchworks.probabilities import Activation, PostProcess, PostProcessing, numbered
from patchworks.process_model import ProcessModel
from patchworks.run import whole_number
from patchworks.weights import Weights

Device = Literal["auto", "cpu", "cuda"]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(uint8)": "uint8", "tensor(int8)": "int8", "tensor(uint16)": "uint16",
    "tensor(int16)": "int16", "tensor(uint32)": "uint32", "tensor(int32)": "int32",
    "tensor(uint64)": "uint64", "tensor(int64)": "int64",
}  # fmt: skip
"""Types of an ONNX model's input, and NumPy's names for them."""

BESIDE = (".data", "_data")
"""What the names of files end in that hold the weights of a model which is too large for one."""


def onnx_fn(
    model: str | os.PathLike[str],
    *,
    postprocess: PostProcess = "threshold",
    activation: Activation = "none",
    threshold: float = 0.5,
    seed_threshold: float = 0.8,
    seed_distance: int | None = None,
    min_size: int = 0,
    connectivity: int = 1,
    anisotropy: float | None = None,
    foreground_channels: list[int] | None = None,
    boundary_channel: int | None = None,
    seed_channel: int | None = None,
    output: int = 0,
    normalize: Normalise = "percentiles",
    low_percentile: float = 1.0,
    high_percentile: float = 99.8,
    offset: list[float] | None = None,
    scale: list[float] | None = None,
    clip: bool = False,
    layout: Layout = "channels first",
    multiple: int | list[int] = 16,
    device: Device = "auto",
) -> ImageModel:
    """Return a segmenter that is a network in an ONNX file, and what makes objects of its output.

    Each process loads the file once, when it first segments; its content is part of the run.

    Parameters
    ----------
    model : path
        The file; weights in a file beside it (``model.onnx.data``) belong to it.
    postprocess : {"threshold", "distance transform", "watershed", "labels"}
        How the output becomes objects. "threshold": connected pieces above it. "distance
        transform": these, cut where they narrow, for round objects that touch. "watershed": grown
        from seeds, for a model that marks centres, insides or boundaries. "labels": the model gives
        labels.
    activation : {"none", "sigmoid", "softmax"}
        What makes probabilities of the output, if the model does not.
    threshold : float
        Foreground lies above it.
    seed_threshold : float
        Seeds of "watershed" lie above it.
    seed_distance : int, optional
        Voxels between two seeds at least; 5 for "distance transform". For "watershed" it makes
        maxima the seeds, instead of whatever lies above the seed threshold in one piece.
    min_size : int
        Objects of fewer voxels are left out.
    connectivity : int
        How many axes a step between neighbouring voxels of an object may change; 1 for faces only.
    anisotropy : float, optional
        Distance between slices over that of pixels, for "distance transform" in three axes; by
        default the image's own, and 1 where that is not known.
    foreground_channels : list of int, optional
        Channels of the output that are added up to the foreground; by default the first. Of the
        classes background, inside, boundary these are 1 and 2.
    boundary_channel : int, optional
        Channel of the boundaries between objects: subtracted before seeds are looked for.
    seed_channel : int, optional
        Channel of centres or insides, or of the distance to the background, for "watershed".
    output : int
        Which of several outputs of the model.
    normalize : {"percentiles", "mean", "given", "none"}
        "percentiles": the low one becomes 0, the high one 1. "mean": the mean becomes 0, the
        standard deviation 1. Both of the whole image, per channel. "given": offset and scale.
    low_percentile, high_percentile : float
        For "percentiles", 0 to 100.
    offset, scale : list of float, optional
        For "given": (voxel - offset) / scale, one number for each channel or for all.
    clip : bool
        Cut off what is normalized below 0 and above 1.
    layout : {"channels first", "channels last", "plain"}
        Axes of the model's input: (1, C, Z, Y, X), (1, Z, Y, X, C), or the tile as it is.
    multiple : int or list of int
        What the sides of a tile are padded to, by reflection, as networks with pooling need it; one
        number per axis where they do not pool all alike. A tile shape and an overlap of such
        multiples make tiles agree best.
    device : {"auto", "cpu", "cuda"}
        "auto": the GPU, if ONNX Runtime can use one (the package onnxruntime-gpu).

    Raises
    ------
    MissingExtraError
        If onnxruntime is not installed.
    InputError
        If there is no such file, or a parameter is wrong.
    """
    check_extra("onnxruntime", "onnx", "onnx_fn")
    weights = Weights.at(model, "onnx_fn model")
    beside = [Path(weights.path + ending) for ending in BESIDE]
    files = [weights, *[Weights.at(each, "onnx_fn model") for each in beside if each.is_file()]]
    if device not in get_args(Device):
        raise InputError(f"device={device!r}: expected one of {get_args(Device)}")
    return ImageModel(
        network=OnnxNetwork(
            ProcessModel(_load, (tuple(files), device)), whole_number("output", output, 0, 2**16)
        ),
        normalisation=Normalisation.checked(
            "onnx_fn", normalize, (low_percentile, high_percentile), (offset, scale), clip=clip
        ),
        input=TileInput(layout, tuple(multiple) if isinstance(multiple, list) else multiple),
        objects=PostProcessing(
            how=postprocess,
            activation=activation,
            threshold=threshold,
            seed_threshold=seed_threshold,
            seed_distance=seed_distance,
            min_size=min_size,
            connectivity=connectivity,
            anisotropy=anisotropy,
            foreground=numbered(foreground_channels),
            boundary=boundary_channel,
            seeds=seed_channel,
        ),
    )


@dataclass(frozen=True)
class OnnxNetwork:
    """A network of ONNX Runtime: array in, array out.

    Parameters
    ----------
    model : ProcessModel
        A session, once loaded.
    output : int
        Which of its outputs.
    """

    model: ProcessModel[Any]
    output: int = 0

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Return the output.

        Raises
        ------
        SegmenterError
            If the model takes another kind of array, has no such output, or one that is no tensor.
        """
        with self.model.use() as session:
            wanted = _input_of(session)
            if why := _misfit(array.shape, wanted.shape):
                raise SegmenterError(
                    f"the model takes {wanted.name!r} of shape {wanted.shape}, and was given "
                    f"{array.shape}: {why}"
                )
            given = np.ascontiguousarray(array, DTYPES[wanted.type])
            found = chosen(session.run(None, {wanted.name: given}), self.output)
        if not isinstance(found, np.ndarray):
            raise SegmenterError(
                f"the model's output {self.output} is a {type(found).__name__}; expected a tensor"
            )
        return found.astype(np.float32) if found.dtype == np.float16 else found


def _input_of(session: Any) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in DTYPES:
        named = ", ".join(f"{each.name!r} ({each.type})" for each in inputs) or "none"
        raise SegmenterError(f"the model's inputs: {named}; expected one, a tensor of numbers")
    return inputs[0]


def _misfit(shape: tuple[int, ...], wanted: Sequence[int | str | None]) -> str:
    """Return why an array cannot be a model's input, or "" if it may be."""
    if not wanted:  # the model does not say
        return ""
    if len(shape) != len(wanted):
        hint = "; a model of 2-D images takes slice_wise=True" if len(shape) > len(wanted) else ""
        return f"{len(shape)} axes instead of {len(wanted)}; see layout={hint}"
    fixed = [
        axis for axis, n in enumerate(wanted) if isinstance(n, int) and n > 0 and n != shape[axis]
    ]
    if not fixed:
        return ""
    return (
        f"axis {fixed[0]} is fixed; export the model with dynamic axes of space (dynamo=True and "
        f"dynamic_shapes= of torch.onnx.export), choose channel=, or change layout="
    )


def _load(files: tuple[Weights, ...], device: Device) -> Any:
    """Return a session of the model in the first file."""
    runtime = import_extra("onnxruntime", "onnx", "onnx_fn")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = cores_of_this_process()
    options.log_severity_level = 3  # errors; what it says of a graph is the exporter's matter
    has_cuda = CUDA in runtime.get_available_providers() and device != "cpu"
    providers = [CUDA, CPU] if has_cuda else [CPU]
    session = runtime.InferenceSession(files[0].path, options, providers=providers)
    if device == "cuda" and CUDA not in session.get_providers():
        raise InputError(
            f"onnx_fn device='cuda': ONNX Runtime {runtime.__version__} cannot use a GPU here; "
            f"install onnxruntime-gpu for this machine's CUDA, or give device='auto'"
        )
    return session
