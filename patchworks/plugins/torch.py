"""`torch_fn`: a network of PyTorch in a file, as a segmentation function."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from patchworks.torch_file import TorchKind, torch_kind
from patchworks.weights import Weights

InputType = Literal["float32", "float64", "float16", "bfloat16", "uint8", "int16", "int32", "int64"]

ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Variable under which `torch.load` reads tensors and never runs code of a pickle."""


def torch_fn(
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
    dtype: InputType = "float32",
    device: str | None = None,
) -> ImageModel:
    """Return a segmenter that is a PyTorch network in a file, and what makes objects of its output.

    The file is TorchScript (``.pt``) or an exported program (``.pt2``); a pickle is refused. Each
    process loads it once, when it first segments; its content is part of the run.

    Parameters
    ----------
    model : path
        The file.
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
    dtype : {"float32", "float64", "float16", "bfloat16", "uint8", "int16", "int32", "int64"}
        What the model takes.
    device : str, optional
        Such as "cpu" or "cuda"; by default the GPU, if torch can use one.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    InputError
        If there is no such file, it is no model that can be loaded safely, or a parameter is wrong.
    """
    check_extra("torch", "torch", "torch_fn")
    weights = Weights.at(model, "torch_fn model")
    kind = torch_kind(weights.path, "torch_fn model")
    if dtype not in get_args(InputType):
        raise InputError(f"dtype={dtype!r}: expected one of {get_args(InputType)}")
    if device is not None and not isinstance(device, str):
        raise InputError(f"device={device!r}: expected a name such as 'cpu' or 'cuda:0'")
    return ImageModel(
        network=TorchNetwork(
            ProcessModel(_load, (weights, kind, device)),
            whole_number("output", output, 0, 2**16),
            dtype,
        ),
        normalisation=Normalisation.checked(
            "torch_fn", normalize, (low_percentile, high_percentile), (offset, scale), clip=clip
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
class TorchNetwork:
    """A network of torch: array in, array out.

    Parameters
    ----------
    model : ProcessModel
        Module and device, once loaded.
    output : int
        Which of its outputs.
    dtype : str
        What it takes.
    """

    model: ProcessModel[tuple[Any, Any]]
    output: int = 0
    dtype: str = "float32"

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Return the output, floats as float32 or float64.

        Raises
        ------
        SegmenterError
            If it has no such output, or one that is no tensor.
        """
        torch = import_extra("torch", "torch", "torch_fn")
        array = array.astype("float32" if self.dtype == "bfloat16" else self.dtype, copy=False)
        if not array.flags.writeable:  # torch would warn that it could be written to
            array = array.copy()
        with self.model.use() as (module, device), torch.inference_mode():
            tensor = torch.from_numpy(array).to(device, getattr(torch, self.dtype))
            found: Any = chosen(_called(module, tensor), self.output)
            if not isinstance(found, torch.Tensor):
                raise SegmenterError(
                    f"the model's output {self.output} is a {type(found).__name__}; expected a "
                    f"tensor"
                )
            if found.dtype in (torch.float16, torch.bfloat16):
                found = found.float()
            result: np.ndarray = found.cpu().numpy()
        return result


def _called(module: Any, tensor: Any) -> Any:
    try:
        return module(tensor)
    except AssertionError as error:
        raise SegmenterError(
            f"the exported program takes no input of shape {tuple(tensor.shape)} ({error}); export "
            f"it with dynamic_shapes for its axes of space: see docs/models.md"
        ) from error


def _load(weights: Weights, kind: TorchKind, device: str | None) -> tuple[Any, Any]:
    """Return the module in a file, ready to be called, and the device that it is on."""
    torch = import_extra("torch", "torch", "torch_fn")
    if torch.get_num_threads() > cores_of_this_process():
        torch.set_num_threads(cores_of_this_process())
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with warnings.catch_warnings(), _without_pickles():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript's; it is what users have
        if kind == "script":
            return torch.jit.load(weights.path, map_location=place).eval(), place
        program = torch.export.load(weights.path)
        if place.type != "cpu":
            passes = import_extra("torch.export.passes", "torch", "torch_fn on a GPU")
            program = passes.move_to_device_pass(program, place)
        return program.module(), place


@contextmanager
def _without_pickles() -> Iterator[None]:
    """Have torch read tensors only, where it would go on to run what a pickle asks for."""
    before = os.environ.get(ONLY_WEIGHTS)
    os.environ[ONLY_WEIGHTS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ONLY_WEIGHTS]
        else:
            os.environ[ONLY_WEIGHTS] = before
