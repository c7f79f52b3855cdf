"""Telling a segmentation function how large the voxels of an image are."""

from __future__ import annotations

from patchworks.io.image_source import ImageSource
from patchworks.io.ngff import Calibration
from patchworks.segmenters import Segmenter

MICROMETERS = {
    "picometer": 1e-6, "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3,
    "centimeter": 1e4, "decimeter": 1e5, "meter": 1e6, "inch": 25400.0, "foot": 304800.0,
}  # fmt: skip
"""In a unit of length, as OME-NGFF spells it."""


def at_scale(segmenter: Segmenter, source: ImageSource, apart: tuple[int, ...] = ()) -> Segmenter:
    """Return the function that knows the image's scale, if it wants to know it.

    Parameters
    ----------
    segmenter : callable
        The function; see `patchworks.segmenters` for its method ``at_scale``.
    source : ImageSource
        The image.
    apart : tuple of int
        Axes that are in no tile.

    Raises
    ------
    InputError
        If the function cannot segment such an image.
    """
    known = getattr(segmenter, "at_scale", None)
    if known is None:
        return segmenter
    sizes = voxel_size_um(source.calibration)
    kept = [axis for axis in range(len(source.shape)) if axis not in apart]
    shape = (*source.lead, *[source.shape[axis] for axis in kept])
    calibrated: Segmenter = known(tuple([sizes[axis] for axis in kept]), shape)
    return calibrated


def voxel_size_um(calibration: Calibration) -> tuple[float | None, ...]:
    """Return micrometers per axis, None where they are unknown.

    Sizes without a unit count as micrometers, unless all are 1: that is how an image says that
    nothing is known.

    Examples
    --------
    >>> from patchworks.io.ngff import Axis
    >>> axes = Axis("z", "space", "nanometer"), Axis("y", "space"), Axis("x", "space")
    >>> voxel_size_um(Calibration(axes, (500, 0.2, 0.2), (0, 0, 0)))
    (0.5, 0.2, 0.2)
    """
    pairs = list(zip(calibration.axes, calibration.scale, strict=True))
    bare = None if all(s == 1 for a, s in pairs if a.is_space and not a.unit) else 1.0
    found: list[float | None] = []
    for axis, size in pairs:
        unit = MICROMETERS.get(axis.unit) if axis.unit else bare
        found.append(size * unit if axis.is_space and unit is not None and size > 0 else None)
    return tuple(found)
