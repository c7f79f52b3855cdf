"""What OME-XML says of images: names, calibration, channels.

See https://docs.openmicroscopy.org/ome-model/ for the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree

from patchworks.readers.scene import Channel

PREFIXES = {
    "Y": "yotta", "Z": "zetta", "E": "exa", "P": "peta", "T": "tera", "G": "giga", "M": "mega",
    "k": "kilo", "h": "hecto", "": "", "d": "deci", "c": "centi", "m": "milli", "µ": "micro",
    "n": "nano", "p": "pico", "f": "femto", "a": "atto", "z": "zepto", "y": "yocto",
}  # fmt: skip
LENGTHS: dict[str, tuple[Fraction, str]] = {
    **{f"{symbol}m": (Fraction(1), f"{prefix}meter") for symbol, prefix in PREFIXES.items()},
    "dam": (Fraction(10), "meter"),
    "Å": (Fraction(1), "angstrom"),
    "thou": (Fraction(1, 1000), "inch"),
    "pt": (Fraction(1, 72), "inch"),
    "li": (Fraction(1, 12), "inch"),
    "in": (Fraction(1), "inch"),
    "ft": (Fraction(1), "foot"),
    "yd": (Fraction(1), "yard"),
    "mi": (Fraction(1), "mile"),
    "pc": (Fraction(1), "parsec"),
}
"""Factor and OME-NGFF's name, by OME's symbol; `pixel` and `reference frame` are no lengths."""
WORDS = {
    "micron": "µm", "microns": "µm", "um": "µm", "micrometer": "µm", "micrometre": "µm",
    "nanometer": "nm", "millimeter": "mm", "centimeter": "cm", "meter": "m",
    "inch": "in", "inches": "in", "angstrom": "Å",
}  # fmt: skip
"""OME's symbols by the words that other programs use."""
POWERS = {
    "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "": 0,
    "d": -1, "c": -2, "m": -3, "µ": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24,
}  # fmt: skip
SECONDS = {
    **{f"{symbol}s": Fraction(10) ** power for symbol, power in POWERS.items()},
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OmeImage:
    """One image of an OME-XML document.

    Parameters
    ----------
    name : str
        Its name, empty if it has none.
    sizes : mapping of str to int
        Extents by ``"t"``, ``"c"``, ``"z"``, ``"y"``, ``"x"``; ``"c"`` counts samples.
    spacing : mapping of str to (float, str or None)
        As in `patchworks.readers.scene.Scene`.
    channels : tuple of Channel
        One per sample, or empty if nothing is said.
    n_planes : int
        Planes that, as it says, are in the TIFF files.
    file_names : tuple of str
        TIFF files in which, as it says, the planes are.
    """

    name: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    spacing: Mapping[str, tuple[float, str | None]] = field(default_factory=dict)
    channels: tuple[Channel, ...] = ()
    n_planes: int = 0
    file_names: tuple[str, ...] = ()


def images_in(xml: str) -> tuple[OmeImage, ...]:
    """Return the images that an OME-XML document describes.

    Raises
    ------
    xml.etree.ElementTree.ParseError
        If it is not XML.

    Examples
    --------
    >>> image, = images_in(
    ...     '<OME><Image Name="cells"><Pixels SizeX="4" SizeY="3" PhysicalSizeX="65" '
    ...     'PhysicalSizeXUnit="nm"/></Image></OME>'
    ... )
    >>> image.name, image.spacing
    ('cells', {'x': (65.0, 'nanometer')})
    """
    return tuple([_image(e) for e in _root(xml).iterfind("{*}Image")])


def metadata_file(xml: str) -> str | None:
    """Return the name of the file that has the metadata, where this one only refers to it."""
    reference = _root(xml).find("{*}BinaryOnly")
    return None if reference is None else reference.get("MetadataFile", "")


def length(text: str | None, unit: str | None) -> tuple[float, str | None] | None:
    """Return a distance and its unit as OME-NGFF spells it, or None if it is no calibration.

    Examples
    --------
    >>> length("0.5", "µm"), length("5", "thou"), length("1", "pixel"), length("0", "µm")
    ((0.5, 'micrometer'), (0.005, 'inch'), None, None)
    """
    factor, name = LENGTHS.get(_symbol(unit, "µm"), (None, None))
    distance = _positive(text)
    return None if factor is None or distance is None else (float(distance * factor), name)


def unit_symbol(text: Any) -> str:
    """Return OME's symbol for what ImageJ, MetaMorph or Imaris call a unit of length."""
    word = str(text).replace("\\u00B5", "µ").replace("\\u00b5", "µ").strip("\0 ")
    return WORDS.get(word.lower(), word) or "pixel"


def seconds(text: str | None, unit: str | None) -> float | None:
    """Return a time in seconds, or None if it is none."""
    factor, time = SECONDS.get(_symbol(unit, "s")), _positive(text)
    return None if factor is None or time is None else float(time * factor)


def color(text: str | None) -> str | None:
    """Return a signed 32-bit RGBA number as ``"RRGGBB"``.

    Examples
    --------
    >>> color("-16776961"), color(None)
    ('FF0000', None)
    """
    try:
        number = int(text or "")
    except ValueError:
        return None
    return f"{(number & 0xFFFFFFFF) >> 8:06X}"


def _root(xml: str) -> ElementTree.Element:
    # a declared encoding is that of the bytes the text was made from
    return ElementTree.fromstring(
        xml.encode("utf-8") if not xml.startswith("<?xml") else _bare(xml)
    )


def _bare(xml: str) -> bytes:
    return xml[xml.index("?>") + 2 :].strip().encode("utf-8")


def _image(element: ElementTree.Element) -> OmeImage:
    pixels = element.find("{*}Pixels")
    name = element.get("Name", "")
    if pixels is None:
        return OmeImage(name=name)
    sizes = {axis: int(pixels.get(f"Size{axis.upper()}", "1")) for axis in "tczyx"}
    n_samples = [int(c.get("SamplesPerPixel", "1")) for c in pixels.iterfind("{*}Channel")]
    n_planes = sizes["t"] * sizes["z"] * sizes["c"] // max(n_samples[:1] or [1])
    files = [uuid.get("FileName") for uuid in pixels.iterfind("{*}TiffData/{*}UUID")]
    return OmeImage(
        name=name,
        sizes=sizes,
        spacing=_spacing(pixels),
        channels=_channels(pixels, sizes["c"]),
        n_planes=min(n_planes, _n_in_files(pixels, n_planes)),
        file_names=tuple(dict.fromkeys([f for f in files if f])),
    )


def _spacing(pixels: ElementTree.Element) -> dict[str, tuple[float, str | None]]:
    found: dict[str, tuple[float, str | None]] = {}
    for axis in "ZYX":
        key = f"PhysicalSize{axis}"
        size = length(pixels.get(key), pixels.get(f"{key}Unit"))
        if size is not None:
            found[axis.lower()] = size
    step = seconds(pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit"))
    if step is not None:
        found["t"] = (step, "second")
    return found


def _channels(pixels: ElementTree.Element, n: int) -> tuple[Channel, ...]:
    """Return one channel per sample, or none if nothing is said or the numbers do not fit."""
    found: list[Channel] = []
    for element in pixels.iterfind("{*}Channel"):
        n_samples = int(element.get("SamplesPerPixel", "1"))
        # a colour is that of the channel: the samples of a pixel are its red, green and blue
        shade = color(element.get("Color")) if n_samples == 1 else None
        found += [Channel(element.get("Name") or None, shade)] * n_samples
    said = any(channel != Channel() for channel in found)
    return tuple(found) if said and len(found) == n else ()


def _n_in_files(pixels: ElementTree.Element, n_planes: int) -> int:
    """Return how many planes are said to be in files."""
    n = 0
    for part in pixels.iterfind("{*}TiffData"):
        count = part.get("PlaneCount") or part.get("NumPlanes")
        if count is None and part.get("IFD") is None and part.find("{*}UUID") is None:
            return n_planes
        n += int(count or 1)
    return n


def _symbol(unit: str | None, default: str) -> str:
    # the micro sign, and the Greek letter that looks like it; the same for ångström
    return (unit or default).replace("\u03bc", "µ").replace("\u212b", "Å")


def _positive(text: str | None) -> Fraction | None:
    """Return a number that can be a distance, exactly as it is written, or None."""
    try:
        number = Fraction((text or "").strip())
    except ValueError:
        return None
    return number if number > 0 else None
