"""Zarr and OME-Zarr stores in: what they say of themselves arrives."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from unittest import mock

import numcodecs
import numpy as np
import pytest
import zarr

from patchworks.errors import ImageReadError, InputError, SourceNotFoundError, TargetExistsError
from patchworks.geometry import image_pyramid
from patchworks.plugins.ome_zarr import to_ome_zarr
from patchworks.readers.ome_zarr import ZarrReader
from patchworks.steps.pyramid import pool_image
from tests.conversion.written import (
    axes,
    check_beyond_validators,
    check_pyramid,
    equal,
    levels,
    multiscale,
    ome,
    placed,
    units,
)
from tests.stores import contents, ome_zarr

RNG = np.random.default_rng(6)
VOXELS = RNG.integers(0, 60000, (3, 70, 50), dtype="uint16")
QUIET = {"progress": False}


@pytest.fixture(params=["0.4", "0.5"])
def version(request):
    return request.param


@pytest.mark.parametrize("to", ["0.4", "0.5"])
@pytest.mark.parametrize("unit", ["nanometer", "micrometer", "angstrom", None])
def test_sizes_units_and_positions_are_kept(tmp_path, version, to, unit):
    sized = {"scale": (400.0, 65.5, 65.5), "translation": (7.0, -3.25, 4.0), "unit": unit}
    source = ome_zarr(tmp_path / "a.zarr", [VOXELS], version=version, **sized)
    target = tmp_path / "b.zarr"
    to_ome_zarr(source, target, n_levels=3, ngff_version=to, **QUIET)
    check_pyramid(target, VOXELS, 2)
    check_beyond_validators(target)
    assert placed(target)[0] == ([400.0, 65.5, 65.5], [7.0, -3.25, 4.0])
    assert units(target) == [unit] * 3
    assert multiscale(target)["name"] == "image"


def test_a_scale_of_1_without_unit_says_nothing(tmp_path, caplog):
    source = ome_zarr(tmp_path / "a.zarr", [VOXELS], unit=None)
    to_ome_zarr(source, tmp_path / "b.zarr", **QUIET)
    assert placed(tmp_path / "b.zarr")[0] == ([1.0] * 3, [0.0] * 3)
    assert "no pixel size for z, y, x" in caplog.text


def test_sizes_that_are_given_replace_those_of_the_source(tmp_path, version):
    sized = {"scale": (400.0, 65.5, 65.5), "translation": (7.0, 3.0, 4.0), "unit": "nanometer"}
    source = ome_zarr(tmp_path / "a.zarr", [VOXELS], version=version, **sized)
    to_ome_zarr(source, tmp_path / "b.zarr", pixel_size={"z": 0.4}, **QUIET)
    assert units(tmp_path / "b.zarr") == ["micrometer", "nanometer", "nanometer"]
    # A position is in the unit of its size: it goes with it.
    assert placed(tmp_path / "b.zarr")[0] == ([0.4, 65.5, 65.5], [0.0, 3.0, 4.0])


def test_time_steps_are_kept(tmp_path, version):
    image = RNG.integers(0, 255, (3, 2, 20, 20), dtype="uint8")
    source = ome_zarr(
        tmp_path / "a.zarr", [image], version=version, axes="tcyx", scale=(0.25, 1, 0.5, 0.5)
    )
    group = zarr.open_group(source)
    attributes = dict(group.attrs)
    attributes.get("ome", attributes)["multiscales"][0]["axes"][0]["unit"] = "minute"
    group.attrs.put(attributes)
    to_ome_zarr(source, tmp_path / "b.zarr", **QUIET)
    assert axes(tmp_path / "b.zarr") == "tcyx"
    assert units(tmp_path / "b.zarr") == ["minute", None, "micrometer", "micrometer"]
    assert placed(tmp_path / "b.zarr")[0][0] == [0.25, 1.0, 0.5, 0.5]


def with_omero(path: Path, omero: object, version: str, n_channels: int = 2) -> str:
    image = RNG.integers(0, 4000, (n_channels, 3, 20, 30), dtype="uint16")
    source = ome_zarr(path, [image], version=version, axes="czyx")
    group = zarr.open_group(source)
    attributes = dict(group.attrs)
    attributes.get("ome", attributes)["omero"] = omero
    group.attrs.put(attributes)
    return source


WINDOW = {"min": 0.0, "max": 65535.0, "start": 100.0, "end": 3000.0}


@pytest.mark.parametrize("to", ["0.4", "0.5"])
def test_channels_are_kept(tmp_path, version, to):
    channels = [
        {"label": "DAPI", "color": "0000ff", "window": WINDOW, "active": False},
        {"label": "GFP", "color": "#00FF00", "window": {**WINDOW, "end": 2000}},
    ]
    source = with_omero(tmp_path / "a.zarr", {"channels": channels}, version)
    target = tmp_path / "b.zarr"
    to_ome_zarr(source, target, ngff_version=to, **QUIET)
    check_beyond_validators(target)
    found = ome(target)["omero"]["channels"]
    assert [channel["label"] for channel in found] == ["DAPI", "GFP"]
    assert [channel["color"] for channel in found] == ["0000FF", "00FF00"]
    assert [channel["window"]["end"] for channel in found] == [3000.0, 2000.0]
    assert {channel["window"]["start"] for channel in found} == {100.0}


def test_names_that_are_given_replace_those_of_the_source(tmp_path):
    channels = [{"label": "a", "color": "FF0000", "window": WINDOW}] * 2
    source = with_omero(tmp_path / "a.zarr", {"channels": channels}, "0.5")
    to_ome_zarr(source, tmp_path / "b.zarr", channel_names=["DAPI", "GFP"], **QUIET)
    found = ome(tmp_path / "b.zarr")["omero"]["channels"]
    assert [channel["label"] for channel in found] == ["DAPI", "GFP"]
    assert [channel["color"] for channel in found] == ["FF0000", "FF0000"]


ODD_OMERO = [
    None,
    [],
    "channels",
    {},
    {"channels": None},
    {"channels": [1, 2]},
    {"channels": [{}, {}]},
    {"channels": [{"color": "FF0000"}]},  # one for two channels
    {"channels": [{"color": 255}, {"color": "nothing"}]},
    {"channels": [{"window": {"start": 5, "end": 5}}, {"window": {"start": "a", "end": 1}}]},
    {"channels": [{"window": {"start": 9, "end": 1}}, {"window": 3}]},
    {"channels": [{"label": 7}, {"label": None}]},
    {"channels": [{"window": {"start": True, "end": False}}, {"color": "12345"}]},
]


@pytest.mark.parametrize("omero", ODD_OMERO, ids=str)
def test_odd_descriptions_of_channels_do_no_harm(tmp_path, version, omero):
    source = with_omero(tmp_path / "a.zarr", omero, version)
    to_ome_zarr(source, tmp_path / "b.zarr", **QUIET)
    check_beyond_validators(tmp_path / "b.zarr")
    check_pyramid(tmp_path / "b.zarr", levels(source)[0], 2)


def strided(factor: int = 2, n_levels: int = 3) -> list[np.ndarray]:
    return [VOXELS[:, :: factor**i, :: factor**i] for i in range(n_levels)]


def pooled(n_levels: int = 3) -> list[np.ndarray]:
    found = [VOXELS]
    while len(found) < n_levels:
        found.append(pool_image(found[-1], (1, 2, 2)))
    return found


def shifted(path: Path | str) -> None:
    """Write the translations of pooled levels into an image's metadata."""
    group = zarr.open_group(path)
    attributes = dict(group.attrs)
    image = attributes.get("ome", attributes)["multiscales"][0]
    for dataset in image["datasets"]:
        scale = dataset["coordinateTransformations"][0]["scale"]
        first = image["datasets"][0]["coordinateTransformations"][0]["scale"]
        origin = [(s - f) / 2 for s, f in zip(scale, first, strict=True)]
        dataset["coordinateTransformations"] = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": origin},
        ]
    group.attrs.put(attributes)


