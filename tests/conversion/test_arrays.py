"""Arrays in, images out: voxels, levels, sizes and axes are what they have to be."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchworks import load_ome_zarr
from patchworks.errors import InputError, PatchworksError, TargetExistsError
from patchworks.geometry import image_pyramid, pyramid
from patchworks.plugins.ome_zarr import to_ome_zarr, write_labels
from patchworks.steps.pyramid import pool_image
from tests.conversion.written import (
    ORDER,
    arrays,
    axes,
    check_beyond_validators,
    check_pyramid,
    equal,
    leftovers,
    levels,
    multiscale,
    ome,
    placed,
    units,
)
from tests.stores import contents
from tests.strategies import chunks_of

LAWS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DTYPES = ["bool", "uint8", "uint16", "int16", "uint32", "float32", "int64"]
LONGEST = {"t": 3, "c": 3, "z": 5, "y": 41, "x": 41}


@contextmanager
def small_regions(n_bytes: int, fused: int = 4):
    """Cut images into regions of about `n_bytes`, so that small ones have several too."""
    with (
        mock.patch.object(image_pyramid, "REGION_BYTES", n_bytes),
        mock.patch.object(image_pyramid, "MAX_REGION_BYTES", 4 * n_bytes),
        mock.patch.object(pyramid, "MIN_FUSED_CHUNK", fused),
    ):
        yield


@st.composite
def held_axes(draw) -> str:
    """Axes of an array, in any order."""
    others = draw(st.sets(st.sampled_from("tcz")))
    return "".join(draw(st.permutations(sorted([*others, "y", "x"]))))


def random_voxels(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Return voxels over all of the dtype's range, with a quarter of them empty."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.random(shape) < 0.5
    if kind == "f":
        voxels = rng.normal(0, 1000, shape)
    else:
        voxels = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, endpoint=True)
    empty = np.zeros(shape, bool)
    empty[..., : shape[-1] // 2] = rng.random() < 0.5
    return np.where(empty, 0, voxels).astype(dtype)


@st.composite
def conversions(draw):
    """An array, its axes, and how to convert it."""
    held = draw(held_axes())
    shape = tuple([draw(st.integers(1, LONGEST[axis])) for axis in held])
    voxels = random_voxels(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32)))
    options = {
        "axes": held,
        "downscale": draw(st.sampled_from([2, 2, 3, 5])),
        "n_levels": draw(st.none() | st.integers(1, 4)),
        "codec": draw(st.sampled_from(["blosc", "zstd"])),
        "ngff_version": draw(st.sampled_from(["0.4", "0.5"])),
    }
    canonical = sorted(held, key=ORDER.index)
    if draw(st.booleans()):
        options["chunks"] = tuple([draw(st.integers(1, LONGEST[axis] + 5)) for axis in canonical])
    if options["ngff_version"] == "0.5":
        options["shard"] = draw(st.sampled_from([None, False, True]))
    if draw(st.booleans()):
        sized = draw(st.sets(st.sampled_from([a for a in held if a != "c"])))
        options["pixel_size"] = {axis: draw(st.floats(1e-3, 1e3)) for axis in sized}
    return voxels, options


def canonical(voxels: np.ndarray, held: str) -> np.ndarray:
    return voxels.transpose([held.index(axis) for axis in ORDER if axis in held])


@LAWS
@given(conversions(), st.sampled_from([64, 2000, 2**25]))
def test_any_array_becomes_the_image_that_it_is(conversion, region_bytes):
    voxels, options = conversion
    with tempfile.TemporaryDirectory() as folder, small_regions(region_bytes):
        target = Path(folder) / "image.ome.zarr"
        assert to_ome_zarr(voxels, target, progress=False, **options) == target
        expected = canonical(voxels, options["axes"])
        check_pyramid(target, expected, options["downscale"])
        check_beyond_validators(target)
        assert axes(target) == "".join([a for a in ORDER if a in options["axes"]])
        assert multiscale(target)["name"] == "image"
        sizes = options.get("pixel_size", {})
        assert placed(target)[0][0] == [sizes.get(axis, 1.0) for axis in axes(target)]
        said = {a: "second" if a == "t" else "micrometer" for a in sizes}
        assert units(target) == [said.get(axis) for axis in axes(target)]
        if options["n_levels"] is None:
            assert len(levels(target)) == 1  # smaller than a screen
        if "chunks" in options:
            asked = tuple(map(min, options["chunks"], expected.shape))
            assert arrays(target)[0].chunks == asked
        assert [bool(array.shards) for array in arrays(target)] == [
            bool(options.get("shard"))
        ] * len(levels(target))
        assert (
            zarr.open_group(target).metadata.zarr_format
            == {"0.4": 2, "0.5": 3}[options["ngff_version"]]
        )
        assert leftovers(target.parent) == []


@LAWS
@given(conversions(), st.data())
def test_dask_arrays_become_what_their_voxels_become(conversion, data):
    voxels, options = conversion
    cut = data.draw(chunks_of(voxels.shape))
    stored = voxels.astype(voxels.dtype.newbyteorder(data.draw(st.sampled_from("<>"))))
    # One region of one Dask block or more, but not more than these few voxels need.
    with tempfile.TemporaryDirectory() as folder, small_regions(3000):
        target = Path(folder) / "image.ome.zarr"
        to_ome_zarr(da.from_array(stored, cut), target, progress=False, **options)
        check_pyramid(target, canonical(voxels, options["axes"]), options["downscale"])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_dask_block_is_computed_once(data):
    shape = tuple([data.draw(st.integers(1, n)) for n in (6, 60, 60)])
    block = tuple([data.draw(st.integers(1, n)) for n in shape])
    chunks = data.draw(st.none() | st.tuples(*[st.integers(1, n) for n in shape]))
    calls: Counter[tuple[int, ...]] = Counter()
    lock = threading.Lock()

    def made(block_info=None):
        place = block_info[None]
        with lock:
            calls[place["chunk-location"]] += 1
        return np.full(place["chunk-shape"], 1 + sum(place["chunk-location"]), "uint16")

    cut = da.core.normalize_chunks(block, shape)
    lazy = da.map_blocks(made, chunks=cut, dtype="uint16", meta=np.empty((0, 0, 0), "uint16"))
    # Blocks that no chunk fits are computed once as long as a region of them stays in its budget.
    small = mock.patch.multiple(image_pyramid, REGION_BYTES=4000)
    with tempfile.TemporaryDirectory() as folder, small:
        target = Path(folder) / "image.ome.zarr"
        to_ome_zarr(lazy, target, chunks=chunks, n_levels=3, progress=False)
        assert set(calls.values()) == {1}
        assert len(calls) == np.prod(lazy.numblocks)
        with dask.config.set(scheduler="synchronous"):
            check_pyramid(target, lazy.compute(), 2)


@pytest.mark.parametrize("dtype", [">u2", ">i4", ">f4", "f2", "f8", "u8", "i1"])
def test_other_dtypes_arrive_in_native_byte_order(tmp_path, dtype):
    voxels = np.random.default_rng(1).integers(0, 100, (40, 50)).astype(dtype)
    to_ome_zarr(voxels, tmp_path / "a.ome.zarr", n_levels=2, progress=False)
    check_pyramid(tmp_path / "a.ome.zarr", voxels.astype(voxels.dtype.newbyteorder("=")), 2)


@pytest.mark.parametrize("dtype", ["longlong", "ulonglong"])
@pytest.mark.parametrize("kind", ["numpy", "dask", "tiff"])
def test_64_bit_integers_are_converted_by_whatever_name_c_has_for_them(tmp_path, kind, dtype):
    voxels = np.arange(64 * 64).reshape(64, 64).astype(dtype)
    source = da.from_array(voxels, 32) if kind == "dask" else voxels
    if kind == "tiff":
        source = tmp_path / "a.tif"
        tifffile.imwrite(source, voxels)
    for version in ("0.4", "0.5"):
        target = tmp_path / f"{version}.ome.zarr"
        to_ome_zarr(source, target, n_levels=2, ngff_version=version, progress=False)
        check_pyramid(target, voxels, 2)


@pytest.mark.parametrize("name", ["a::b.zarr", "::.zarr", "in::one/image.zarr", "a b#?%20é.zarr"])
def test_a_target_may_have_any_name(tmp_path, name):
    voxels = random_voxels((40, 50), "uint8", 3)
    target = tmp_path / name
    to_ome_zarr(voxels, target, n_levels=2, progress=False)
    found = [np.asarray(load_ome_zarr(target, level=level)) for level in (0, 1)]
    assert all(map(np.array_equal, found, [voxels, pool_image(voxels, (2, 2))]))
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.zarr*")}
    assert made == {name, f"{name}.maxima"}
    assert {path.name for path in tmp_path.iterdir()} <= {*made, "in::one"}


def test_64_bit_levels_do_not_depend_on_how_the_image_is_cut(tmp_path):
    voxels = np.random.default_rng(2).integers(-1000, 1000, (64, 64), dtype="int64")
    voxels[40:, 40:] += 2**60
    made = []
    for n_bytes in (2**10, 2**25):
        with small_regions(n_bytes):
            target = tmp_path / f"{n_bytes}.ome.zarr"
            to_ome_zarr(voxels, target, chunks=(8, 8), n_levels=2, progress=False)
            made.append(levels(target)[1])
    assert equal(*made)


def test_nan_stays_where_it_is(tmp_path):
    voxels = np.random.default_rng(2).normal(size=(30, 30)).astype("float32")
    voxels[3, 4] = np.nan
    voxels[20, 20] = np.inf
    to_ome_zarr(voxels, tmp_path / "a.ome.zarr", n_levels=2, progress=False, channel_names=["a"])
    check_pyramid(tmp_path / "a.ome.zarr", voxels, 2)
    check_beyond_validators(tmp_path / "a.ome.zarr")


@pytest.mark.parametrize("value", [0, 1, 3.4e38, np.nan])
def test_a_constant_channel_has_a_window_that_can_be_shown(tmp_path, value):
    voxels = np.full((20, 20), value, "float32")
    to_ome_zarr(voxels, tmp_path / "a.ome.zarr", progress=False, channel_names=["a"])
    check_beyond_validators(tmp_path / "a.ome.zarr")


def test_a_zarr_array_is_a_source(tmp_path):
    voxels = random_voxels((5, 30, 20), "uint16", 3)
    array = zarr.create_array(str(tmp_path / "a.zarr"), data=voxels, chunks=(2, 8, 8))
    to_ome_zarr(array, tmp_path / "a.ome.zarr", n_levels=2, progress=False)
    check_pyramid(tmp_path / "a.ome.zarr", voxels, 2)


VOXELS = random_voxels((3, 50, 40), "uint16", 5)
SIZE = {"z": 1.0, "y": 0.5, "x": 0.5}


def convert(target, voxels=VOXELS, **options):
    keywords = {"pixel_size": SIZE, "n_levels": 3, "progress": False, **options}
    return to_ome_zarr(voxels, target, **keywords)


def same_store(a: Path, b: Path) -> bool:
    """Whether two stores are the same; chunks may have any order inside a shard."""
    one, other = contents(a), contents(b)
    if arrays(a)[0].shards is None:
        return one == other
    alike = all(equal(*pair) for pair in zip(levels(a), levels(b), strict=True))
    return alike and one.keys() == other.keys() and ome(a) == ome(b)


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return every path below a folder with its inode and time of change."""
    found = sorted([folder, *folder.rglob("*")])
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize("again", [{}, {"overwrite": True}, {"max_workers": 1}])
def test_the_same_call_again_touches_nothing(tmp_path, again):
    target = tmp_path / "a.ome.zarr"
    convert(target)
    write_labels(target, (VOXELS > 9).astype("uint8"), progress=False)
    before = state(target)
    convert(target, **again)
    convert(target, VOXELS.copy(), **again)
    assert state(target) == before
    assert leftovers(tmp_path) == []


