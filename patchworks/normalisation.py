"""Intensities of an image → the numbers that a model was trained on, the same in every tile.

Percentiles and means are taken once, of a sample of the whole image. Taken of each tile they would
differ between neighbours: the same object would look brighter in one than in the other, and the
model would draw it differently on the two sides of a seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, get_args

import numpy as np

from patchworks.errors import InputError
from patchworks.run import finite_number

Normalise = Literal["percentiles", "mean", "given", "none"]
"""How: low percentile to 0 and high one to 1; mean to 0 and standard deviation to 1; with numbers
that are given; or not at all."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """``(voxels - offset) / scale``, per channel.

    Parameters
    ----------
    how : {"percentiles", "mean", "given", "none"}
        Where offset and scale come from.
    low, high : float
        Percentiles, 0 to 100.
    offset, scale : tuple of float, optional
        One for each channel, or one for all; None until the image is known.
    clip : bool
        Whether the result is cut off at 0 and 1.
    together : bool
        Whether all channels have the same percentiles, as those of a colour image should.

    Examples
    --------
    >>> whole = Normalisation(low=0, high=100).of(np.array([2, 4, 6]))
    >>> whole(np.array([[2, 3]]), n_axes=2).tolist()
    [[0.0, 0.25]]
    """

    how: Normalise = "percentiles"
    low: float = 1.0
    high: float = 99.8
    offset: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    clip: bool = False
    together: bool = False

    @classmethod
    def checked(
        cls,
        what: str,
        how: str,
        percentiles: tuple[float, float],
        given: tuple[Sequence[float] | None, Sequence[float] | None],
        *,
        clip: bool = False,
        together: bool = False,
    ) -> Normalisation:
        """Return the normalisation that a segmenter's parameters describe.

        Parameters
        ----------
        what : str
            The segmenter, in messages.
        how : str
            As above.
        percentiles : tuple of float
            The low and the high one.
        given : tuple
            Offset and scale, which only ``"given"`` takes.
        clip, together : bool
            As above.

        Raises
        ------
        InputError
            If one of them cannot be.
        """
        if how not in get_args(Normalise):
            raise InputError(f"{what} normalize={how!r}: expected one of {get_args(Normalise)}")
        low, high = (finite_number(f"{what} percentile", each) for each in percentiles)
        if low is None or high is None or not 0 <= low < high <= 100:
            raise InputError(
                f"{what} low_percentile={percentiles[0]!r}, high_percentile={percentiles[1]!r}: "
                f"expected 0 <= low < high <= 100"
            )
        offset = _numbers(f"{what} offset", given[0])
        scale = _numbers(f"{what} scale", given[1])
        if (how == "given") == (offset is None and scale is None):
            raise InputError(
                f"{what} normalize={how!r}, offset={given[0]!r}, scale={given[1]!r}: "
                f"offset and scale belong to normalize='given', and one of them is needed there"
            )
        if scale is not None and 0 in scale:
            raise InputError(f"{what} scale={given[1]!r}: voxels are divided by it; expected no 0")
        return cls(
            how=how,  # type: ignore[arg-type] # one of them: see above
            low=low,
            high=high,
            offset=offset,
            scale=scale,
            clip=bool(clip),
            together=bool(together),
        )

    @property
    def is_known(self) -> bool:
        """Whether nothing of the image is missing."""
        return self.how in ("given", "none") or self.offset is not None

    def of(self, sample: np.ndarray) -> Normalisation:
        """Return the normalisation of an image, known from now on.

        Parameters
        ----------
        sample : numpy.ndarray
            Voxels of the image, flat; of several channels ``(C, n)``.
        """
        if self.is_known:
            return self
        channels = sample.reshape(1, -1) if self.together else np.atleast_2d(sample)
        found = [self._of_channel(channel) for channel in channels]
        return replace(
            self, offset=tuple([a for a, _ in found]), scale=tuple([b for _, b in found])
        )

    def _of_channel(self, values: np.ndarray) -> tuple[float, float]:
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if finite.size == 0:
            return 0.0, 1.0
        if self.how == "mean":
            offset, scale = finite.mean(dtype=np.float64), finite.std(dtype=np.float64)
        else:
            low, high = np.percentile(finite, (self.low, self.high))
            offset, scale = float(low), float(high) - float(low)
        return float(offset), float(scale) or 1.0  # what is the same everywhere becomes 0

    def __call__(self, tile: np.ndarray, n_axes: int) -> np.ndarray:
        """Return the voxels normalised, float32; unchanged if there is nothing to be done.

        Parameters
        ----------
        tile : numpy.ndarray
            Voxels, maybe with an axis of channels before those of space.
        n_axes : int
            How many axes of space it has.

        Raises
        ------
        InputError
            If there are numbers for more or fewer channels than the tile has.
        """
        if self.how == "none":
            return tile
        n_channels = len(tile) if tile.ndim > n_axes else 1
        rows = tile.reshape(n_channels, -1)
        known = self.of(rows)
        offset = _per_channel("offset", known.offset, n_channels, 0.0)
        scale = _per_channel("scale", known.scale, n_channels, 1.0)
        found = rows.astype(np.float32)
        found -= offset
        found /= scale
        if self.clip:
            np.clip(found, 0, 1, out=found)
        return found.reshape(tile.shape)


def _numbers(name: str, values: Sequence[float] | float | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    entries = [values] if isinstance(values, Real) else list(values)  # type: ignore[arg-type]
    found = [finite_number(name, each) for each in entries]
    if not found or None in found:
        raise InputError(f"{name}={values!r}: expected a number for each channel, or one for all")
    return tuple([float(each) for each in found if each is not None])


def _per_channel(
    name: str, values: tuple[float, ...] | None, n_channels: int, neutral: float
) -> np.ndarray:
    """Return one number for each channel, as a column."""
    values = (neutral,) if values is None else values
    if len(values) not in (1, n_channels):
        raise InputError(
            f"normalisation: {name} has {len(values)} numbers, and the tile {n_channels} channels; "
            f"give one for each, or one for all"
        )
    return np.array(values, np.float32).reshape(-1, 1)