@pytest.mark.parametrize("shard", [None, True])
@pytest.mark.parametrize("made", [strided, pooled])
def test_a_pyramid_that_is_kept_is_kept_voxel_by_voxel(tmp_path, version, made, shard):
    source = ome_zarr(tmp_path / "a.zarr", made(), version=version, scale=(1.0, 0.5, 0.5))
    if made is pooled:
        shifted(source)
    target = tmp_path / "b.zarr"
    keywords = {"chunks": (1, 16, 16), "shard": shard, **QUIET}
    to_ome_zarr(source, target, reuse_pyramid=True, **keywords)
    assert all(equal(a, b) for a, b in zip(levels(target), made(), strict=True))
    check_beyond_validators(target)
    assert [scale for scale, _ in placed(target)] == [
        [1.0, 0.5 * 2**level, 0.5 * 2**level] for level in range(3)
    ]
    # A strided level begins with the very first voxel: nothing is shifted.
    step = 0.25 if made is pooled else 0.0
    assert [origin for _, origin in placed(target)] == [
        [0.0, step * (2**level - 1), step * (2**level - 1)] for level in range(3)
    ]


def test_levels_of_any_ratio_are_kept(tmp_path):
    made = [VOXELS, VOXELS[:, ::3, ::3], VOXELS[::3, ::10, ::10]]
    source = ome_zarr(tmp_path / "a.zarr", made, scale=(2.0, 1.0, 1.0))
    to_ome_zarr(source, tmp_path / "b.zarr", reuse_pyramid=True, **QUIET)
    assert all(equal(a, b) for a, b in zip(levels(tmp_path / "b.zarr"), made, strict=True))
    scales = [scale for scale, _ in placed(tmp_path / "b.zarr")]
    assert scales == [[2.0, 1.0, 1.0], [2.0, 3.0, 3.0], [6.0, 10.0, 10.0]]