OTHER = [
    {"n_levels": 2},
    {"downscale": 3},
    {"chunks": (1, 16, 16)},
    {"shard": True},
    {"codec": "zstd"},
    {"ngff_version": "0.4"},
    {"pixel_size": {"y": 0.1, "x": 0.1}},
    {"channel_names": ["DAPI"]},
    {"axes": "tyx", "pixel_size": {"y": 0.5, "x": 0.5}},
    {"voxels": VOXELS + 1},
    {"voxels": VOXELS.astype("int32")},
]


@pytest.mark.parametrize("other", OTHER, ids=str)
def test_another_conversion_needs_overwrite(tmp_path, other):
    target = tmp_path / "a.ome.zarr"
    convert(target)
    before = contents(tmp_path)
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        convert(target, **other)
    assert contents(tmp_path) == before
    convert(target, overwrite=True, **other)
    check_pyramid(target, other.get("voxels", VOXELS), other.get("downscale", 2))
    assert leftovers(tmp_path) == []
    fresh = tmp_path / "fresh" / "a.ome.zarr"
    convert(fresh, **other)
    assert same_store(target, fresh)  # nothing is left of what was there


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "a.ome.zarr"
    convert(target)
    before = contents(target)

    def broken(block):
        raise RuntimeError("no voxels today")

    failing = da.from_array(VOXELS).map_blocks(broken, dtype="uint16", meta=np.empty((0,) * 3))
    with pytest.raises(PatchworksError, match="no voxels today"):
        convert(target, failing.astype("uint16"), overwrite=True)
    assert contents(target) == before


