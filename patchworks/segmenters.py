"""What a segmentation function is, and the functions that are known by a name.

A segmenter is any callable that turns a tile of the image into labels of the same shape: integers,
0 for background, one positive number per object. Of several channels (``channel=[0, 2]``) the tile
has a leading axis, ``(C, Z, Y, X)``, which the labels do not have. A tile lies in one time point,
and slice by slice it is ``(Y, X)`` or ``(C, Y, X)``. A segmenter may carry one optional method::

    prepared = segmenter.prepare(sample)

which is called once per run with a sample of the whole image, flat (of several channels
``(C, n)``: the same voxels of each), and returns the segmenter to use on every tile. Statistics
that must be the same everywhere (a global threshold, percentiles) belong there: computed per tile
they would make every seam visible. One that needs to know what an image is like carries::

    calibrated = segmenter.at_scale(voxel_size, shape)

which is called once per run before all else, and returns the segmenter to use from then on.
`voxel_size` gives micrometers per axis of the tile but for channels, None where they are unknown;
`shape` is that of the tile that would hold a whole time point, slice or image: of several channels
``(C, Z, Y, X)``. What it finds wrong with them it says there, as an InputError, before any work.

And another one, which is then called instead of the segmenter itself::

    labels = segmenter.segment_view(tile, margins)

`margins` gives per axis of the labels the voxels of halo on the lower and the upper side, 0 where
the image ends. A segmenter that knows how far it looks can leave out what it cannot know there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import cloudpickle
import numpy as np
from scipy import ndimage

from patchworks.errors import InputError
from patchworks.run import finite_number

Segmenter = Callable[[np.ndarray], np.ndarray]

REACH = 4.0
"""Standard deviations at which Gaussian smoothing is cut off."""

GROUP = "patchworks.segmenters"
"""Entry point group through which a package offers segmenters by name."""


def name_of(fn: Callable[..., Any]) -> str:
    """Return the name under which messages speak of a function."""
    if isinstance(fn, partial):
        return name_of(fn.func)
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))


class StoredSegmenter:
    """A function in a file, which becomes one in the process that calls it, once.

    Processes that only join or write labels need neither its packages nor memory for its model.

    Parameters
    ----------
    path : str
        The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._segmenter: Segmenter | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredSegmenter, (self.path,)

    def load(self) -> Segmenter:
        """Return the function: the same one, whichever thread asks."""
        with _LOADING:
            if self._segmenter is None:
                self._segmenter = cloudpickle.loads(Path(self.path).read_bytes())
            found: Segmenter = self._segmenter
            return found

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Call the function."""
        return self.load()(tile)


_LOADING = threading.RLock()


def loaded(segmenter: Segmenter) -> Segmenter:
    """Return the function itself, read from its file if it lies in one."""
    return segmenter.load() if isinstance(segmenter, StoredSegmenter) else segmenter


def otsu_threshold(values: np.ndarray, n_bins: int = 256) -> float:
    """Return the threshold that best splits `values` in two classes.

    Parameters
    ----------
    values : numpy.ndarray
        Intensities, any shape.
    n_bins : int
        Bins of the histogram; integers that span fewer values get one bin each.

    Returns
    -------
    float
        Objects are the values *above* it. The value itself where all values are equal.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Systems, Man,
    and Cybernetics 9(1), 1979.

    Examples
    --------
    >>> otsu_threshold(np.array([1, 1, 2, 9, 9, 8]))
    2.0
    """
    finite = np.asarray(values).ravel()
    if finite.dtype.kind == "b":
        finite = finite.astype(np.uint8)
    if finite.dtype.kind == "f":
        finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return 0.0
    low, high = finite.min().item(), finite.max().item()
    if low == high:
        return float(low)
    integers = finite.dtype.kind in "iu" and high - low < n_bins
    base = low if finite.dtype.kind in "iu" else 0.0  # large offsets would cost digits
    edges = (
        np.arange(high - low + 2) if integers else np.linspace(low - base, high - base, n_bins + 1)
    )
    counts, _ = np.histogram(finite, bins=edges + base)
    centres = edges[:-1] if integers else (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), finite.size
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below / total - sums) ** 2 / (below * (total - below))
    best = int(np.nanargmax(between[:-1]))
    return float(base + (centres[best] if integers else edges[best + 1]))


@dataclass(frozen=True)
class Threshold:
    """Connected components of the voxels above a threshold; see `threshold`."""

    value: float | None = None
    sigma: float = 0.0
    connectivity: int = 1

    def prepare(self, sample: np.ndarray) -> Threshold:
        """Return the segmenter with Otsu's threshold of `sample`, if none was given."""
        return self if self.value is not None else replace(self, value=otsu_threshold(sample))

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Return int32 labels of the connected components above the threshold."""
        return self.segment_view(tile, ((0, 0),) * tile.ndim)

    @property
    def reach(self) -> int:
        """How many voxels around a voxel its answer depends on."""
        return int(REACH * self.sigma + 0.5)

    def segment_view(self, tile: np.ndarray, margins: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Return the components, but for the rim of the halo where smoothing lacks voxels.

        There the mask is made up of reflected voxels, and a bridge that only exists there would
        make two objects one, in the core too.
        """
        value = otsu_threshold(tile) if self.value is None else self.value
        structure = ndimage.generate_binary_structure(tile.ndim, min(self.connectivity, tile.ndim))
        if self.sigma:
            tile = ndimage.gaussian_filter(tile.astype(np.float32), self.sigma, truncate=REACH)
        mask = tile > value
        for axis, (lower, upper) in enumerate(margins):
            rims = np.moveaxis(mask, axis, 0)
            rims[: min(self.reach, max(0, lower - 1))] = False
            rims[len(rims) - min(self.reach, max(0, upper - 1)) :] = False
        labels, _ = ndimage.label(mask, structure)
        return cast(np.ndarray, labels)


