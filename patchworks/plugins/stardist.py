"""`stardist_fn`: StarDist in two or three dimensions, as a segmentation function."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from patchworks.errors import InputError, SegmenterError
from patchworks.execution.machine import cores_of_this_process
from patchworks.extras import check_extra, import_extra
from patchworks.normalisation import Normalisation, Normalise
from patchworks.probabilities import Margins, without_small
from patchworks.process_model import ProcessModel
from patchworks.run import finite_number, whole_number
from patchworks.weights import Weights

logger = logging.getLogger(__name__)

WEIGHTS = ("*.h5", "*.hdf5")
"""Names of weights in a model's folder, of which StarDist prefers those that say "best"."""


def stardist_fn(
    model: str | os.PathLike[str] = "2D_versatile_fluo",
    *,
    prob_threshold: float | None = None,
    nms_threshold: float | None = None,
    scale: float | None = None,
    min_size: int = 0,
    normalize: Normalise = "percentiles",
    low_percentile: float = 1.0,
    high_percentile: float = 99.8,
    offset: list[float] | None = None,
    divisor: list[float] | None = None,
    channels_together: bool = False,
) -> StarDist:
    """Return a segmenter that is StarDist with a trained model.

    Nothing is downloaded: a model is a folder, or one that StarDist has downloaded before. Each
    process loads it once, when it first segments; its content is part of the run.

    Parameters
    ----------
    model : path
        The folder of a trained model (``config.json``, ``weights_best.h5``, ``thresholds.json``),
        or the name of a pretrained one in Keras's cache: 2D_versatile_fluo, 2D_versatile_he,
        2D_paper_dsb2018, 3D_demo. Whether it is for two or three axes is said there; a model of
        2-D images segments a stack with ``slice_wise=True``.
    prob_threshold : float, optional
        Least probability of an object, 0 to 1; by default the model's own.
    nms_threshold : float, optional
        Overlap of two candidates above which one is dropped, 0 to 1; by default the model's own.
    scale : float, optional
        Factor by which a tile is enlarged before, where objects are of another size than those
        that the model was trained on.
    min_size : int
        Objects of fewer voxels are left out.
    normalize : {"percentiles", "mean", "given", "none"}
        "percentiles": the low one becomes 0, the high one 1, as StarDist is trained. "mean": the
        mean becomes 0, the standard deviation 1. Both of the whole image. "given": offset and
        divisor.
    low_percentile, high_percentile : float
        For "percentiles", 0 to 100.
    offset, divisor : list of float, optional
        For "given": (voxel - offset) / divisor, one number for each channel or for all.
    channels_together : bool
        Take the percentiles of all channels at once, as for colour images.

    Returns
    -------
    StarDist
        Objects are star-convex: an overlap of more than an object's diameter makes tiles agree.

    Raises
    ------
    MissingExtraError
        If stardist or tensorflow is not installed.
    InputError
        If there is no such model, or a parameter is wrong.

    References
    ----------
    U. Schmidt, M. Weigert, C. Broaddus, G. Myers, "Cell Detection with Star-convex Polygons",
    MICCAI 2018; M. Weigert et al., "Star-convex Polyhedra for 3D Object Detection and Segmentation
    in Microscopy", WACV 2020.
    """
    for package in ("stardist", "tensorflow"):
        check_extra(package, "stardist", "stardist_fn")
    folder = _folder(model)
    for name, value in (("prob_threshold", prob_threshold), ("nms_threshold", nms_threshold)):
        number = finite_number(name, value)
        if number is not None and not 0 < number < 1:
            raise InputError(f"stardist_fn {name}={value!r}: expected a number between 0 and 1")
    factor = finite_number("scale", scale)
    if factor is not None and factor <= 0:
        raise InputError(f"stardist_fn scale={scale!r}: expected a number above 0")
    n_axes, n_channels = _kind_of(folder)
    return StarDist(
        model=ProcessModel(_load, (folder, _files(folder), n_axes)),
        n_axes=n_axes,
        n_channels=n_channels,
        prob_threshold=prob_threshold,
        nms_threshold=nms_threshold,
        scale=factor,
        min_size=whole_number("min_size", min_size, 0, 2**62),
        normalisation=Normalisation.checked(
            "stardist_fn",
            normalize,
            (low_percentile, high_percentile),
            (offset, divisor),
            together=channels_together,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class StarDist:
    """A segmentation function; see `stardist_fn`."""

    model: ProcessModel[Any]
    n_axes: int
    n_channels: int
    prob_threshold: float | None = None
    nms_threshold: float | None = None
    scale: float | None = None
    min_size: int = 0
    normalisation: Normalisation = field(default_factory=Normalisation)

    def at_scale(self, voxel_size: Sequence[float | None], shape: Sequence[int]) -> StarDist:
        """Return itself; raise InputError if the model is one for another kind of image."""
        if why := self._misfit(tuple(shape), len(voxel_size)):
            raise InputError(why)
        return self

    def prepare(self, sample: np.ndarray) -> StarDist:
        """Return the function for an image, a sample of which is flat, or ``(C, n)``."""
        return replace(self, normalisation=self.normalisation.of(sample))

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Return the labels of a whole image, or of a tile of which nothing else is known."""
        return self.segment_view(tile, ((0, 0),) * min(tile.ndim, self.n_axes))

    def segment_view(self, tile: np.ndarray, margins: Margins) -> np.ndarray:
        """Return the labels of a tile, int32; of several channels it has an axis more than they.

        Raises
        ------
        SegmenterError
            If the model is one for another number of axes or channels.
        """
        n_axes = len(margins)
        if why := self._misfit(tile.shape, n_axes):
            raise SegmenterError(why)
        axes = "CZYX"[4 - tile.ndim :] if n_axes == 3 else "CYX"[3 - tile.ndim :]
        voxels = self.normalisation(tile, n_axes).astype(np.float32, copy=False)
        with self.model.use() as network:
            labels, _ = network.predict_instances(
                voxels,
                axes=axes,
                prob_thresh=self.prob_threshold,
                nms_thresh=self.nms_threshold,
                scale=self.scale,
                show_tile_progress=False,
                verbose=False,
            )
        return without_small(np.asarray(labels, np.int32), self.min_size, margins)

    def _misfit(self, shape: tuple[int, ...], n_axes: int) -> str:
        """Return why the model cannot segment a tile of so many axes of space, or ""."""
        n_channels = shape[0] if len(shape) > n_axes else 1
        if n_axes != self.n_axes or len(shape) > n_axes + 1:
            hint = "; for a stack give slice_wise=True" if self.n_axes < n_axes else ""
            return (
                f"a StarDist model of {self.n_axes} axes cannot segment {shape}, of {n_axes} axes "
                f"of space; expected {'Y, X' if self.n_axes == 2 else 'Z, Y, X'}{hint}"
            )
        if n_channels != self.n_channels:
            return (
                f"the StarDist model takes {self.n_channels} channels, and {shape} has "
                f"{n_channels}; choose them with channel="
            )
        return ""


def _folder(model: str | os.PathLike[str]) -> str:
    """Return the folder of a model, by its path or its name."""
    folder = Path(model).expanduser().absolute()
    looked = [folder]
    if len(Path(model).parts) == 1:
        looked += _cached(str(model))
    for each in looked:
        if (each / "config.json").is_file():
            return str(each)
    name = Path(model).name
    kind = "StarDist3D" if name.startswith("3D") else "StarDist2D"
    raise InputError(
        f"stardist_fn model {str(model)!r}: there is no config.json in "
        f"{' nor in '.join(map(str, looked))}; expected the folder of a trained model, or the name "
        f"of one that was downloaded before. On a machine with a network, "
        f"python -c \"from stardist.models import {kind}; {kind}.from_pretrained('{name}')\" "
        f"downloads a pretrained one; copy its folder here"
    )


def _cached(name: str) -> list[Path]:
    """Return where Keras, of any version, puts a pretrained model of that name."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")).absolute()
    roots = [home / "models" / kind / name for kind in ("StarDist2D", "StarDist3D")]
    return [folder for root in roots for folder in (root, root / f"{name}_extracted", root / name)]