def folder_of_notes(place):
    place.mkdir()
    (place / "notes.txt").write_text("of years")


def plain_array(place):
    zarr.create_array(str(place), shape=(4, 4), dtype="uint8")


def plain_group(place):
    zarr.open_group(str(place), mode="w").create_array("0", shape=(4, 4), dtype="uint8")


def group_with_odd_attributes(place):
    zarr.open_group(str(place), mode="w", attributes={"ome": "multiscales"})


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "make",
    [folder_of_notes, plain_array, plain_group, group_with_odd_attributes, Path.mkdir, Path.touch],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize("scene", [0, "all"])
def test_what_is_no_image_is_never_replaced(tmp_path, make, overwrite, scene):
    target = tmp_path / "a.ome.zarr"
    make(target)
    before = contents(tmp_path)
    with pytest.raises(TargetExistsError, match="never replaced"):
        convert(target, overwrite=overwrite, scene=scene)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("whole", [True, False], ids=["array", "dask"])
def test_an_image_is_not_replaced_by_its_own_array(tmp_path, whole):
    """A zarr array, or a Dask array over one, that lies in the target would be read while it is
    replaced."""
    target = tmp_path / "a.ome.zarr"
    convert(target)
    before = contents(tmp_path)
    source = zarr.open_group(str(target), mode="r")["0"]
    with pytest.raises(InputError, match="source"):
        convert(target, source if whole else da.from_zarr(source) + 1, overwrite=True)
    assert contents(tmp_path) == before


