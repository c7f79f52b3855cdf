"""`auto_overlap`: how far tiles have to overlap, so that each object is seen whole by one."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite
from numbers import Real
from typing import Any

import numpy as np

from patchworks.errors import InputError

SPREAD = 1.25
"""How much larger than the typical object the largest is taken to be."""

PERCENTILE = 99.0
"""Of objects whose extent is covered: a few that are fused, or are no objects, do not count."""

MARGIN = 0.1
MIN_MARGIN = 2
"""Beyond the object, for what the function looks at around it: a share of it, and voxels."""


def auto_overlap(
    objects: Any,
) -> int | tuple[int, ...]:
    """Return the overlap with which an object is seen whole by the tile that owns it.

    An object whose middle lies in a tile reaches half of its extent beyond it; that of which a
    voxel lies in the tile may reach its whole extent. Tiles that overlap by that and a margin of a
    tenth, 2 voxels at least, see every object that they own a voxel of as the whole image shows it.

    Parameters
    ----------
    objects : float, sequence of float, or label array
        The typical diameter of an object, in voxels; one per axis, in voxels of that axis; or an
        array of labels with two axes or more, 0 for background, of a representative part of the
        image. Of labels the extents on each axis are measured, and all but the largest hundredth
        covered; of a diameter, the largest objects are taken to be a quarter larger.

    Returns
    -------
    int or tuple of int
        Voxels, for ``overlap=``: one number for one diameter, else one per axis.

    Raises
    ------
    InputError
        If a diameter is not a number above 0, or labels are not integers of 0 and above, or hold
        no object.

    Examples
    --------
    >>> auto_overlap(30), auto_overlap((6, 30, 30))
    (42, (10, 42, 42))
    >>> labels = np.zeros((64, 64), int)
    >>> labels[3:23, 5:45] = 7
    >>> auto_overlap(labels)
    (22, 44)
    """
    if isinstance(objects, Real):
        return halo_around(checked_diameter(objects))
    if getattr(objects, "ndim", 1) >= 2:
        return tuple([_around(extent) for extent in _largest_extents(np.asarray(objects))])
    is_sequence = isinstance(objects, (Sequence, np.ndarray)) and not isinstance(objects, str)
    entries = list(objects) if is_sequence and getattr(objects, "ndim", 1) == 1 else []
    if not 2 <= len(entries) <= 5:
        raise InputError(
            f"auto_overlap: got {_shown(objects)}; expected the diameter of an object in voxels, "
            f"one per axis (2 to 5), or an array of labels with 2 axes or more"
        )
    return tuple([halo_around(checked_diameter(entry)) for entry in entries])


def checked_diameter(value: object) -> float:
    """Return the diameter of objects, in voxels, or raise InputError."""
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not is_number or not isfinite(value) or not 0 < value <= 2**20:  # type: ignore[arg-type, operator]
        raise InputError(f"diameter={_shown(value)}: expected a number of voxels above 0")
    return float(value)  # type: ignore[arg-type]


def halo_around(diameter: float) -> int:
    """Return the overlap for objects of a typical diameter, in voxels."""
    return _around(SPREAD * diameter)


def _around(extent: float) -> int:
    return ceil(extent + max(MIN_MARGIN, MARGIN * extent) - 1e-9)


def _largest_extents(labels: np.ndarray) -> list[float]:
    """Return the extent on each axis that all but the largest objects have at most."""
    from scipy import ndimage  # a third of the time it takes to import patchworks

    if labels.dtype.kind not in "iu":
        raise InputError(
            f"auto_overlap: labels of dtype {labels.dtype}; expected integers, one number per "
            f"object (ndimage.label makes them of a mask)"
        )
    if labels.size and labels.min() < 0:
        raise InputError(f"auto_overlap: a label is {labels.min()}; expected 0 and above")
    ids, ranks = np.unique(labels, return_inverse=True)
    ranks = ranks.reshape(labels.shape) + int(not (ids.size and ids[0] == 0))
    found = ndimage.find_objects(ranks) if ids.size else []
    boxes = [box for box in found if box is not None]
    if not boxes:
        raise InputError(
            f"auto_overlap: labels of shape {labels.shape} hold no object; give a part of the "
            f"image that has some, or their diameter"
        )
    extents = np.array([[s.stop - s.start for s in box] for box in boxes])
    largest = np.percentile(extents, PERCENTILE, axis=0, method="higher")
    return [float(extent) for extent in largest]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