@pytest.mark.parametrize("n_levels", [1, 2, 9])
def test_as_many_levels_are_kept_as_asked_for(tmp_path, n_levels):
    source = ome_zarr(tmp_path / "a.zarr", strided())
    to_ome_zarr(source, tmp_path / "b.zarr", reuse_pyramid=True, n_levels=n_levels, **QUIET)
    expected = strided()[:n_levels]
    assert all(equal(a, b) for a, b in zip(levels(tmp_path / "b.zarr"), expected, strict=True))


def test_without_reuse_a_pyramid_is_made_anew(tmp_path):
    source = ome_zarr(tmp_path / "a.zarr", strided())
    to_ome_zarr(source, tmp_path / "b.zarr", n_levels=3, **QUIET)
    check_pyramid(tmp_path / "b.zarr", VOXELS, 2)
    with pytest.raises(TargetExistsError):
        to_ome_zarr(source, tmp_path / "b.zarr", n_levels=3, reuse_pyramid=True, **QUIET)


def test_a_kept_level_that_was_written_anew_is_another_source(tmp_path):
    source = ome_zarr(tmp_path / "a.zarr", strided())
    to_ome_zarr(source, tmp_path / "b.zarr", reuse_pyramid=True, **QUIET)
    zarr.open_group(source)["1"][0] = 7
    with pytest.raises(TargetExistsError):
        to_ome_zarr(source, tmp_path / "b.zarr", reuse_pyramid=True, **QUIET)


def test_a_level_that_is_larger_than_the_first_is_refused(tmp_path):
    source = ome_zarr(tmp_path / "a.zarr", strided()[::-1])
    before = contents(tmp_path)
    with pytest.raises(InputError):
        to_ome_zarr(source, tmp_path / "b.zarr", reuse_pyramid=True, **QUIET)
    assert contents(tmp_path) == before


def test_labels_beside_the_image_are_not_taken_for_channels(tmp_path):
    source = ome_zarr(tmp_path / "a.zarr", [VOXELS])
    labels = zarr.open_group(source).create_group("labels", attributes={"ome": {"labels": []}})
    labels.create_array("x", data=VOXELS)
    to_ome_zarr(source, tmp_path / "b.zarr", n_levels=2, **QUIET)
    check_pyramid(tmp_path / "b.zarr", VOXELS, 2)


