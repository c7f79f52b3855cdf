"""What a network says of each voxel → objects: the ways to get there, each with its name.

==================== ==============================================================================
``labels``           the network gives labels itself
``threshold``        objects are the connected pieces above a threshold: for objects that lie apart
``distance           as before, then cut where a piece narrows: for round objects that touch, and a
transform``          network that knows only foreground
``watershed``        one object around each seed, grown through the foreground: for a network that
                     marks centres, insides or boundaries, or is surest in the middle of an object
==================== ==============================================================================

All of them depend on the voxels within the objects at hand and no others: an overlap of more than
an object's diameter makes tiles agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np
from scipy import ndimage, special

from patchworks.errors import InputError, SegmenterError
from patchworks.run import finite_number, whole_number

PostProcess = Literal["labels", "threshold", "distance transform", "watershed"]
Activation = Literal["none", "sigmoid", "softmax"]
Margins = tuple[tuple[int, int], ...]

SEED_DISTANCE = 5
"""Voxels between the middles of two round objects at least, where nobody says more."""

STEPS = 256
"""Steps of probability that flooding tells apart. The digits after them differ between tiles, for
sums are added up in another order there, and must not decide to which object a voxel belongs."""


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """How a network's output becomes labels.

    Parameters
    ----------
    how : {"labels", "threshold", "distance transform", "watershed"}
        See above.
    activation : {"none", "sigmoid", "softmax"}
        What turns the output into probabilities, where the network does not.
    threshold : float
        Foreground lies above it.
    seed_threshold : float
        Seeds of ``"watershed"`` lie above it.
    seed_distance : int, optional
        Voxels between two seeds at least.
    min_size : int
        Objects of fewer voxels are left out.
    connectivity : int
        How many axes a step between neighbouring voxels of an object may change.
    anisotropy : float, optional
        Step of the first of three axes over that of the others; 1 where nobody knows it.
    foreground : tuple of int
        Channels that are added up to the foreground.
    boundary, seeds : int, optional
        Channels of boundaries between objects, and of their centres or insides.

    Raises
    ------
    InputError
        If one of them cannot be.
    """

    how: PostProcess = "threshold"
    activation: Activation = "none"
    threshold: float = 0.5
    seed_threshold: float = 0.8
    seed_distance: int | None = None
    min_size: int = 0
    connectivity: int = 1
    anisotropy: float | None = None
    foreground: tuple[int, ...] = (0,)
    boundary: int | None = None
    seeds: int | None = None

    def __post_init__(self) -> None:
        _one_of("postprocess", self.how, get_args(PostProcess))
        _one_of("activation", self.activation, get_args(Activation))
        for name in ("threshold", "seed_threshold"):
            if finite_number(name, getattr(self, name)) is None:
                raise InputError(f"{name}=None: expected a number")
        if (
            self.anisotropy is not None
            and not (finite_number("anisotropy", self.anisotropy) or 0) > 0
        ):
            raise InputError(f"anisotropy={self.anisotropy!r}: expected a number above 0")
        whole_number("min_size", self.min_size, 0, 2**62)
        whole_number("connectivity", self.connectivity, 1, 5)
        if self.seed_distance is not None:
            whole_number("seed_distance", self.seed_distance, 1, 2**20)
        if not isinstance(self.foreground, tuple) or not self.foreground:
            raise InputError(f"foreground_channels={self.foreground!r}: expected some, such as [0]")
        for channel in (*self.foreground, self.boundary or 0, self.seeds or 0):
            whole_number("channel of the output", channel, 0, 2**20)

    def at_scale(self, voxel_size: Sequence[float | None]) -> PostProcessing:
        """Return the rule for an image whose voxels have that size, in micrometers if known."""
        if self.anisotropy is not None or len(voxel_size) != 3:
            return self
        known = [size for size in voxel_size if size is not None]
        if len(known) < 3:
            return self
        return replace(self, anisotropy=2 * known[0] / (known[1] + known[2]))

    def __call__(self, output: np.ndarray, margins: Margins) -> np.ndarray:
        """Return the labels, int32 (or what the network gave, for ``"labels"``).

        Parameters
        ----------
        output : numpy.ndarray
            Of the network, shape ``(K, *tile)``.
        margins : tuple of (int, int)
            Voxels of halo per axis. Where there are some the image goes on, so that an object at
            that rim may be larger than what is seen of it: it is never left out as too small.

        Raises
        ------
        SegmenterError
            If the output lacks a channel, or has values that are no number.
        """
        if self.how == "labels":
            labels = _as_labels(self._channel(output, self.foreground[0], "foreground"))
        else:
            labels = self._objects(output)
        return without_small(labels, self.min_size, margins)

    def _objects(self, output: np.ndarray) -> np.ndarray:
        if np.isnan(output).any():
            raise SegmenterError(
                "the model's output has voxels that are not a number (NaN); expected probabilities "
                "or logits: see the normalisation, and the precision that the model computes with"
            )
        foreground, inside, seeds = self._maps(self._activated(output))
        mask = foreground > self.threshold
        if self.how == "threshold":
            return _components(inside > self.threshold, self.connectivity)
        if self.how == "distance transform":
            return self._cut_where_narrow(inside > self.threshold)
        if self.seed_distance is None:
            marked = _components((seeds > self.seed_threshold) & mask, self.connectivity)
        else:
            marked = (seeds > self.seed_threshold) & mask
            steps = np.round(seeds * STEPS)
            marked = maxima_apart(steps, marked, self._apart(mask.ndim), self.connectivity)
        return _flooded(-np.round(inside * STEPS), marked, mask, self.connectivity)

    def _maps(self, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return foreground, foreground without boundaries, and what seeds are found in."""
        channels = [self._channel(output, each, "foreground") for each in self.foreground]
        foreground = channels[0] if len(channels) == 1 else np.sum(channels, axis=0)
        inside = foreground
        if self.boundary is not None:
            inside = foreground - self._channel(output, self.boundary, "boundary")
        if self.seeds is None:
            return foreground, inside, inside
        return foreground, inside, self._channel(output, self.seeds, "seed")

    def _activated(self, output: np.ndarray) -> np.ndarray:
        output = output.astype(np.float32, copy=False)
        if self.activation == "sigmoid":
            return cast(np.ndarray, special.expit(output))
        if self.activation == "softmax":
            return cast(np.ndarray, special.softmax(output, axis=0))
        return output

    def _channel(self, output: np.ndarray, index: int, what: str) -> np.ndarray:
        if index >= len(output):
            raise SegmenterError(
                f"the model's output has {len(output)} channels of {output.shape[1:]}; expected a "
                f"{what} channel {index}: channels are counted from 0"
            )
        return cast(np.ndarray, output[index])

    def _apart(self, ndim: int) -> tuple[int, ...]:
        """Return the distance between seeds per axis, in voxels."""
        distance = self.seed_distance or SEED_DISTANCE
        first = max(1, round(distance / (self.anisotropy or 1))) if ndim == 3 else distance
        return (first, *[distance] * (ndim - 1))

    def _cut_where_narrow(self, mask: np.ndarray) -> np.ndarray:
        """Return the pieces of a mask, cut between the middles of their wide parts."""
        if mask.all():  # the transform would measure to a background that there is not
            return np.ones(mask.shape, np.int32)
        sampling = (self.anisotropy or 1, 1, 1) if mask.ndim == 3 else None
        depth = ndimage.distance_transform_edt(mask, sampling=sampling).astype(np.float32)
        seeds = maxima_apart(depth, mask, self._apart(mask.ndim), self.connectivity)
        return _flooded(-depth, seeds, mask, self.connectivity)


