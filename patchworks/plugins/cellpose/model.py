"""The network of one process: loaded, and called for what both versions understand alike."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from patchworks.errors import InputError, MissingExtraError
from patchworks.execution.machine import cores_of_this_process
from patchworks.extras import import_extra
from patchworks.plugins.cellpose.installed import installed_version, major_of
from patchworks.plugins.cellpose.known_models import KNOWN
from patchworks.weights import Weights

WHAT = "cellpose_fn"

TRAINED_DIAMETER = 30.0
"""Pixels of objects that the networks of Cellpose 4 were trained on, most of them."""


@dataclass(frozen=True)
class LoadedModel:
    """A model of Cellpose, and how it is to be called.

    Parameters
    ----------
    model : cellpose.models.CellposeModel
        The model.
    major : int
        Version of Cellpose.
    """

    model: Any
    major: int

    def segment(self, seen: np.ndarray, keywords: dict[str, Any]) -> np.ndarray:
        """Return labels of normalized voxels, channels last: ``(Y, X, C)`` or ``(Z, Y, X, C)``.

        Parameters
        ----------
        seen : numpy.ndarray
            The voxels, float32.
        keywords : dict
            What both versions take.
        """
        shape = seen.shape[:-1]
        own: dict[str, Any] = {"channel_axis": seen.ndim - 1}
        if len(shape) == 3:
            own["z_axis"] = 0
        if self.major == 3:  # it drops axes of extent 1, and adds the channel that is missing last
            own["channels"] = None
            empty = np.zeros((*shape, max(0, 2 - seen.shape[-1])), np.float32)
            seen = np.concatenate([seen, empty], axis=-1)
        seen = self._filled_up(seen, keywords)
        labels = np.asarray(self.model.eval(seen, **keywords, **own)[0])
        labels = labels.reshape(seen.shape[:-1])
        return labels[tuple([slice(n) for n in shape])]

    def _filled_up(self, seen: np.ndarray, keywords: dict[str, Any]) -> np.ndarray:
        """Repeat the last voxels along axes that are too short to be resized."""
        diameter = keywords["diameter"]
        mean = float(getattr(self.model, "diam_mean", TRAINED_DIAMETER))
        least = 2 if diameter is None else max(2, ceil(diameter / mean) + 1)
        lacking = [(0, max(0, least - n)) for n in seen.shape[:-1]]
        return np.pad(seen, [*lacking, (0, 0)], mode="edge") if np.any(lacking) else seen


def load_model(weights: Weights, version: str, device: str | None, bfloat16: bool) -> LoadedModel:
    """Return the model, on the GPU if there is one and nothing else is asked for.

    Parameters
    ----------
    weights : Weights
        Of the network.
    version : str
        Of Cellpose, where the weights were found.
    device : str or None
        Where to compute.
    bfloat16 : bool
        Whether the network of Cellpose 4 computes with half the bytes.

    Raises
    ------
    MissingExtraError
        If Cellpose cannot be imported in this process.
    InputError
        If another version is installed here, or the weights or the device are not there.
    """
    package = import_extra("cellpose", "cellpose", WHAT)
    models = import_extra("cellpose.models", "cellpose", WHAT)
    torch = import_extra("torch", "cellpose", WHAT)
    _check_place(weights, version, package)
    _settle(torch)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"cellpose_fn device={device!r}: PyTorch sees no GPU in this process")
    major, gpu = major_of(version), where.type != "cpu"
    if major == 4:
        found = models.CellposeModel(
            gpu=gpu, pretrained_model=weights.path, device=where, use_bfloat16=bfloat16
        )
    else:
        by_file = {known.file: known for known in KNOWN.values()}
        known = by_file.get(weights.path.replace("\\", "/").rpartition("/")[2])
        found = models.CellposeModel(
            gpu=gpu,
            pretrained_model=weights.path,
            device=where,
            backbone="transformer" if known and known.is_transformer else "default",
        )
    return LoadedModel(found, major)


def _settle(torch: Any) -> None:
    """Have torch use this process's share of the cores, and Cellpose show no bar for each tile."""
    if torch.get_num_threads() > cores_of_this_process():
        torch.set_num_threads(cores_of_this_process())
    sparse = getattr(torch.sparse, "check_sparse_tensor_invariants", None)
    if sparse is not None and not sparse.is_enabled():
        sparse.disable()  # as it is; torch warns until it is said
    utils: Any = import_extra("cellpose.utils", "cellpose", WHAT)
    utils.trange = range  # in stitching


def _check_place(weights: Weights, version: str, package: Any) -> None:
    """Raise if this process's machine is not what the one that planned the run is."""
    here = installed_version()
    if major_of(here) != major_of(version):
        raise MissingExtraError(
            f"cellpose_fn was made with Cellpose {version}; this process has {here} "
            f"({package.__file__}): install the same on all machines"
        )
    Weights.at(weights.path, "cellpose_fn model, on this worker,")
