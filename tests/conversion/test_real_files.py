"""Every real file, converted: what comes out is what the vendor's own reader says."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from patchworks.io.ngff import read_channels, read_multiscale
from patchworks.plugins.ome_zarr import to_ome_zarr

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason="the real files are not beside this checkout"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
]


@dataclass(frozen=True)
class Said:
    """What a vendor's reader says of an image; voxels in canonical order."""

    voxels: np.ndarray
    axes: str
    spacing: Mapping[str, float] = field(default_factory=dict)
    unit: str = "micrometer"
    channels: tuple[str, ...] = ()


def imaris(name: str) -> Said:
    from imaris_ims_file_reader.ims import ims

    with contextlib.redirect_stdout(io.StringIO()):
        file = ims(str(DATA / name), squeeze_output=False, resolution_decimal_places=None)
        shape = file.shape
        voxels = np.asarray(
            file[0 : shape[0], 0 : shape[1], 0 : shape[2], 0 : shape[3], 0 : shape[4]]
        )
        channels = [
            file.read_attribute(f"DataSetInfo/Channel {c}", "Name") for c in range(shape[1])
        ]
        resolution = file.resolution
        file.hf.close()
    kept = [a for a, n in zip("tczyx", shape, strict=True) if n > 1]
    spacing = dict(zip("zyx", resolution, strict=True))
    return Said(voxels.squeeze(), "".join(kept), spacing, channels=tuple(channels))


def czi(name: str) -> Said:
    from pylibCZIrw import czi as library

    with library.open_czi(str(DATA / name)) as file:
        pixels = file.read()
        metadata = file.metadata["ImageDocument"]["Metadata"]
        listed = metadata["Information"]["Image"]["Dimensions"].get("Channels")
        shown = metadata.get("DisplaySetting") or {}
    distances = {
        d["@Id"].lower(): float(d["Value"]) * 1e6 for d in metadata["Scaling"]["Items"]["Distance"]
    }
    axes = "yx" if pixels.shape[-1] == 1 else "cyx"
    voxels = pixels[..., 0] if axes == "yx" else np.moveaxis(pixels[..., ::-1], -1, 0)
    spacing = {a: s for a, s in distances.items() if a in axes}
    name = (listed or shown["Channels"])["Channel"]["@Name"]
    names = (name,) * pixels.shape[-1]  # the samples of a colour image are channels of one name
    return Said(voxels, axes, spacing, channels=names)


def lif(name: str, scene: int) -> Said:
    import liffile

    axes = ("TCZX", "YCZX", "CZX")[scene]
    with liffile.LifFile(DATA / name) as file:
        image = file.images[scene]
        voxels = image.asarray()
        steps = {a: np.diff(image.coords[a]).mean() * 1e6 for a in axes if a in "ZYX"}
    if "Y" not in axes:
        voxels, axes = voxels[..., None, :], axes.replace("X", "YX")
    order = [axes.index(a) for a in "TCZYX" if a in axes]
    kept = "".join(a for a in "tczyx" if a.upper() in axes)
    return Said(voxels.transpose(order), kept, {a.lower(): s for a, s in steps.items()})


def nd2(name: str) -> Said:
    import nd2 as library

    with library.ND2File(DATA / name) as file:
        size = file.voxel_size()
        names = tuple(channel.channel.name for channel in file.metadata.channels)
        axes = "".join(file.sizes).lower()
        voxels = file.asarray()
    order = [axes.index(a) for a in "tczyx" if a in axes]
    spacing = {"z": size.z, "y": size.y, "x": size.x}
    return Said(voxels.transpose(order), "tczyx", spacing, channels=names)


def tiff(name: str, axes: str) -> Said:
    return Said(tifffile.imread(DATA / name).squeeze(), axes)


def slide(scene: int) -> Said:
    path = DATA / "CMU-1-Small-Region.ome.tiff"
    with tifffile.TiffFile(path) as file:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"][scene]["Pixels"]
        voxels, axes = file.series[scene].asarray(), file.series[scene].axes
    voxels = voxels if axes == "CYX" else np.moveaxis(voxels, -1, 0)
    spacing = {
        a: pixels[f"PhysicalSize{a.upper()}"] for a in "yx" if f"PhysicalSize{a.upper()}" in pixels
    }
    assert {pixels.get(f"PhysicalSize{a.upper()}Unit", "µm") for a in "yx"} == {"µm"}
    return Said(voxels, "cyx", spacing)


