"""Which intensities the network sees as 0 and 1: the same in every tile, unless told otherwise.

Cellpose normalizes by the 1st and 99th percentile of what it is given. Of a tile these depend on
what happens to lie in it: neighbours would be normalized differently, and a tile without cells
would have its noise stretched until it looks like some. So the percentiles are those of the image,
computed once; the arithmetic is Cellpose's.

It is done here and not by its parameter ``lowhigh``: Cellpose 3 applies that to the empty channel
that it adds to a single one, too (measured: no object, where percentiles gave 58).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from patchworks.errors import InputError

logger = logging.getLogger(__name__)

Method = Literal["global", "per tile", "none"]
METHODS: tuple[Method, ...] = ("global", "per tile", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """How intensities are normalized.

    Parameters
    ----------
    method : {"global", "per tile", "none"}
        By the percentiles of the image, by those of each tile, or not at all.
    percentiles : tuple of float
        The percentiles that become 0 and 1.
    low_high : tuple of tuple of float, optional
        What becomes 0 and 1: one pair for all channels, or one each. None until it is known.
    invert : bool
        Whether 0 and 1 are exchanged then: objects are dark.
    """

    method: Method = "global"
    percentiles: tuple[float, float] = (1.0, 99.0)
    low_high: tuple[tuple[float, float], ...] | None = None
    invert: bool = False

    def of_image(self, sample: np.ndarray) -> Normalisation:
        """Return the normalisation with the percentiles of the image, if it lacks them.

        Parameters
        ----------
        sample : numpy.ndarray
            Voxels of each channel, shape ``(C, n)``.

        Raises
        ------
        InputError
            If both percentiles of a channel that has structure are the same.
        """
        if self.method != "global" or self.low_high is not None:
            return self
        return replace(self, low_high=tuple([self._low_high(channel) for channel in sample]))

    def _low_high(self, values: np.ndarray) -> tuple[float, float]:
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if finite.size == 0 or finite.min() == finite.max():
            logger.warning("a channel has the same intensity everywhere; it will be seen as 0")
            return (0.0, 0.0)
        low, high = np.percentile(finite, self.percentiles)
        if low == high:
            raise InputError(
                f"cellpose_fn normalize='global': percentiles {self.percentiles} of the image are "
                f"both {low:g}, while intensities reach from {finite.min():g} to {finite.max():g}: "
                f"few voxels belong to objects. Give high_percentile= nearer to 100, or low_high="
            )
        return float(low), float(high)

    def apply(self, voxels: np.ndarray) -> np.ndarray:
        """Return voxels as the network shall see them, channels last; a copy, float32.

        Those of ``"per tile"`` are left to Cellpose.

        Parameters
        ----------
        voxels : numpy.ndarray
            Shape ``(C, *shape)``.
        """
        seen = np.empty((*voxels.shape[1:], len(voxels)), np.float32)
        for index, channel in enumerate(voxels):
            seen[..., index] = channel
        pairs = self.low_high or ()
        for index in range(len(voxels) if pairs else 0):
            low, high = pairs[index % len(pairs)]
            self._stretch(seen[..., index], low, high)
        if voxels.dtype.kind == "f":
            np.nan_to_num(seen, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
        return seen

    def _stretch(self, channel: np.ndarray, low: float, high: float) -> None:
        """Change a channel in place."""
        if not low < high:
            channel[...] = 0
            return
        channel -= np.float32(low)
        channel /= np.float32(high - low)
        if self.invert:
            np.subtract(1, channel, out=channel)

    def for_cellpose(self, *, is_volume: bool) -> dict[str, Any]:
        """Return what Cellpose is told: all of it, for it remembers what one call has said."""
        return {
            "normalize": self.method == "per tile",
            "lowhigh": None,
            "percentile": list(self.percentiles),
            "norm3D": is_volume and self.method == "per tile",
            "invert": self.invert and self.method == "per tile",
            "sharpen_radius": 0,
            "smooth_radius": 0,
            "tile_norm_blocksize": 0,
            "tile_norm_smooth3D": 1,
        }
