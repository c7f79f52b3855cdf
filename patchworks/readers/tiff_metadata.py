"""What the tags of a TIFF file say of its voxels: calibration and channels.

Resolution tags alone say nothing: with inch or centimetre, programs write 72 or 96 dots per inch, a
screen's or a printer's, whatever the image shows. They are read only where ImageJ wrote them, which
names the unit elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from patchworks.readers.ome_xml import OmeImage, images_in, length, seconds, unit_symbol
from patchworks.readers.scene import Channel

Spacing = dict[str, tuple[float, str | None]]
TIMES = {"sec": "s", "seconds": "s", "second": "s", "msec": "ms", "minutes": "min", "hours": "h"}
RGB = ("FF0000", "00FF00", "0000FF")
PHOTOMETRIC_OF_COLORS = {2, 6}


def calibration_in(tif: Any, series: Any, ome: OmeImage | None) -> Spacing:
    """Return the distance between voxels on the axes for which the file says it."""
    page = series.keyframe
    if ome is not None:
        return dict(ome.spacing)
    if tif.is_imagej:
        return imagej_spacing(tif.imagej_metadata or {}, page)
    if tif.is_lsm:
        return lsm_spacing(tif.lsm_metadata or {})
    if tif.is_stk:
        return stk_spacing(tif.stk_metadata or {})
    if tif.is_micromanager:
        return micromanager_spacing(tif.micromanager_metadata or {})
    return svs_spacing(page.description, page.shape, tif.pages.first.shape) if tif.is_svs else {}


def ome_images_of(tif: Any) -> list[OmeImage | None]:
    """Return what OME-XML says of each series, or None.

    tifffile leaves out images that have no pixels: if it did, the next one of the same size is
    taken.
    """
    if not tif.is_ome or not tif.ome_metadata:
        return [None] * len(tif.series)
    images = images_in(tif.ome_metadata)
    if len(images) == len(tif.series):
        return list(images)
    left = iter(images)
    sizes = [(s.keyframe.imagelength, s.keyframe.imagewidth) for s in tif.series]
    return [
        next((i for i in left if (i.sizes.get("y"), i.sizes.get("x")) == size), None)
        for size in sizes
    ]


def imagej_spacing(described: Mapping[str, Any], page: Any) -> Spacing:
    """Return what ImageJ's description says, with the resolution tags, which are its pixel size."""
    found: Spacing = {}
    unit = described.get("unit")
    if unit is not None:
        texts = {"z": str(described.get("spacing", "")).lstrip("-")}  # scanned downwards
        for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
            top, bottom = page.tags[tag].value if tag in page.tags else (0, 0)
            texts[axis] = f"{bottom}/{top}" if top else ""
        for axis, text in texts.items():
            size = length(text, unit_symbol(described.get(f"{axis}unit", unit)))
            if size is not None:
                found[axis] = size
    tunit = str(described.get("tunit", "sec"))
    step = seconds(str(described.get("finterval", "")), TIMES.get(tunit, tunit))
    if step is not None:
        found["t"] = (step, "second")
    return found


def lsm_spacing(described: Mapping[str, Any]) -> Spacing:
    """Return what Zeiss's LSM says in metres, as micrometres."""
    found: Spacing = {}
    for axis in "zyx":
        metres = Decimal(repr(float(described.get(f"VoxelSize{axis.upper()}", 0))))
        if metres.is_finite() and metres > 0:
            found[axis] = (float(metres * 10**6), "micrometer")
    step = seconds(str(described.get("TimeIntervall", "")), "s")
    if step is not None:
        found["t"] = (step, "second")
    return found


def stk_spacing(described: Mapping[str, Any]) -> Spacing:
    """Return what MetaMorph says of a pixel's size."""
    found: Spacing = {}
    unit = described.get("CalibrationUnits")
    for axis in "yx" if unit else "":
        size = length(str(described.get(f"{axis.upper()}Calibration", "")), unit_symbol(unit))
        if size is not None:
            found[axis] = size
    return found


def micromanager_spacing(described: Mapping[str, Any]) -> Spacing:
    """Return what Micro-Manager's summary says in micrometres."""
    summary = described.get("Summary") or {}
    found: Spacing = {}
    for axis, key in (("z", "z-step_um"), ("y", "PixelSize_um"), ("x", "PixelSize_um")):
        size = length(str(summary.get(key, "")), "µm")
        if size is not None:
            found[axis] = size
    return found


def svs_spacing(text: str, shape: tuple[int, ...], whole: tuple[int, ...]) -> Spacing:
    """Return Aperio's ``MPP``, micrometres per pixel, which is that of the first image only."""
    found = re.search(r"\bMPP\s*=\s*([0-9.eE+-]+)", text or "")
    size = length(found[1], "µm") if found else None
    return {"y": size, "x": size} if size is not None and shape == whole else {}


def channels_in(tif: Any, series: Any, n: int, ome: OmeImage | None) -> tuple[Channel, ...]:
    """Return `n` channels, or none if nothing is said of them."""
    page = series.keyframe
    found: tuple[Channel, ...] = ()
    if ome is not None and len(ome.channels) == n:
        found = ome.channels
    elif tif.is_imagej:
        found = imagej_channels(tif.imagej_metadata or {}, n)
    if page.photometric in PHOTOMETRIC_OF_COLORS and page.samplesperpixel == len(RGB) == n:
        found = found or (Channel(),) * n
        found = tuple(
            [Channel(c.name, c.color or s, c.window) for c, s in zip(found, RGB, strict=True)]
        )
    return found if any(channel != Channel() for channel in found) else ()


def imagej_channels(described: Mapping[str, Any], n: int) -> tuple[Channel, ...]:
    """Return the labels, lookup tables and display ranges of ImageJ, where there is one for each.

    Labels are those of planes: they name channels only if there are as many.
    """
    labels = list(described.get("Labels") or [])
    names = labels if len(labels) == n else [None] * n
    tables = list(described.get("LUTs") or [])
    colors = [ramp_color(t) for t in tables] if len(tables) == n else [None] * n
    ends = [float(v) for v in np.ravel(described.get("Ranges") or [])]
    if n == 1 and not ends and {"min", "max"} <= set(described):
        ends = [float(described["min"]), float(described["max"])]
    windows: list[tuple[float, float] | None] = [None] * n
    if len(ends) == 2 * n:
        pairs = zip(ends[::2], ends[1::2], strict=True)
        windows = [(low, high) if low < high else None for low, high in pairs]
    return tuple(
        [
            Channel(str(name) if name else None, color, window)
            for name, color, window in zip(names, colors, windows, strict=True)
        ]
    )


def ramp_color(table: Any) -> str | None:
    """Return the colour to which a lookup table rises evenly from black, or None.

    Parameters
    ----------
    table : array_like
        Shape (3, 256): red, green, blue.

    Examples
    --------
    >>> ramp = np.arange(256)
    >>> ramp_color([ramp, 0 * ramp, ramp])
    'FF00FF'
    """
    levels = np.asarray(table, dtype=float)
    if levels.shape != (3, 256) or not levels[:, -1].any():
        return None
    even = np.outer(levels[:, -1], np.arange(256) / 255)
    if np.abs(levels - even).max() > 1:
        return None
    red, green, blue = levels[:, -1].astype(int)
    return f"{red:02X}{green:02X}{blue:02X}"