STORED = list(
    itertools.product([2, 3], ["<u2", ">u2", ">i4", "<f4", ">f8", "|b1"], ["C", "F"], ["/", "."])
)


@pytest.mark.parametrize(("zarr_format", "dtype", "order", "separator"), STORED)
def test_arrays_are_read_however_they_are_stored(tmp_path, zarr_format, dtype, order, separator):
    voxels = RNG.integers(0, 100, (3, 20, 30)).astype(dtype)
    key = {2: "v2", 3: "default"}[zarr_format]
    zarr.create_array(
        str(tmp_path / "a.zarr"), data=voxels, chunks=(2, 7, 11), zarr_format=zarr_format,
        order=order if zarr_format == 2 else None,
        chunk_key_encoding={"name": key, "separator": separator},
        compressors=numcodecs.Zlib() if zarr_format == 2 else "auto",
    )  # fmt: skip
    to_ome_zarr(tmp_path / "a.zarr", tmp_path / "b.zarr", n_levels=2, **QUIET)
    check_pyramid(tmp_path / "b.zarr", voxels.astype(voxels.dtype.newbyteorder("=")), 2)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_plain_arrays_are_told_their_axes(tmp_path, version):
    voxels = RNG.integers(0, 100, (20, 30, 2, 3), dtype="uint8")
    zarr_format = {"0.4": 2, "0.5": 3}[version]
    zarr.create_array(str(tmp_path / "a.zarr"), data=voxels, zarr_format=zarr_format)
    to_ome_zarr(tmp_path / "a.zarr", tmp_path / "b.zarr", axes="yxcz", n_levels=2, **QUIET)
    assert axes(tmp_path / "b.zarr") == "czyx"
    check_pyramid(tmp_path / "b.zarr", voxels.transpose(2, 3, 0, 1), 2)


AT_A_PATH_AND_OPENED = pytest.mark.parametrize(
    "source_of", [lambda path: path, lambda path: zarr.open_array(path, mode="r")],
    ids=["path", "opened"],
)  # fmt: skip


@AT_A_PATH_AND_OPENED
def test_dimension_names_are_axes(tmp_path, source_of):
    voxels = RNG.integers(0, 100, (20, 30, 2), dtype="uint8")
    names = ["y", "x", "c"]
    zarr.create_array(str(tmp_path / "a.zarr"), data=voxels, dimension_names=names)
    source = source_of(tmp_path / "a.zarr")
    to_ome_zarr(source, tmp_path / "b.zarr", n_levels=2, **QUIET)
    assert axes(tmp_path / "b.zarr") == "cyx"
    check_pyramid(tmp_path / "b.zarr", voxels.transpose(2, 0, 1), 2)
    to_ome_zarr(source, tmp_path / "c.zarr", axes="zyx", **QUIET)
    assert axes(tmp_path / "c.zarr") == "zyx"


@AT_A_PATH_AND_OPENED
@pytest.mark.parametrize("names", [None, ["c", None, "y", "x"]])
def test_four_axes_that_nothing_names_must_be_told(tmp_path, source_of, names):
    """They may be channels or times: nothing is made up."""
    zarr.create_array(str(tmp_path / "a.zarr"), data=VOXELS[None], dimension_names=names)
    source = source_of(tmp_path / "a.zarr")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="axes='czyx'"):
        to_ome_zarr(source, tmp_path / "b.zarr", **QUIET)
    assert contents(tmp_path) == before
    to_ome_zarr(source, tmp_path / "b.zarr", axes="czyx", **QUIET)
    assert axes(tmp_path / "b.zarr") == "czyx"


