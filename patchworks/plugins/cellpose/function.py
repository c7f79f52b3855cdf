"""`cellpose_fn`: Cellpose 3 or 4 for `patchworks.tile_process`, by keywords that its users know."""

from __future__ import annotations

from typing import Literal

from patchworks.errors import InputError
from patchworks.plugins.cellpose.find_weights import find_weights
from patchworks.plugins.cellpose.installed import installed_version
from patchworks.plugins.cellpose.model import load_model
from patchworks.plugins.cellpose.normalisation import METHODS, Normalisation
from patchworks.plugins.cellpose.segmenter import Cellpose
from patchworks.plugins.cellpose.settings import (
    Settings,
    device_name,
    flag,
    in_range,
    pairs,
    positions,
)
from patchworks.process_model import ProcessModel


def cellpose_fn(
    model: str | None = None,
    *,
    diameter: float | None = None,
    channels: list[int] | None = None,
    do_3D: bool = False,  # noqa: N803 - Cellpose's name
    anisotropy: float | None = None,
    stitch_threshold: float = 0.0,
    normalize: Literal["global", "per tile", "none"] = "global",
    low_percentile: float = 1.0,
    high_percentile: float = 99.0,
    low_high: list[float] | None = None,
    invert: bool = False,
    flow_threshold: float = 0.4,
    cellprob_threshold: float = 0.0,
    min_size: int = 15,
    max_size_fraction: float = 0.4,
    niter: int | None = None,
    augment: bool = False,
    resample: bool = True,
    flow3D_smooth: float = 0.0,  # noqa: N803 - Cellpose's name
    batch_size: int = 8,
    tile_overlap: float = 0.1,
    bfloat16: bool = True,
    device: str | None = None,
) -> Cellpose:
    """Return Cellpose, 3 or 4, whichever is installed, as a segmenter.

    Everything is checked here, without importing Cellpose or torch; the network is loaded in the
    processes that use it. Nothing is downloaded: ``patchworks models fetch NAME`` does that.

    Parameters
    ----------
    model : str, optional
        Name of a model, such as cyto3 or nuclei (Cellpose 3) or cpsam_v2 (Cellpose 4), name of a
        file in Cellpose's folder of models, or path of weights. None: cyto3 or cpsam_v2.
    diameter : float, optional
        Of the objects, in pixels. None: that of the objects that the model was trained on; it is
        never estimated, for each tile would get another.
    channels : list of int, optional
        Which channels of the run the network sees, first what to segment, then its nuclei: with
        channel=[0, 2] given to the run, [0, 1] are those two in that order. None: all, in order.
    do_3D : bool
        Segment volumes, in three orientations. Otherwise planes: give slice_wise=True to the run.
    anisotropy : float, optional
        For do_3D: how many times longer voxels are in z than across. None: as the image says.
    stitch_threshold : float
        Above 0: segment planes of volumes, and join those objects of neighbouring planes whose
        intersection over union is larger.
    normalize : {"global", "per tile", "none"}
        Whose percentiles become 0 and 1. "global": those of the image, computed once, as Cellpose
        does for an image that is given to it whole. "per tile": those of each tile, which makes
        neighbours disagree. "none": the intensities are the network's input.
    low_percentile : float
        The percentile that becomes 0.
    high_percentile : float
        The percentile that becomes 1.
    low_high : list of float, optional
        Intensities that become 0 and 1, in place of percentiles; one pair, or one per channel that
        the network sees.
    invert : bool
        Objects are darker than what is around them.
    flow_threshold : float
        Largest error of an object's flows, in planes; 0 keeps all.
    cellprob_threshold : float
        Pixels above it belong to objects; lower it to find more and larger ones.
    min_size : int
        Pixels of the smallest object; -1 keeps all. Objects cut by a tile's halo are counted in
        full only if the overlap is as long as they are.
    max_size_fraction : float
        Objects that take a larger share of the whole image (of its plane) are left out.
    niter : int, optional
        Steps in which pixels follow the flows. None: 200, more for large objects. Long, thin ones
        may need 2000.
    augment : bool
        Average over flipped squares: four times slower.
    resample : bool
        Follow the flows at the image's own resolution, not at the network's.
    flow3D_smooth : float
        For do_3D: standard deviation of a smoothing of the flows, in voxels.
    batch_size : int
        Squares of 224 or 256 pixels that the network sees at a time.
    tile_overlap : float
        Share by which those squares overlap; not the overlap of the run's tiles.
    bfloat16 : bool
        Compute with half the bytes, in Cellpose 4; version 3 always takes all.
    device : str, optional
        cpu, cuda, cuda:1 or mps. None: a CUDA GPU where torch sees one, else the CPU.

    Returns
    -------
    Cellpose
        ``fn(tile) -> labels``; it can be pickled.

    Raises
    ------
    InputError
        If a parameter cannot be used, or there is no such model on this machine.
    MissingExtraError
        If Cellpose is not installed.

    References
    ----------
    C. Stringer, T. Wang, M. Michaelos, M. Pachitariu, "Cellpose: a generalist algorithm for
    cellular segmentation", Nature Methods 18, 2021. M. Pachitariu, M. Rariden, C. Stringer,
    "Cellpose-SAM: superhuman generalization for cellular segmentation", bioRxiv, 2025.
    """
    settings = Settings(
        diameter=diameter,
        channels=positions("channels", channels),
        do_3D=do_3D,
        anisotropy=anisotropy,
        stitch_threshold=stitch_threshold,
        flow_threshold=flow_threshold,
        cellprob_threshold=cellprob_threshold,
        min_size=min_size,
        max_size_fraction=max_size_fraction,
        niter=niter,
        augment=augment,
        resample=resample,
        flow3D_smooth=flow3D_smooth,
        batch_size=batch_size,
        tile_overlap=tile_overlap,
    )
    normalisation = _normalisation(normalize, low_percentile, high_percentile, low_high, invert)
    where, half = device_name(device), flag("bfloat16", bfloat16)
    if model is not None and (not isinstance(model, str) or not model):
        raise InputError(f"cellpose_fn model={model!r}: expected a name or a path")
    version = installed_version()
    return Cellpose(
        model=ProcessModel(load_model, (find_weights(model, version), version, where, half)),
        version=version,
        settings=settings,
        normalisation=normalisation,
    )


def _normalisation(
    method: str, low: float, high: float, low_high: list[float] | None, invert: bool
) -> Normalisation:
    """Return how intensities are normalized, or raise InputError."""
    if method not in METHODS:
        raise InputError(f"cellpose_fn normalize={method!r}: expected one of {list(METHODS)}")
    lower, upper = (
        in_range("low_percentile", low, 0, 100),
        in_range("high_percentile", high, 0, 100),
    )
    if not lower < upper:
        raise InputError(
            f"cellpose_fn low_percentile={low!r} is not below high_percentile={high!r}"
        )
    given = pairs("low_high", low_high)
    if given is not None and method != "global":
        raise InputError(f"cellpose_fn low_high with normalize={method!r}: give one of the two")
    if flag("invert", invert) and method == "none":
        raise InputError("cellpose_fn invert=True: needs a normalisation, to know what is bright")
    return Normalisation(method=method, percentiles=(lower, upper), low_high=given, invert=invert)
