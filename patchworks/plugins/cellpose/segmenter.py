"""Cellpose as a segmenter: told of the image once, then called on every tile."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path

import numpy as np

from patchworks.errors import InputError
from patchworks.plugins.cellpose.installed import major_of
from patchworks.plugins.cellpose.model import TRAINED_DIAMETER, LoadedModel
from patchworks.plugins.cellpose.normalisation import Normalisation
from patchworks.plugins.cellpose.settings import Settings
from patchworks.process_model import ProcessModel

logger = logging.getLogger(__name__)

MOST_CHANNELS = {3: 2, 4: 3}
"""Channels that the network of a version sees."""


@dataclass(frozen=True, kw_only=True)
class Cellpose:
    """A segmenter; `cellpose_fn` makes it.

    What is pickled and fingerprinted are the weights' place and content and all parameters.

    Parameters
    ----------
    model : ProcessModel
        The network, loaded where it is first called, once per process.
    version : str
        Of Cellpose.
    settings : Settings
        Parameters of its computation.
    normalisation : Normalisation
        What it sees as 0 and 1.
    n_channels : int, optional
        Channels of tiles, 0 for tiles without a channel axis. None until it is known.
    image_shape : tuple of int, optional
        Extents of the image on the spatial axes of tiles. None until it is known.
    """

    model: ProcessModel[LoadedModel]
    version: str
    settings: Settings = field(default_factory=Settings)
    normalisation: Normalisation = field(default_factory=Normalisation)
    n_channels: int | None = None
    image_shape: tuple[int, ...] | None = None

    def __str__(self) -> str:
        seen = self.normalisation
        pairs = [f"{low:g} to {high:g}" for low, high in seen.low_high or ()]
        weights = Path(self.model.arguments[0].path).name
        return f"Cellpose {self.version}, {weights}, intensities {', '.join(pairs) or seen.method}"

    @property
    def reach(self) -> float | tuple[float, ...]:
        """How far tiles have to overlap at least: by an object, so that one tile sees it whole."""
        diameter = self.settings.diameter or TRAINED_DIAMETER
        if len(self.image_shape or ()) != 3:
            return diameter
        across = diameter / (self.settings.anisotropy or 1.0) if self.settings.do_3D else 1.0
        return (across, diameter, diameter)

    def at_scale(self, voxel_size: tuple[float | None, ...], shape: tuple[int, ...]) -> Cellpose:
        """Return the segmenter that knows what tiles are, and how much longer voxels are in z.

        Parameters
        ----------
        voxel_size : tuple of (float or None)
            Micrometers per spatial axis of a tile.
        shape : tuple of int
            What the whole image would be as one tile.

        Raises
        ------
        InputError
            If such tiles cannot be segmented with these parameters.
        """
        lead = len(shape) - len(voxel_size)
        n_channels, spatial = (shape[0] if lead else 0), shape[lead:]
        self._check_axes(spatial)
        self._check_channels(n_channels)
        settings = self.settings
        if settings.do_3D and settings.anisotropy is None:
            settings = replace(settings, anisotropy=_anisotropy(voxel_size))
        return replace(self, settings=settings, n_channels=n_channels, image_shape=spatial)

    def _check_axes(self, shape: tuple[int, ...]) -> None:
        if self.settings.wants_volumes:
            wanted = "do_3D" if self.settings.do_3D else "stitch_threshold"
            if len(shape) != 3 or shape[0] == 1:
                raise InputError(
                    f"cellpose_fn {wanted}: expected an image (Z, Y, X) of several planes, got "
                    f"one of shape {shape}, slice by slice; leave {wanted} or slice_wise out"
                )
        elif len(shape) > 3 or (len(shape) == 3 and shape[0] > 1):
            raise InputError(
                f"cellpose_fn: the image has shape {shape} and Cellpose segments planes unless told"
                f" otherwise. Give slice_wise=True to the run (objects of neighbouring slices are "
                f"linked), or do_3D=True or stitch_threshold= to cellpose_fn"
            )

    def _check_channels(self, n_channels: int) -> None:
        chosen, most = self.settings.channels, MOST_CHANNELS[major_of(self.version)]
        if chosen is None:
            if n_channels > most:
                raise InputError(
                    f"cellpose_fn: tiles have {n_channels} channels, the network of Cellpose "
                    f"{self.version} sees {most} at most; choose with channels="
                )
        elif max(chosen) >= max(1, n_channels):
            raise InputError(
                f"cellpose_fn channels={list(chosen)}: positions among the channels of the run, of "
                f"which there are {max(1, n_channels)}; give several to it as channel=[0, 2]"
            )
        n_pairs = len(self.normalisation.low_high or ())
        if n_pairs > 1 and n_pairs != len(chosen or range(max(1, n_channels))):
            raise InputError(
                f"cellpose_fn low_high: {n_pairs} pairs for "
                f"{len(chosen or range(max(1, n_channels)))} channels that the network sees; give "
                f"one pair, or one for each"
            )

    def prepare(self, sample: np.ndarray) -> Cellpose:
        """Return the segmenter that normalizes by the percentiles of the image.

        Parameters
        ----------
        sample : numpy.ndarray
            Voxels of the image, flat, or ``(C, n)``.
        """
        seen = self._chosen(sample, n_axes=1)
        n_channels = self.n_channels
        if n_channels is None:
            n_channels = len(sample) if sample.ndim == 2 else 0
        return replace(self, normalisation=self.normalisation.of_image(seen), n_channels=n_channels)

    def _chosen(self, voxels: np.ndarray, n_axes: int) -> np.ndarray:
        """Return the channels that the network sees, in its order, on a leading axis."""
        leading = voxels if voxels.ndim > n_axes else voxels[np.newaxis]
        chosen = self.settings.channels
        return leading if chosen is None else leading[list(chosen)]

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Return labels of a tile.

        Parameters
        ----------
        tile : numpy.ndarray
            ``(Y, X)`` or ``(Z, Y, X)``, with channels in front if there are several.

        Returns
        -------
        numpy.ndarray
            uint16 or uint32, the tile's shape but for channels.
        """
        n_axes = self._spatial_axes(tile)
        voxels = self._chosen(tile, n_axes)
        shape = voxels.shape[1:]
        is_volume = len(shape) == 3 and (shape[0] > 1 or self.settings.do_3D)
        if is_volume and not self.settings.wants_volumes:
            raise InputError(
                f"cellpose_fn: a tile of shape {tile.shape}; give do_3D=True or stitch_threshold=, "
                f"or planes"
            )
        seen = self._normalisation(voxels).apply(voxels)
        keywords = {
            **self.settings.for_cellpose(shape, self.image_shape),
            "normalize": self.normalisation.for_cellpose(is_volume=is_volume),
            "do_3D": self.settings.do_3D,
            "anisotropy": self.settings.anisotropy if self.settings.do_3D else None,
            "stitch_threshold": self.settings.stitch_threshold if is_volume else 0.0,
        }
        with self.model.use() as model:
            labels = model.segment(seen if is_volume or len(shape) == 2 else seen[0], keywords)
        return labels.reshape(shape)

    def _spatial_axes(self, tile: np.ndarray) -> int:
        """Return how many axes of a tile are spatial."""
        n_channels = self.n_channels
        if n_channels is None:  # called by hand: channels only where some were chosen
            n_channels = 0 if self.settings.channels is None else 1
        return tile.ndim - (n_channels > 0)

    def _normalisation(self, voxels: np.ndarray) -> Normalisation:
        """Return the normalisation; by the percentiles of the tile if it was never prepared."""
        return self.normalisation.of_image(voxels.reshape(len(voxels), -1))


def _anisotropy(voxel_size: tuple[float | None, ...]) -> float:
    """Return how many times longer a voxel is in z than across."""
    z, y, x = voxel_size
    if z is None or y is None or x is None:
        logger.warning(
            "do_3D: the image does not say how large its voxels are; they are taken for cubes. "
            "Give anisotropy= if planes are further apart than pixels"
        )
        return 1.0
    found = z / sqrt(y * x)
    logger.info("do_3D: voxels of %g x %g x %g micrometers, anisotropy %.4g", z, y, x, found)
    return found
