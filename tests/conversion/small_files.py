"""Small files of the formats that are read, as tests write them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

STACK = np.random.default_rng(0).integers(0, 60000, (24, 300, 260), dtype="uint16")
"""(z, y, x); levels, and chunks at the end of every axis."""

SIZES = {"z": 1.0, "y": 0.2, "x": 0.2}


def write_tiff(path: Path, voxels: np.ndarray = STACK) -> Path:
    size = {f"PhysicalSize{axis.upper()}": size for axis, size in SIZES.items()}
    metadata = {"axes": "ZYX"[-voxels.ndim :], **size}
    tifffile.imwrite(path, voxels, ome=True, tile=(64, 64), compression="zlib", metadata=metadata)
    return path


def damage(path: Path, tile: int, stamp: int) -> None:
    """Make a tile of a TIFF file unreadable; size and time stay, so that it is the same file."""
    with tifffile.TiffFile(path) as file:
        starts = [start for page in file.pages for start in page.dataoffsets]
    with path.open("r+b") as file:
        file.seek(starts[tile])
        file.write(b"\xff" * 16)
    os.utime(path, ns=(stamp, stamp))


def write_ims(path: Path, voxels: np.ndarray = STACK) -> Path:
    h5py = pytest.importorskip("h5py")

    def text(value: object) -> np.ndarray:
        return np.frombuffer(str(value).encode(), "S1")

    chunks = (8, 64, 64)
    with h5py.File(path, "w") as file:
        channel = file.create_group("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0")
        image = file.create_group("DataSetInfo/Image")
        for i, (axis, n) in enumerate(zip("zyx", voxels.shape, strict=True)):
            channel.attrs[f"ImageSize{axis.upper()}"] = text(n)
            image.attrs[f"ExtMin{2 - i}"] = text(0)
            image.attrs[f"ExtMax{2 - i}"] = text(n * SIZES[axis])
        image.attrs["Unit"] = text("um")
        padded = np.pad(voxels, [(0, -n % c) for n, c in zip(voxels.shape, chunks, strict=True)])
        channel.create_dataset("Data", data=padded, chunks=chunks, compression="gzip")
    return path


def write_czi(path: Path, voxels: np.ndarray = STACK) -> Path:
    czi = pytest.importorskip("pylibCZIrw.czi")
    with czi.create_czi(str(path)) as file:
        for z, plane in enumerate(voxels):
            file.write(plane[..., None], plane={"Z": z, "C": 0, "T": 0})
        file.write_metadata("test", scale_x=2e-7, scale_y=2e-7, scale_z=1e-6)
    return path


def write_lif(path: Path, voxels: np.ndarray = STACK) -> Path:
    """Write the parts of Leica's format that say where one stack lies."""
    strides = zip("123", voxels.shape[::-1], voxels.strides[::-1], strict=True)
    dimensions = [
        f'<DimensionDescription DimID="{axis}" NumberOfElements="{n}" Origin="0" '
        f'Length="{(n - 1) * 2e-7}" Unit="m" BitInc="0" BytesInc="{stride}"/>'
        for axis, n, stride in strides
    ]
    channel = (
        '<ChannelDescription DataType="0" ChannelTag="0" Resolution="16" Min="0" Max="65535" '
        'NameOfMeasuredQuantity="" Unit="" LUTName="Gray" IsLUTInverted="0" BytesInc="0" '
        'BitInc="0"/>'
    )
    text = (
        '<LMSDataContainerHeader Version="2"><Element Name="project"><Children>'
        '<Element Name="stack"><Data><Image><ImageDescription>'
        f"<Channels>{channel}</Channels><Dimensions>{''.join(dimensions)}</Dimensions>"
        '</ImageDescription></Image></Data><Memory Size="0" MemoryBlockID="MemBlock_1"/>'
        "<Children></Children></Element></Children></Element></LMSDataContainerHeader>"
    ).encode("utf-16-le")
    title = "MemBlock_1".encode("utf-16-le")
    block = (0x70, len(title) + 14, 0x2A, voxels.nbytes, 0x2A, len(title) // 2)
    head = struct.pack("<IIBI", 0x70, len(text) + 5, 0x2A, len(text) // 2)
    path.write_bytes(head + text + struct.pack("<IIBQBI", *block) + title + voxels.tobytes())
    return path


def write_nd2(path: Path, voxels: np.ndarray = STACK[:, :64, :64]) -> Path:
    """Write the chunks of a file of NIS-Elements 4, the frames without compression."""
    n, height, width = voxels.shape
    magic = 0x0ABECEDA

    def variant(value: object, name: str = "no_name") -> str:
        if isinstance(value, dict):
            inner = "".join([variant(v, k) for k, v in value.items()])
            return f'<{name} runtype="CLxListVariant">{inner}</{name}>'
        kind = {int: "lx_uint32", float: "double", str: "CLxStringW", bool: "bool"}[type(value)]
        return f'<{name} runtype="{kind}" value="{value}"/>'

    def document(value: object) -> bytes:
        return f'<variant version="1.0">{variant(value)}</variant>'.encode()

    sizes = {"uiWidth": width, "uiHeight": height, "uiComp": 1, "uiSequenceCount": n}
    bits = {"uiWidthBytes": 2 * width, "uiBpcSignificant": 16, "uiBpcInMemory": 16}
    plane = {"sDescription": "one", "uiColor": 255, "uiCompCount": 1}
    plane["pFluorescentProbe"] = {"m_sName": "dye"}
    planes = {"uiCount": 1, "sPlaneNew": {"a0": plane}}
    stack = {"eType": 4, "uLoopPars": {"uiCount": n, "dZStep": 1.0}}
    chunks = {
        b"ImageAttributes!": document({**sizes, **bits, "eCompression": 2}),
        b"ImageMetadataSeq|0!": document(
            {"bCalibrated": True, "dCalibration": 0.2, "sPicturePlanes": planes}
        ),
        b"ImageMetadata!": document(stack),
    }
    for i, frame in enumerate(voxels):
        chunks[b"ImageDataSeq|%d!" % i] = bytes(8) + frame.tobytes()
    begin = struct.pack("<IIQ32s64s", magic, 32, 64, b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver2.1")
    parts, index, offset = [begin], b"", len(begin)
    for name, content in chunks.items():
        head = struct.pack("<IIQ", magic, 4072, len(content)) + name.ljust(4072, b"\0")
        index += name + struct.pack("<QQ", offset, len(content))
        offset += len(head) + len(content)
        parts += [head, content]
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", offset)
    name = b"ND2 FILEMAP SIGNATURE NAME 0001!"
    parts += [struct.pack("<IIQ", magic, len(name), len(index) + len(end)), name, index, end]
    path.write_bytes(b"".join(parts))
    return path


WRITERS: dict[str, Callable[..., Path]] = {
    ".tif": write_tiff,
    ".ims": write_ims,
    ".czi": write_czi,
    ".lif": write_lif,
    ".nd2": write_nd2,
}