def test_the_array_of_a_group_is_found(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("raw", data=VOXELS)
    to_ome_zarr(tmp_path / "a.zarr", tmp_path / "b.zarr", n_levels=2, **QUIET)
    check_pyramid(tmp_path / "b.zarr", VOXELS, 2)
    group.create_array("other", data=VOXELS)
    with pytest.raises(InputError, match=r"other.*raw"):
        to_ome_zarr(tmp_path / "a.zarr", tmp_path / "c.zarr", **QUIET)
    to_ome_zarr(tmp_path / "a.zarr/other", tmp_path / "c.zarr", n_levels=2, **QUIET)
    check_pyramid(tmp_path / "c.zarr", VOXELS, 2)


def test_transposed_images_are_put_in_order(tmp_path, version):
    image = np.ascontiguousarray(VOXELS.transpose(2, 1, 0))
    sized = {"scale": (0.1, 0.2, 3.0), "translation": (1.0, 2.0, 3.0)}
    source = ome_zarr(tmp_path / "a.zarr", [image], version=version, axes="xyz", **sized)
    to_ome_zarr(source, tmp_path / "b.zarr", n_levels=2, **QUIET)
    check_pyramid(tmp_path / "b.zarr", VOXELS, 2)
    assert placed(tmp_path / "b.zarr")[0] == ([3.0, 0.2, 0.1], [3.0, 2.0, 1.0])


def test_old_versions_are_read(tmp_path):
    """0.1 and 0.2 name no axes; 0.3 names them by letters."""
    image = VOXELS[None, None]
    for number, extra in enumerate([{}, {"axes": list("tczyx")}]):
        path = tmp_path / f"{number}.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=2)
        group.create_array("0", data=image, chunk_key_encoding={"name": "v2", "separator": "."})
        said = {"version": f"0.{number + 2}", "datasets": [{"path": "0"}], **extra}
        group.attrs["multiscales"] = [said]
        target = tmp_path / f"{number}.ome.zarr"
        to_ome_zarr(path, target, n_levels=2, **QUIET)
        check_pyramid(target, image, 2)
        assert axes(target) == "tczyx"


@pytest.mark.parametrize("part", ["", "A", "A/1"])
def test_plates_and_wells_are_refused(tmp_path, version, part):
    path = tmp_path / "plate.zarr"
    attributes = {"plate": {"columns": [{"name": "1"}], "rows": [{"name": "A"}], "wells": []}}
    well = {"well": {"images": [{"path": "0"}]}}
    new = version == "0.5"
    zarr_format = 3 if new else 2
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.attrs.put({"ome": {"version": version, **attributes}} if new else attributes)
    row = group.create_group("A").create_group("1")
    row.attrs.put({"ome": {"version": version, **well}} if new else well)
    ome_zarr(path / "A/1/0", [VOXELS], version=version)
    before = contents(tmp_path)
    with pytest.raises(InputError):
        to_ome_zarr(path / part, tmp_path / "b.zarr", **QUIET)
    assert contents(tmp_path) == before
    to_ome_zarr(path / "A/1/0", tmp_path / "b.zarr", n_levels=2, **QUIET)
    check_pyramid(tmp_path / "b.zarr", VOXELS, 2)


BROKEN = [
    {"multiscales": [{"datasets": []}]},
    {"multiscales": [{"axes": ["z", "y", "x"]}]},
    {"multiscales": [{"axes": ["z", "y", "x"], "datasets": [{"path": "9"}]}]},
    {"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": "0"}]}]},
    {"multiscales": [{"axes": ["q", "y", "x"], "datasets": [{"path": "0"}]}]},
    {"multiscales": [{"axes": ["z", "z", "x"], "datasets": [{"path": "0"}]}]},
    {"multiscales": "yes"},
    {"multiscales": {"0": 1}},
    {
        "multiscales": [
            {
                "axes": ["z", "y", "x"],
                "datasets": [
                    {
                        "path": "0",
                        "coordinateTransformations": [{"type": "scale", "scale": [1.0, 2.0]}],
                    }
                ],
            }
        ]
    },
]