def numbered(channels: Sequence[int] | int | None) -> tuple[int, ...]:
    """Return channels as they are named by a user: several, one, or None for the first."""
    if channels is None:
        channels = 0
    return tuple(channels) if isinstance(channels, Sequence) else (channels,)


def maxima_apart(
    height: np.ndarray, mask: np.ndarray, distance: tuple[int, ...], connectivity: int = 1
) -> np.ndarray:
    """Return the maxima of a map within a mask, numbered; none in a box around a higher one.

    A piece of the mask that has none, for there is a higher piece beside it, is one itself.

    Parameters
    ----------
    height : numpy.ndarray
        The map, floats.
    mask : numpy.ndarray
        Where maxima count, bool.
    distance : tuple of int
        Per axis, how far a maximum is the highest, in voxels.
    connectivity : int
        How many axes a step within a piece of the mask may change.

    Returns
    -------
    numpy.ndarray
        int32; equally high maxima that are near each other, in one piece of the mask, are one.

    Examples
    --------
    >>> maxima_apart(np.array([[1., 3, 3, 1, 2, 4]]), np.ones((1, 6), bool), (1, 1)).tolist()
    [[0, 1, 1, 0, 0, 2]]
    """
    size = [2 * each + 1 for each in distance]
    peaks = mask & (height >= ndimage.maximum_filter(height, size, mode="nearest"))
    near = [2 * (each // 2) + 1 for each in distance]
    around = ndimage.maximum_filter(peaks.view(np.uint8), near, mode="constant").view(bool) & mask
    seeds = np.where(peaks, _components(around, connectivity), 0).astype(np.int32)
    pieces = _components(mask, connectivity)
    has_seed = np.zeros(int(pieces.max(initial=0)) + 1, bool)
    has_seed[pieces[peaks]] = True
    alone = mask & ~has_seed[pieces]
    seeds[alone] = _components(alone, connectivity)[alone] + seeds.max()
    return seeds


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value!r}: expected one of {choices}")


def _components(mask: np.ndarray, connectivity: int) -> np.ndarray:
    structure = ndimage.generate_binary_structure(mask.ndim, min(connectivity, mask.ndim))
    return cast(np.ndarray, ndimage.label(mask, structure)[0])


def _flooded(
    height: np.ndarray, seeds: np.ndarray, mask: np.ndarray, connectivity: int
) -> np.ndarray:
    from skimage.segmentation import watershed

    connectivity = min(connectivity, mask.ndim)
    found = watershed(height, seeds, mask=mask, connectivity=connectivity)  # type: ignore[no-untyped-call]
    return np.asarray(found, np.int32)


def _as_labels(output: np.ndarray) -> np.ndarray:
    """Return a network's labels as integers, if that is what they are."""
    if output.dtype.kind in "iu":
        return output
    whole: np.ndarray = np.rint(output)
    if output.dtype.kind != "f" or not np.array_equal(whole, output):
        raise SegmenterError(
            f"the model's output is {output.dtype} and no whole numbers; expected labels: for "
            f"probabilities give postprocess='threshold', or another one"
        )
    return np.asarray(whole, np.int64)


def without_small(labels: np.ndarray, min_size: int, margins: Margins) -> np.ndarray:
    """Return the labels of objects that are large enough, or may be.

    Parameters
    ----------
    labels : numpy.ndarray
        Of a tile.
    min_size : int
        Voxels that an object has at least.
    margins : tuple of (int, int)
        Voxels of halo per axis; objects at such a rim are left in, whatever is seen of them.
    """
    if min_size <= 1 or labels.size == 0:
        return labels
    if labels.min() < 0:  # refused by who stages them
        return labels
    if labels.max() > labels.size:
        ids, found = np.unique(labels, return_inverse=True)
        labels = found.reshape(labels.shape) + int(ids[0] > 0)
    n_voxels = np.bincount(labels.ravel())
    small = (n_voxels < min_size) & (n_voxels > 0)
    for axis, (lower, upper) in enumerate(margins):
        planes = np.moveaxis(labels, axis, 0)
        if lower:
            small[planes[0].ravel()] = False
        if upper:
            small[planes[-1].ravel()] = False
    small[0] = False
    kept: np.ndarray = np.where(small[labels], 0, labels)
    return kept