def slide_in_zarr() -> Said:
    group = zarr.open_group(DATA / "CMU-1-Small-Region_s0.ome.zarr", mode="r")
    multiscale = group.attrs["multiscales"][0]
    scale = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"]
    axes = "".join(axis["name"] for axis in multiscale["axes"])
    spacing = {a: s for a, s in zip(axes, scale, strict=True) if a in "yx"}
    channels = tuple(c["label"] for c in group.attrs.get("omero", {}).get("channels", []))
    return Said(group["0"][...], axes, spacing, channels=channels)


CASES: dict[str, tuple[str, int, Callable[[], Said]]] = {
    "PtK2Cell.ims": ("PtK2Cell.ims", 0, lambda: imaris("PtK2Cell.ims")),
    "brain.ims": ("brain_crop3_L1-3_c0.ims", 0, lambda: imaris("brain_crop3_L1-3_c0.ims")),
    "plane.czi": ("s_1_t_1_c_1_z_1.czi", 0, lambda: czi("s_1_t_1_c_1_z_1.czi")),
    "mosaic.czi": ("mosaic_test.czi", 0, lambda: czi("mosaic_test.czi")),
    "rgb.czi": ("RGB-8bit.czi", 0, lambda: czi("RGB-8bit.czi")),
    **{
        f"xz.lif, scene {i}": ("xz-example.lif", i, lambda i=i: lif("xz-example.lif", i))
        for i in range(3)
    },
    "cluster.nd2": ("cluster.nd2", 0, lambda: nd2("cluster.nd2")),
    **{
        f"slide.ome.tiff, scene {i}": ("CMU-1-Small-Region.ome.tiff", i, lambda i=i: slide(i))
        for i in range(3)
    },
    "slide.ome.zarr": ("CMU-1-Small-Region_s0.ome.zarr", 0, slide_in_zarr),
    **{
        name: (f"{name}.tif", 0, lambda name=name, axes=axes: tiff(f"{name}.tif", axes))
        for name, axes in {
            "ctc_N2DL-HeLa_02_t0-2_img": "tyx",
            "ctc_N2DL-HeLa_02_t0-2_seg": "tyx",
            "stardist_img2d": "yx",
            "stardist_mask2d": "yx",
            "stardist_img3d": "zyx",
            "stardist_mask3d": "zyx",
            "maize_clsm": "yx",
        }.items()
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_converted_file_is_what_the_vendors_reader_says(case, tmp_path):
    name, scene, ask = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the vendors' readers
        said = ask()
    target = to_ome_zarr(DATA / name, tmp_path / "out.ome.zarr", scene=scene, progress=False,
                         axes="tyx" if name.startswith("ctc") else None)  # fmt: skip
    group = zarr.open_group(target, mode="r")
    multiscale = read_multiscale(dict(group.attrs), case)
    array = group["0"]
    assert multiscale is not None
    assert "".join(axis.name for axis in multiscale.axes) == said.axes
    assert array.shape == said.voxels.shape
    assert array.dtype == said.voxels.dtype.newbyteorder("=")
    scale = dict(zip(said.axes, multiscale.levels[0].scale, strict=True))
    units = {axis.name: axis.unit for axis in multiscale.axes}
    for axis in set(said.axes) & set("zyx"):
        if axis in said.spacing:
            assert scale[axis] == pytest.approx(said.spacing[axis], rel=1e-6), axis
            assert units[axis] == said.unit
        else:
            assert (scale[axis], units[axis]) == (1.0, None), axis
    channels = tuple(channel.name for channel in read_channels(dict(group.attrs)))
    assert tuple(n for n in channels if n) == said.channels
    rng = np.random.default_rng(len(case))
    for _ in range(20):
        start = [int(rng.integers(0, n)) for n in array.shape]
        box = tuple(slice(a, a + int(rng.integers(1, 200))) for a in start)
        np.testing.assert_array_equal(np.asarray(array[box]), said.voxels[box])


def test_all_images_of_a_file_make_a_collection(tmp_path):
    target = to_ome_zarr(
        DATA / "xz-example.lif", tmp_path / "out.zarr", scene="all", progress=False
    )
    root = zarr.open_group(target, mode="r")
    assert root.attrs["ome"]["bioformats2raw.layout"] == 3
    assert root["OME"].attrs["ome"]["series"] == ["0", "1", "2"]
    for index in range(3):
        said = lif("xz-example.lif", index)
        np.testing.assert_array_equal(np.asarray(root[f"{index}/0"][...]), said.voxels)


def test_a_scene_is_found_by_its_name(tmp_path):
    target = to_ome_zarr(DATA / "xz-example.lif", tmp_path / "o.zarr", scene="xz", progress=False)
    attributes: Any = zarr.open_group(target, mode="r").attrs["ome"]
    assert attributes["multiscales"][0]["name"] == "xz"
