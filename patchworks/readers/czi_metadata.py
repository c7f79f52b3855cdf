"""What the XML of a CZI file says: calibration, channels, names."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from xml.etree import ElementTree

import numpy as np

from patchworks.readers.scene import Channel

IMAGE = "./Metadata/Information/Image"
RGB = ("FF0000", "00FF00", "0000FF")


def scene_names_in(root: ElementTree.Element) -> dict[int, str]:
    """Return the names of the scenes that have one, by their index on S."""
    scenes = root.findall(f"{IMAGE}/Dimensions/S/Scenes/Scene")
    return {int(s.get("Index", i)): s.get("Name", "") for i, s in enumerate(scenes)}


def spacing_in(root: ElementTree.Element, n_times: int) -> dict[str, tuple[float, str | None]]:
    """Return the distance between voxels on the axes for which the file has a positive one.

    Metres are moved to micrometres as decimal numbers: ``2E-07`` is 0.2 µm, not 0.1999….
    """
    spacing: dict[str, tuple[float, str | None]] = {}
    for distance in root.findall("./Metadata/Scaling/Items/Distance"):
        axis = distance.get("Id", "").lower()
        metres = _positive(distance.findtext("Value"))
        if axis in {"x", "y", "z"} and metres is not None:
            spacing[axis] = (float(metres * 10**6), "micrometer")
    seconds = _increment(root, n_times)
    if seconds is not None:
        spacing["t"] = (seconds, "second")
    return spacing


def channels_in(
    root: ElementTree.Element, first: int, n: int, n_samples: int, dtype: np.dtype
) -> tuple[Channel, ...]:
    """Return `n` channels from index `first`, each with its samples; empty if nothing is said."""
    acquired = root.findall(f"{IMAGE}/Dimensions/Channels/Channel")
    shown = root.findall("./Metadata/DisplaySetting/Channels/Channel")
    by_id = {channel.get("Id"): channel for channel in shown}
    channels: list[Channel] = []
    for i in range(first, first + n):
        one = acquired[i] if i < len(acquired) else None
        other = by_id.get(one.get("Id")) if one is not None else None
        if other is None and len(shown) in {len(acquired), first + n} and i < len(shown):
            other = shown[i]  # writers other than ZEN leave the identifiers out
        channel = Channel(
            _first([_attribute(one, "Name"), _attribute(other, "Name")]),
            _first([_color(other), _color(one)]),
            _window(other, dtype),
        )
        samples = RGB if n_samples == len(RGB) else (channel.color,)
        channels += [Channel(channel.name, color, channel.window) for color in samples]
    return tuple(channels) if any(c != Channel() for c in channels) else ()


def _increment(root: ElementTree.Element, n_times: int) -> float | None:
    """Return the seconds between time points, if the file has them and they are even."""
    positions = root.find(f"{IMAGE}/Dimensions/T/Positions")
    if positions is None or n_times < 2:
        return None
    step = _positive(positions.findtext("Interval/Increment"))
    if step is not None:
        return float(step)
    offsets = (positions.findtext("List/Offsets") or "").split()
    times = [float(number) for number in offsets]
    if len(times) < n_times:
        return None
    mean = (times[n_times - 1] - times[0]) / (n_times - 1)
    even = np.allclose(np.diff(times[:n_times]), mean, rtol=0.01, atol=0)
    return mean if even and np.isfinite(mean) and mean > 0 else None


def _positive(text: str | None) -> Decimal | None:
    """Return a number that can be a distance, or None."""
    try:
        number = Decimal((text or "").strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and number > 0 else None


def _color(channel: ElementTree.Element | None) -> str | None:
    """Return ``#AARRGGBB`` or ``#RRGGBB`` as ``RRGGBB``."""
    text = (channel.findtext("Color") or "" if channel is not None else "").strip().lstrip("#")
    return text[-6:].upper() if len(text) in {6, 8} else None


def _window(channel: ElementTree.Element | None, dtype: np.dtype) -> tuple[float, float] | None:
    """Return the intensities at Low and High, which are fractions of the range of integers."""
    if channel is None or dtype.kind != "u":
        return None
    low, high = channel.findtext("Low"), channel.findtext("High")
    if low is None and high is None:
        return None
    top = float(np.iinfo(dtype).max)
    return float(low or 0) * top, float(high or 1) * top


def _attribute(channel: ElementTree.Element | None, name: str) -> str | None:
    return None if channel is None else channel.get(name)


def _first(texts: list[str | None]) -> str | None:
    return next((text for text in texts if text), None)
