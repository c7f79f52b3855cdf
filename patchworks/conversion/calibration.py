"""What a file says, and what the user says instead → calibration and channels of the image."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np

from patchworks.errors import InputError
from patchworks.io.ngff import Axis, Calibration, Channel
from patchworks.readers.scene import Scene

logger = logging.getLogger(__name__)

KINDS = {"t": "time", "c": "channel"}
USER_UNITS = {"t": "second"}


def calibrate(scene: Scene, pixel_size: Mapping[str, float] | None, name: str) -> Calibration:
    """Return axes, scale and position: what was given, else what the file says.

    An axis of which neither says anything has scale 1 and no unit, which is how OME-NGFF writes
    that nothing is known.

    Parameters
    ----------
    scene : Scene
        What the file says.
    pixel_size : mapping of str to float, optional
        Micrometers (seconds for t) per axis, in place of what the file says.
    name : str
        What messages call the image.

    Raises
    ------
    InputError
        If a size is not a positive number, or for an axis that is not there.
    """
    spacing, origin = dict(scene.spacing), dict(scene.origin)
    for axis, size in _checked({} if pixel_size is None else pixel_size, scene.axes, name).items():
        spacing[axis] = (size, USER_UNITS.get(axis, "micrometer"))
        origin.pop(axis, None)  # it was in the unit of the size that the file says
    extents = dict(zip(scene.axes, scene.shape, strict=True))
    missing = [a for a in "zyx" if extents.get(a, 1) > 1 and a not in spacing]
    if missing:
        logger.warning(
            "%s says no pixel size for %s; the image has none either. Give pixel_size=%s if you "
            "know it (micrometers)",
            name,
            ", ".join(missing),
            dict.fromkeys(missing, "..."),
        )
    unknown: tuple[float, str | None] = (1.0, None)
    axes = [Axis(a, KINDS.get(a, "space"), spacing.get(a, unknown)[1]) for a in scene.axes]
    scale = [spacing.get(a, unknown)[0] for a in scene.axes]
    return Calibration(tuple(axes), tuple(scale), tuple([origin.get(a, 0.0) for a in scene.axes]))


def _checked(pixel_size: Mapping[str, float], axes: str, name: str) -> dict[str, float]:
    sizes = {}
    if not isinstance(pixel_size, Mapping):
        raise InputError(
            f"pixel_size={pixel_size!r}: expected micrometers per axis, such as "
            f"{{'y': 0.2, 'x': 0.2}}"
        )
    for axis, given in pixel_size.items():
        size: Any = given
        if axis not in set(axes) - {"c"}:
            raise InputError(
                f"pixel_size={dict(pixel_size)!r}: {name} has no axis {axis!r} with a size; its "
                f"axes are {axes!r}"
            )
        if not _is_size(size):
            raise InputError(
                f"pixel_size={dict(pixel_size)!r}: the size on {axis!r} is {size!r}; expected "
                f"{'seconds' if axis == 't' else 'micrometers'} > 0 ({name})"
            )
        sizes[axis] = float(size)
    return sizes


def _is_size(size: Any) -> bool:
    """Whether a value is a positive number that a file can hold."""
    if isinstance(size, bool) or not isinstance(size, Real):
        return False
    try:
        return isfinite(size) and float(size) > 0
    except OverflowError:
        return False


def name_channels(
    scene: Scene, channel_names: Sequence[str] | None, name: str
) -> tuple[Channel, ...]:
    """Return the channels as the file describes them, under the names that were given.

    Raises
    ------
    InputError
        If the number of names is not that of the channels.
    """
    n_channels = dict(zip(scene.axes, scene.shape, strict=True)).get("c", 1)
    known = [_shown(channel) for channel in scene.channels]
    if channel_names is None:
        return tuple(known)
    listed = isinstance(channel_names, (Sequence, np.ndarray)) and not isinstance(
        channel_names, (str, bytes)
    )
    names: list[Any] = list(channel_names) if listed else [channel_names]
    if len(names) != n_channels or not all(isinstance(one, str) for one in names):
        raise InputError(
            f"channel_names={channel_names!r}: expected {n_channels} name(s), one per channel of "
            f"{name}"
        )
    channels = known or [Channel()] * n_channels
    return tuple([replace(c, name=n) for c, n in zip(channels, names, strict=True)])


def _shown(channel: Channel) -> Channel:
    """Return the channel without a colour or window that no viewer could use."""
    color = channel.color if re.fullmatch("[0-9A-Fa-f]{6}", channel.color or "") else None
    window = channel.window
    if window and not (all(map(isfinite, window)) and window[0] < window[1]):
        window = None
    return replace(channel, color=color and color.upper(), window=window)