@pytest.mark.parametrize("attributes", BROKEN, ids=[str(i) for i in range(len(BROKEN))])
@pytest.mark.parametrize("reuse", [False, True])
def test_metadata_that_cannot_be_are_refused(tmp_path, attributes, reuse):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", attributes=attributes, zarr_format=2)
    group.create_array("0", data=VOXELS)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"a\.zarr"):
        to_ome_zarr(tmp_path / "a.zarr", tmp_path / "b.zarr", reuse_pyramid=reuse, **QUIET)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("scale", [0.0, -0.5, float("nan"), float("inf")])
def test_a_size_that_cannot_be_is_no_size(tmp_path, scale):
    source = ome_zarr(tmp_path / "a.zarr", [VOXELS], scale=(1.0, scale, 0.5))
    to_ome_zarr(source, tmp_path / "b.zarr", n_levels=2, **QUIET)
    assert placed(tmp_path / "b.zarr")[0][0] == [1.0, 1.0, 0.5]
    assert units(tmp_path / "b.zarr") == ["micrometer", None, "micrometer"]
    check_beyond_validators(tmp_path / "b.zarr")
    text = next((tmp_path / "b.zarr").glob("zarr.json")).read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize("make", ["nothing", "folder", "file"])
def test_what_is_no_store_is_not_found(tmp_path, make):
    source = tmp_path / "a.zarr"
    if make == "folder":
        source.mkdir()
    elif make == "file":
        source.write_bytes(b"")
    before = contents(tmp_path)
    with pytest.raises(SourceNotFoundError, match=r"a\.zarr"):
        to_ome_zarr(source, tmp_path / "b.zarr", **QUIET)
    assert contents(tmp_path) == before


def test_a_damaged_chunk_is_named_and_the_rest_is_kept(tmp_path):
    source = ome_zarr(tmp_path / "a.zarr", [VOXELS], chunks=(1, 16, 16))
    chunk = tmp_path / "a.zarr/0/c/1/2/1"
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageReadError, match=r"a\.zarr"):
        to_ome_zarr(source, tmp_path / "b.zarr", **QUIET)
    assert not (tmp_path / "b.zarr").exists()
    chunk.write_bytes(content)
    to_ome_zarr(source, tmp_path / "b.zarr", n_levels=2, **QUIET)
    check_pyramid(tmp_path / "b.zarr", VOXELS, 2)


@pytest.mark.parametrize("where", ["same", "below", "above", "link", "file URL"])
def test_the_source_is_never_the_target(tmp_path, where):
    source = Path(ome_zarr(tmp_path / "in/a.zarr", [VOXELS]))
    (tmp_path / "link.zarr").symlink_to(source)
    before = contents(tmp_path)
    target = {
        "same": source,
        "below": source / "new.zarr",
        "above": source.parent,
        "link": tmp_path / "link.zarr",
        "file URL": f"file://{source}",
    }[where]
    with pytest.raises(InputError, match="target"):
        to_ome_zarr(source, target, overwrite=True, **QUIET)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("chunks", [(2, 9, 25), (1, 16, 16), (3, 70, 7), (2, 70, 50)])
def test_no_chunk_of_the_source_is_decoded_twice(tmp_path, chunks):
    """Regions follow the chunks of the source, whatever those of the target are."""
    source = ome_zarr(tmp_path / "a.zarr", [VOXELS], chunks=chunks)
    decoded: Counter[tuple[int, ...]] = Counter()
    read = ZarrReader._read

    def reading(self, box, level):
        spans = [
            range(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, chunks, strict=True)
        ]
        decoded.update(itertools.product(*spans))
        return read(self, box, level)

    small = mock.patch.object(image_pyramid, "REGION_BYTES", 2000)
    with small, mock.patch.object(ZarrReader, "_read", reading):
        to_ome_zarr(source, tmp_path / "b.zarr", n_levels=2, chunks=(1, 16, 16), **QUIET)
    check_pyramid(tmp_path / "b.zarr", VOXELS, 2)
    assert set(decoded.values()) == {1}
    assert len(decoded) == np.prod([-(-n // c) for n, c in zip(VOXELS.shape, chunks, strict=True)])