BAD = [
    ({"axes": "yx"}, "axes"),
    ({"axes": "zyz"}, "axes"),
    ({"axes": "qyx"}, "axes"),
    ({"axes": "tcz"}, "axes"),
    ({"axes": 3}, "axes"),
    ({"pixel_size": {"c": 1.0}}, "pixel_size"),
    ({"pixel_size": {"y": 0}}, "pixel_size"),
    ({"pixel_size": {"y": -1}}, "pixel_size"),
    ({"pixel_size": {"y": float("nan")}}, "pixel_size"),
    ({"pixel_size": {"y": "1"}}, "pixel_size"),
    ({"pixel_size": {"y": True}}, "pixel_size"),
    ({"pixel_size": 0.5}, "pixel_size"),
    ({"pixel_size": [1, 2, 3]}, "pixel_size"),
    ({"n_levels": 0}, "n_levels"),
    ({"n_levels": 1.5}, "n_levels"),
    ({"n_levels": "3"}, "n_levels"),
    ({"downscale": 1}, "downscale"),
    ({"downscale": 2.5}, "downscale"),
    ({"chunks": (1, 2)}, "chunks"),
    ({"chunks": (1, 2, 0)}, "chunks"),
    ({"chunks": "123"}, "chunks"),
    ({"chunks": 64}, "chunks"),
    ({"channel_names": ["a", "b"]}, "channel_names"),
    ({"channel_names": [1]}, "channel_names"),
    ({"ngff_version": "0.3"}, "ngff_version"),
    ({"ngff_version": 0.5}, "ngff_version"),
    ({"ngff_version": "0.4", "shard": True}, "shard"),
    ({"codec": "lzma"}, "codec"),
    ({"scene": 1}, "scene"),
    ({"scene": -1}, "scene"),
    ({"scene": "other"}, "scene"),
    ({"scene": True}, "scene"),
    ({"scene": 0.0}, "scene"),
    ({"max_workers": 0}, "max_workers"),
    ({"voxels": VOXELS.astype("complex64")}, "complex64"),
    ({"voxels": VOXELS.astype("datetime64[s]")}, "datetime64"),
    ({"voxels": VOXELS.astype("longdouble")}, str(np.dtype("longdouble"))),
    ({"voxels": VOXELS.astype("object")}, "object"),
    ({"voxels": VOXELS[:0]}, "voxel"),
    ({"voxels": VOXELS[0, 0]}, "axes"),
    ({"voxels": VOXELS[None]}, "axes"),
    ({"voxels": da.from_array(VOXELS)[da.from_array(VOXELS[:, 0, 0]) > 1]}, "unknown"),
    ({"voxels": VOXELS.tolist()}, "list"),
    ({"voxels": None}, "None"),
    ({"voxels": dask.delayed(VOXELS)}, "Delayed"),
]


