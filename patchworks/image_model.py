"""A network in a file as a segmentation function: a tile → its input → its output → labels.

What a network computes with (torch, ONNX Runtime) is a plugin's matter: something that turns an
array into an array. What is the same for all of them is here: normalisation, axes of batch and
channels, sides that are a multiple of what the network halves, and what its output must look like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args

import numpy as np

from patchworks.errors import InputError, SegmenterError, may_heal
from patchworks.normalisation import Normalisation
from patchworks.probabilities import Margins, PostProcessing
from patchworks.run import whole_number

Layout = Literal["channels first", "channels last", "plain"]
"""``(1, C, Z, Y, X)``; ``(1, Z, Y, X, C)``; the tile as it is."""


class Network(Protocol):
    """What computes: an array in, an array out. Pickled without the model."""

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Return the network's output."""


@dataclass(frozen=True)
class TileInput:
    """How a tile becomes what a network takes.

    Parameters
    ----------
    layout : {"channels first", "channels last", "plain"}
        Axes of its input: see `Layout`.
    multiple : int or tuple of int
        Axes of space are made a multiple of it long, all or each of its own, by voxels reflected at
        the upper side.
    """

    layout: Layout = "channels first"
    multiple: int | tuple[int, ...] = 16

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise InputError(f"layout={self.layout!r}: expected one of {get_args(Layout)}")
        for each in self.multiple if isinstance(self.multiple, tuple) else (self.multiple,):
            whole_number("multiple", each, 1, 2**16)

    def padded(self, tile: np.ndarray, n_axes: int) -> np.ndarray:
        """Return the tile with all axes of space a multiple long.

        Raises
        ------
        SegmenterError
            If there are multiples for another number of axes.
        """
        multiples = self.multiple if isinstance(self.multiple, tuple) else (self.multiple,) * n_axes
        space = tile.shape[-n_axes:]
        if len(multiples) != n_axes:
            raise SegmenterError(
                f"multiple={list(multiples)}: the tile has {n_axes} axes of space, {space}; give "
                f"one number for each, or one for all"
            )
        missing = [-n % multiple for n, multiple in zip(space, multiples, strict=True)]
        if not any(missing):
            return tile
        before = [(0, 0)] * (tile.ndim - n_axes)
        return np.pad(tile, [*before, *[(0, n) for n in missing]], mode="reflect")

    def shaped(self, tile: np.ndarray, n_axes: int) -> np.ndarray:
        """Return the tile with the axes that the network expects, in one piece of memory."""
        if self.layout != "plain":
            tile = tile if tile.ndim > n_axes else tile[None]
            tile = (np.moveaxis(tile, 0, -1) if self.layout == "channels last" else tile)[None]
        return np.ascontiguousarray(tile)

    def channels_of(self, output: np.ndarray, space: tuple[int, ...]) -> np.ndarray:
        """Return what a network gave as ``(K, *space)``.

        Parameters
        ----------
        output : numpy.ndarray
            With or without axes of batch and channels.
        space : tuple of int
            The axes of space of its input.

        Raises
        ------
        SegmenterError
            If that is not what it is.
        """
        n_axes = len(space)
        if self.layout == "channels last" and output.shape[-n_axes - 1 : -1] == space:
            output = np.moveaxis(output, -1, -n_axes - 1)
        lead = output.shape[: max(0, output.ndim - n_axes)]
        if output.shape[len(lead) :] != space or len(lead) > 2 or (len(lead) == 2 and lead[0] != 1):
            last = self.layout == "channels last"
            sizes = ", ".join(map(str, space))
            expected = f"(1, {sizes}, K)" if last else f"(1, K, {sizes})"
            raise SegmenterError(
                f"the model gave an output of shape {output.shape} for an input with axes of space "
                f"{space}; expected {expected}, K channels of the same axes (or without the 1, or "
                f"without K). A model that gives a smaller image than it gets needs padding in it; "
                f"of several outputs, choose one with output="
            )
        return output.reshape(-1, *space)


@dataclass(frozen=True, kw_only=True)
class ImageModel:
    """A segmentation function of a network and what is done before and after it.

    Parameters
    ----------
    network : Network
        What computes.
    normalisation : Normalisation
        Of the voxels; known once it is prepared. Before that each tile would be its own measure.
    input : TileInput
        What the network takes.
    objects : PostProcessing
        What becomes of its output.
    n_channels : int, optional
        Channels of the image, if it has an axis of channels; known once it is prepared.
    """

    network: Network
    normalisation: Normalisation = field(default_factory=Normalisation)
    input: TileInput = field(default_factory=TileInput)
    objects: PostProcessing = field(default_factory=PostProcessing)
    n_channels: int | None = None

    def at_scale(self, voxel_size: Sequence[float | None], shape: Sequence[int]) -> ImageModel:
        """Return the function for an image of that scale, in micrometers where it is known."""
        n_channels = shape[0] if len(shape) > len(voxel_size) else None
        return replace(self, objects=self.objects.at_scale(voxel_size), n_channels=n_channels)

    def prepare(self, sample: np.ndarray) -> ImageModel:
        """Return the function for an image, a sample of which is flat, or ``(C, n)``."""
        return replace(
            self,
            normalisation=self.normalisation.of(sample),
            n_channels=len(sample) if sample.ndim == 2 else None,
        )

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Return the labels of a whole image, or of a tile of which nothing else is known."""
        n_axes = tile.ndim - (self.n_channels is not None)
        return self.segment_view(tile, ((0, 0),) * n_axes)

    def segment_view(self, tile: np.ndarray, margins: Margins) -> np.ndarray:
        """Return the labels of a tile; of several channels it has an axis more than they.

        Raises
        ------
        SegmenterError
            If the network does not take it, or its output is not one of such a tile.
        """
        n_axes = len(margins)
        voxels = self.input.padded(self.normalisation(tile, n_axes), n_axes)
        space = voxels.shape[-n_axes:]
        output = self._computed(self.input.shaped(voxels, n_axes), n_axes)
        channels = self.input.channels_of(output, space)
        seen = tuple([slice(n) for n in tile.shape[-n_axes:]])
        return self.objects(channels[(slice(None), *seen)], margins)

    def _computed(self, array: np.ndarray, n_axes: int) -> np.ndarray:
        try:
            return self.network(array)
        except SegmenterError:
            raise
        except Exception as error:
            wanted = "; a model of 2-D images takes slice_wise=True" if n_axes > 2 else ""
            failure = SegmenterError(
                f"the model failed on an input of shape {array.shape} {array.dtype} "
                f"({self.input.layout}): {type(error).__name__}: {_in_short(error)}{wanted}"
            )
            failure.heals = may_heal(error)
            raise failure from error


def _in_short(error: Exception) -> str:
    """Return what an error says; of one with a traceback in it, as TorchScript's, the last line."""
    lines = str(error).strip().splitlines()
    text = lines[-1] if len(lines) > 5 else " ".join(lines)
    return text.removeprefix(f"{type(error).__name__}: ")


def chosen(outputs: object, which: int) -> object:
    """Return one of a network's outputs, which may be one alone, a list, or a dictionary.

    Raises
    ------
    SegmenterError
        If there are not so many.
    """
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if not isinstance(outputs, (list, tuple)):
        outputs = [outputs]
    if which >= len(outputs):
        raise SegmenterError(
            f"the model gives {len(outputs)} outputs; expected one numbered output={which}: they "
            f"are counted from 0"
        )
    return outputs[which]