def _files(folder: str) -> tuple[Weights, ...]:
    """Return the files that make a model: configuration, weights, and thresholds if there are."""
    found = [file for ending in WEIGHTS for file in Path(folder).glob(ending)]
    if not found:
        raise InputError(f"stardist_fn model {folder}: no weights; expected weights_best.h5 there")
    weights = max(found, key=lambda file: ("best" in file.name, file.stat().st_mtime, file.name))
    files = [Path(folder) / "config.json", weights]
    if (Path(folder) / "thresholds.json").is_file():
        files.append(Path(folder) / "thresholds.json")
    return tuple([Weights.at(file, "stardist_fn model") for file in files])


def _kind_of(folder: str) -> tuple[int, int]:
    """Return the axes of space and the channels of the images that a model segments."""
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_text())
        n_axes, n_channels = config["n_dim"], config["n_channel_in"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"stardist_fn model: {file} does not say n_dim and n_channel_in "
            f"({type(error).__name__}: {error}); expected what StarDist writes when a model is made"
        ) from error
    if n_axes not in (2, 3):
        raise InputError(f"stardist_fn model: {file} says n_dim={n_axes!r}; expected 2 or 3")
    return int(n_axes), int(n_channels)


def _load(folder: str, files: tuple[Weights, ...], n_axes: int) -> Any:
    """Return StarDist with the weights of a folder."""
    _share_the_machine(import_extra("tensorflow", "stardist", "stardist_fn"))
    models = import_extra("stardist.models", "stardist", "stardist_fn")
    make = models.StarDist2D if n_axes == 2 else models.StarDist3D
    with _quiet():
        network = make(None, name=Path(folder).name, basedir=str(Path(folder).parent))
        network.load_weights(Path(files[1].path).name)
    network.basedir = None  # it writes nothing there
    return network


def _share_the_machine(tensorflow: Any) -> None:
    """Have TensorFlow take its share of the cores, and of a GPU no more than it needs."""
    with contextlib.suppress(RuntimeError):  # it has begun to compute: too late
        tensorflow.config.threading.set_intra_op_parallelism_threads(cores_of_this_process())
        for gpu in tensorflow.config.list_physical_devices("GPU"):
            tensorflow.config.experimental.set_memory_growth(gpu, True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log what StarDist prints while it loads."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield
    logger.debug("%s", printed.getvalue())