def threshold(
    value: float | None = None, *, sigma: float = 0.0, connectivity: int = 1
) -> Threshold:
    """Return a segmenter that labels the connected components above a threshold.

    Parameters
    ----------
    value : float, optional
        Voxels above it are object; by default Otsu's threshold, computed once for the whole image.
    sigma : float
        Gaussian smoothing before, in voxels. It looks 4 sigma far: give an overlap of more.
    connectivity : int
        How many axes a step between neighbouring voxels of an object may change; 1 for faces only.

    Raises
    ------
    InputError
        If `value` is not a number, `sigma` is negative or `connectivity` is not a positive integer.

    Examples
    --------
    >>> threshold(4)(np.array([[9, 9, 0], [0, 0, 7]])).tolist()
    [[1, 1, 0], [0, 0, 2]]
    """
    number = finite_number("threshold value", value)
    if isinstance(connectivity, bool) or not isinstance(connectivity, int) or connectivity < 1:
        raise InputError(f"threshold connectivity={connectivity!r}: expected an integer >= 1")
    smoothing = finite_number("threshold sigma", sigma)
    if smoothing is None or smoothing < 0:
        raise InputError(f"threshold sigma={sigma!r}: expected a number of voxels >= 0")
    return Threshold(number, smoothing, connectivity)


def resolve_segmenter(spec: Segmenter | str | Mapping[str, Any]) -> Segmenter:
    """Return the segmenter that `spec` names.

    Parameters
    ----------
    spec : callable, str or mapping
        A callable is returned as it is. ``"threshold"`` or ``{"name": "threshold", "value": 4}``
        calls a registered factory with those parameters. ``"package.module:function"`` is that
        function; ``{"import": "package.module:factory", "kwargs": {...}}`` calls it with them.

    Raises
    ------
    InputError
        If the name is not known, cannot be imported or does not take these parameters.
    """
    if isinstance(spec, str):
        spec = {"import": spec} if ":" in spec else {"name": spec}
    if isinstance(spec, Mapping):
        parameters = dict(spec)
        if "import" in parameters:
            return _imported(parameters)
        return _named(parameters)
    if not callable(spec):
        raise InputError(
            f"segmenter {spec!r} ({type(spec).__name__}) is not callable; give a function "
            f"tile -> labels, or the name of a registered segmenter"
        )
    return spec


def _named(parameters: dict[str, Any]) -> Segmenter:
    name = parameters.pop("name", None)
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name == "threshold":
        factory: Callable[..., Segmenter] = threshold
    elif isinstance(name, str) and name in known:
        factory = known[name].load()
    else:
        names = sorted({"threshold", *known})
        raise InputError(f"segmenter {name!r} is not known; expected one of {names}")
    return _call(factory, f"segmenter {name!r}", parameters)


def _imported(parameters: dict[str, Any]) -> Segmenter:
    path, kwargs = parameters.pop("import"), parameters.pop("kwargs", None)
    module, _, attribute = str(path).partition(":")
    if parameters or not attribute or not isinstance(kwargs, (Mapping, type(None))):
        raise InputError(
            f"segmenter import {path!r} with kwargs {kwargs!r} and {list(parameters)}: expected "
            f'{{"import": "package.module:function", "kwargs": {{...}}}}'
        )
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"segmenter {path!r} cannot be imported: {error}") from error
    if kwargs is None:
        return resolve_segmenter(cast(Segmenter, found))
    return _call(cast(Callable[..., Segmenter], found), f"segmenter {path!r}", kwargs)


def _call(factory: Callable[..., Segmenter], name: str, kwargs: Mapping[str, Any]) -> Segmenter:
    try:
        segmenter = factory(**kwargs)
    except TypeError as error:
        raise InputError(f"{name} does not take {sorted(kwargs)}: {error}") from error
    if not callable(segmenter):
        raise InputError(f"{name} gave a {type(segmenter).__name__}; expected a callable")
    return segmenter
