"""The images of a collection → OME-XML, by which viewers find them.

Follows the OME schema 2016-06; the voxels are said to lie elsewhere (`MetadataOnly`).
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from patchworks.conversion.plan import ConversionPlan

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
SCHEMA = f"{NAMESPACE} {NAMESPACE}/ome.xsd"
SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"

PIXEL_TYPES = {
    "bool": "bit", "int8": "int8", "int16": "int16", "int32": "int32", "uint8": "uint8",
    "uint16": "uint16", "uint32": "uint32", "float32": "float", "float64": "double",
}  # fmt: skip
UNITS = {
    "meter": "m", "centimeter": "cm", "millimeter": "mm", "micrometer": "µm", "nanometer": "nm",
    "picometer": "pm", "angstrom": "Å", "hour": "h", "minute": "min", "second": "s",
    "millisecond": "ms", "microsecond": "µs", "nanosecond": "ns",
}  # fmt: skip
SIZES = {"x": "PhysicalSizeX", "y": "PhysicalSizeY", "z": "PhysicalSizeZ", "t": "TimeIncrement"}


def collection_xml(plans: Sequence[ConversionPlan]) -> bytes | None:
    """Return the OME-XML of a collection, or None if OME-XML has no word for a dtype in it."""
    if any(plan.store.dtype.name not in PIXEL_TYPES for plan in plans):
        return None
    root = ET.Element("OME", {"xmlns": NAMESPACE, "xmlns:xsi": SCHEMA_INSTANCE})
    root.set("xsi:schemaLocation", SCHEMA)
    for index, plan in enumerate(plans):
        image = ET.SubElement(root, "Image", {"ID": f"Image:{index}", "Name": plan.name})
        _add_pixels(image, index, plan)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _add_pixels(image: ET.Element, index: int, plan: ConversionPlan) -> None:
    """Add extents, sizes and channels of an image."""
    axes = plan.calibration.axes
    extents = dict(zip([a.name for a in axes], plan.pyramid.shapes[0], strict=True))
    described = {
        "ID": f"Pixels:{index}",
        "DimensionOrder": "XYZCT",
        "Type": PIXEL_TYPES[plan.store.dtype.name],
    }
    described |= {f"Size{a}": str(extents.get(a.lower(), 1)) for a in "XYZCT"}
    for axis, scale in zip(axes, plan.calibration.scale, strict=True):
        if axis.unit in UNITS and axis.name in SIZES:
            described[SIZES[axis.name]] = repr(scale)
            described[f"{SIZES[axis.name]}Unit"] = UNITS[axis.unit]
    pixels = ET.SubElement(image, "Pixels", described)
    for channel in range(extents.get("c", 1)):
        said = {"ID": f"Channel:{index}:{channel}", "SamplesPerPixel": "1"}
        known = plan.channels[channel] if plan.channels else None
        if known and known.name is not None:
            said["Name"] = known.name
        if known and known.color is not None:
            said["Color"] = str(_signed(f"{known.color}FF"))
        ET.SubElement(pixels, "Channel", said)
    ET.SubElement(pixels, "MetadataOnly")


def _signed(rgba: str) -> int:
    """Return a colour as OME-XML writes it: RGBA in one signed number of 32 bits."""
    return int.from_bytes(bytes.fromhex(rgba), "big", signed=True)