@pytest.mark.parametrize(("bad", "named"), BAD, ids=[f"{i}-{bad[1]}" for i, bad in enumerate(BAD)])
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, bad, named):
    with pytest.raises(InputError, match=named):
        convert(tmp_path / "new" / "a.ome.zarr", **bad)
    assert list(tmp_path.iterdir()) == []


def test_scene_all_of_an_array_that_must_be_told_its_axes(tmp_path):
    voxels = random_voxels((2, 3, 20, 20), "uint8", 1)
    target = tmp_path / "all.ome.zarr"
    to_ome_zarr(voxels, target, axes="czyx", scene="all", progress=False)
    check_pyramid(target / "0", voxels, 2)


@pytest.mark.parametrize("held", ["czyx", "CZYX", "yxzc"])
def test_channels_are_named(tmp_path, held):
    shape = tuple([{"c": 2, "z": 3, "y": 20, "x": 30}[axis] for axis in held.lower()])
    voxels = random_voxels(shape, "uint16", 1)
    target = tmp_path / "a.ome.zarr"
    to_ome_zarr(voxels, target, axes=held, channel_names=["DAPI", "GFP"], progress=False)
    channels = ome(target)["omero"]["channels"]
    assert [channel["label"] for channel in channels] == ["DAPI", "GFP"]
    first = canonical(voxels, held.lower())
    windows = [(c["window"]["start"], c["window"]["end"]) for c in channels]
    ends = [np.percentile(one, (0.1, 99.9), method="nearest") for one in first]
    assert windows == [(float(low), float(high)) for low, high in ends]
    assert {c["window"]["min"] for c in channels} == {0.0}
    assert {c["window"]["max"] for c in channels} == {65535.0}
    check_beyond_validators(target)


def test_levels_end_where_a_screen_shows_all(tmp_path):
    lazy = da.zeros((1, 2100, 1030), chunks=(1, 1024, 1024), dtype="uint8")
    to_ome_zarr(lazy, tmp_path / "a.ome.zarr", progress=False)
    shapes = [array.shape for array in arrays(tmp_path / "a.ome.zarr")]
    assert shapes == [(1, 2100, 1030), (1, 1050, 515), (1, 525, 258)]
    empty = [path for path in (tmp_path / "a.ome.zarr").rglob("c/*") if path.is_file()]
    assert empty == []  # what is empty has no file


def test_an_image_over_a_changed_store_is_another_image(tmp_path):
    """Dask names an array by where its store lies, not by what is in it."""
    array = zarr.create_array(str(tmp_path / "raw.zarr"), data=VOXELS, chunks=(1, 20, 20))
    for number, lazy in enumerate([da.from_zarr(array), da.from_zarr(array) * 2]):
        convert(tmp_path / f"{number}.ome.zarr", lazy)
    array[0] = 7
    for number, lazy in enumerate([da.from_zarr(array), da.from_zarr(array) * 2]):
        with pytest.raises(TargetExistsError):
            convert(tmp_path / f"{number}.ome.zarr", lazy)


def test_many_threads_write_what_one_does(tmp_path):
    voxels = random_voxels((7, 90, 110), "uint16", 9)
    for shard, downscale in itertools.product([False, True], [2, 3]):
        made = []
        for workers in (1, 8):
            with small_regions(3000):
                target = tmp_path / f"{shard}{downscale}{workers}" / "a.ome.zarr"
                to_ome_zarr(
                    voxels, target, chunks=(2, 16, 24), n_levels=4, downscale=downscale,
                    shard=shard, max_workers=workers, progress=False,
                )  # fmt: skip
            made.append(target)
        assert same_store(*made)


def test_a_link_that_leads_nowhere_yet_is_followed(tmp_path):
    image = np.arange(400, dtype="uint16").reshape(20, 20)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "scratch" / "image.zarr")
    for voxels in (image, image + 1):
        to_ome_zarr(voxels, tmp_path / "link.zarr", progress=False, overwrite=True)
    assert (tmp_path / "link.zarr").is_symlink()
    assert [p.name for p in (tmp_path / "scratch").iterdir() if p.suffix == ".zarr"] == [
        "image.zarr"
    ]
    assert np.array_equal(zarr.open_array(tmp_path / "link.zarr/0", mode="r")[...], image + 1)
