"""Sequences of TIFF files: which files are meant, where they belong, what is read of them."""

from __future__ import annotations

import itertools
import pickle
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from patchworks.errors import InputError, PatchworksError, SourceNotFoundError
from patchworks.geometry.box import Box
from patchworks.readers.sequence import SequenceReader, is_sequence
from patchworks.readers.sequence_names import by_marks, natural_key

RNG = np.random.default_rng(0)


def whole(reader):
    return reader.read(Box.whole(reader.scene.shape))


def write(folder, images, **options):
    """Write {name: voxels}."""
    folder.mkdir(exist_ok=True)
    options.setdefault("photometric", "minisblack")
    for name, voxels in images.items():
        tifffile.imwrite(folder / name, voxels, **options)
    return folder


def planes(*shape):
    return RNG.integers(0, 60000, shape).astype(np.uint16)


def test_a_pattern_is_a_stack_in_natural_order(tmp_path):
    voxels = planes(12, 20, 30)
    write(tmp_path, {f"scan_{i}.tif": plane for i, plane in enumerate(voxels)})
    write(tmp_path, {"other.tif": planes(5, 5)})
    reader = SequenceReader(tmp_path / "scan_*.tif")
    assert reader.scene.axes == "zyx"
    assert reader.scene.block == (1, 1, 1)
    assert [f.name for f in reader.scene.files] == [f"scan_{i}.tif" for i in range(12)]
    np.testing.assert_array_equal(whole(reader), voxels)
    box = Box((2, 3, 4), (11, 5, 29))
    np.testing.assert_array_equal(reader.read(box), voxels[box.slices])


def test_a_folder_is_a_stack(tmp_path):
    voxels = planes(3, 20, 30)
    folder = write(tmp_path / "a", {f"{i}.TIF": p for i, p in enumerate(voxels)})
    (folder / ".hidden").write_text("x")
    assert is_sequence(folder)
    np.testing.assert_array_equal(whole(SequenceReader(folder)), voxels)


def test_files_of_stacks_are_times(tmp_path):
    voxels = planes(3, 4, 20, 30)
    images = {f"{i}.tif": stack for i, stack in enumerate(voxels)}
    folder = write(tmp_path / "a", images, compression="zlib", rowsperstrip=8)
    reader = SequenceReader(folder)
    assert reader.scene.axes == "tzyx"
    assert reader.scene.block == (1, 1, 8, 30)
    np.testing.assert_array_equal(whole(reader), voxels)
    channels = SequenceReader(folder, axes="c")
    assert channels.scene.axes == "czyx"
    np.testing.assert_array_equal(whole(channels), voxels)
    swapped = SequenceReader(folder, axes="ztyx")
    np.testing.assert_array_equal(whole(swapped), voxels.swapaxes(0, 1))
    assert swapped.identity() != reader.identity()


@pytest.mark.parametrize(
    "name",
    [
        "scan_t{t:03}_c{c:02}_z{z:04}.tif",
        "Scan-Z{z}-ch{c}-T{t}.tif",
        "well A1 time{t} channel{c} z{z}.ome.tif",
        "t{t}c{c}z{z}.tif",
        "x2_t={t}_c={c}_z={z}_raw.tif",
    ],
)
def test_marks_in_names(tmp_path, name):
    voxels = planes(2, 3, 11, 5, 6)
    places = list(itertools.product(range(2), range(3), range(11)))
    images = {name.format(t=t + 1, c=c, z=z * 10): voxels[t, c, z] for t, c, z in places}
    reader = SequenceReader(write(tmp_path / "a", images, metadata=None))
    assert reader.scene.axes == "tczyx"
    np.testing.assert_array_equal(whole(reader), voxels)
    box = Box((1, 1, 9, 2, 3), (2, 3, 11, 5, 6))
    np.testing.assert_array_equal(reader.read(box), voxels[box.slices])


def test_placeholders_name_other_numbers(tmp_path):
    voxels = planes(2, 12, 5, 6)
    places = itertools.product(range(2), range(12))
    write(tmp_path, {f"run7 {c} x {z}b.tif": voxels[c, z] for c, z in places})
    pattern = tmp_path / "run7 {c} x {z}b.tif"
    assert is_sequence(pattern)
    reader = SequenceReader(pattern)
    assert reader.scene.axes == "czyx"
    np.testing.assert_array_equal(whole(reader), voxels)


def test_marks_that_do_not_differ_do_not_count(tmp_path):
    voxels = planes(3, 5, 6)
    images = {f"c1_{i}.tif": plane for i, plane in enumerate(voxels)}
    reader = SequenceReader(write(tmp_path / "a", images))
    assert reader.scene.axes == "zyx"
    np.testing.assert_array_equal(whole(reader), voxels)


@pytest.mark.parametrize("gone", [(0, 1), (1, 3), (1, 1)])
def test_missing_files_are_named(tmp_path, gone):
    images = {
        f"s_t{t}_z{z}.tif": planes(5, 6) for t in range(2) for z in range(4) if (t, z) != gone
    }
    folder = write(tmp_path / "a", images)
    with pytest.raises(InputError, match=rf"1 of the files are missing: t{gone[0]}z{gone[1]};"):
        _ = SequenceReader(folder).scene


def test_a_gap_is_missing_too(tmp_path):
    folder = write(tmp_path / "a", {f"s_z{z}.tif": planes(5, 6) for z in (1, 2, 4)})
    with pytest.raises(InputError, match="z3"):
        _ = SequenceReader(folder).scene
    assert SequenceReader(folder, axes="z").scene.shape == (3, 5, 6)


DATES = (20240131235000, 20240201000000, 20240201001003)


@pytest.mark.parametrize(
    "numbers", [DATES, (0, 1, 10**40), (1, 2, 12)], ids=["dates", "beyond 64 bits", "few"]
)
def test_dates_make_a_grid_that_is_counted_and_not_gone_through(numbers):
    n_missing = numbers[2] - numbers[0] + 1 - 3
    files = [Path(f"s_t{n}_z{z}.tif") for n in numbers for z in (1, 2)][:-1]
    tracemalloc.start()
    with pytest.raises(InputError) as raised:
        by_marks(files, Path("s"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = str(raised.value)
    assert said.startswith(f"s: {2 * n_missing + 1} of the files are missing: t")
    named = said.partition("missing: ")[2].partition(";")[0]
    gaps = [n for n in range(numbers[0], numbers[0] + 9) if n not in numbers]
    assert named.startswith(", ".join([f"t{n}z{z}" for n in gaps[:4] for z in (1, 2)]))
    assert named.endswith(" and more")
    assert peak < 10**6


def test_all_of_a_few_gaps_are_named():
    with pytest.raises(InputError, match=r"8 of .*: z3, z4, z5, z6, z7, z8, z9, z10; add them"):
        by_marks([Path(f"s_z{n}.tif") for n in (1, 2, 11)], Path("s"))


def test_two_files_at_one_place_are_named(tmp_path):
    images = {name: planes(5, 6) for name in ("a_z1.tif", "b_z1.tif", "a_z2.tif", "b_z2.tif")}
    with pytest.raises(InputError, match=r"a_z1\.tif and b_z1\.tif"):
        _ = SequenceReader(write(tmp_path / "a", images)).scene


@pytest.mark.parametrize("pattern", ["", "s_*.tif", "s_z{z}.tif"])
def test_a_link_to_nothing_is_no_end_of_the_sequence(tmp_path, pattern):
    folder = write(tmp_path / "a", {f"s_z{z}.tif": planes(5, 6) for z in range(2)})
    (folder / "s_z2.tif").symlink_to("elsewhere.tif")
    with pytest.raises(SourceNotFoundError, match=r"s_z2\.tif: a link to elsewhere\.tif"):
        _ = SequenceReader(folder / pattern).scene


@pytest.mark.parametrize("axes", ["x", "", "q", "tz"])
def test_axes_that_do_not_fit_are_refused(tmp_path, axes):
    folder = write(tmp_path / "a", {f"{i}.tif": planes(5, 6) for i in range(3)})
    with pytest.raises(InputError, match="axes="):
        _ = SequenceReader(folder, axes=axes).scene


def test_an_axis_cannot_be_both(tmp_path):
    folder = write(tmp_path / "a", {f"s_z{i}.tif": planes(4, 5, 6) for i in range(3)})
    with pytest.raises(InputError, match=r"'z'.*zyx"):
        _ = SequenceReader(folder).scene


@pytest.mark.parametrize("odd", [planes(5, 7), planes(5, 6).astype(np.uint8), planes(2, 5, 6)])
def test_a_file_unlike_the_first_is_named(tmp_path, odd):
    folder = write(tmp_path / "a", {"0.tif": planes(5, 6), "1.tif": planes(5, 6), "2.tif": odd})
    reader = SequenceReader(folder)
    reader.read(Box((0, 0, 0), (2, 5, 6)))
    with pytest.raises(PatchworksError, match=r"2\.tif.*0\.tif"):
        whole(reader)


def test_a_file_cut_off_is_named(tmp_path):
    folder = write(tmp_path / "a", {f"{i}.tif": planes(50, 60) for i in range(3)})
    path = folder / "1.tif"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(PatchworksError, match=r"1\.tif"):
        whole(SequenceReader(folder))


def test_one_file_is_what_it_is(tmp_path):
    voxels = planes(4, 5, 6)
    write(tmp_path, {"s_1.tif": voxels})
    for axes in (None, "z", "t"):
        reader = SequenceReader(tmp_path / "s_*.tif", axes=axes)
        assert reader.scene.axes == "zyx"
        np.testing.assert_array_equal(whole(reader), voxels)


def test_the_first_file_is_asked_for_the_calibration(tmp_path):
    metadata = {"unit": "um", "axes": "YX"}
    images = {f"{i}.tif": planes(5, 6) for i in range(3)}
    folder = write(tmp_path / "a", images, imagej=True, resolution=(4, 2), metadata=metadata)
    spacing = SequenceReader(folder).scene.spacing
    assert spacing == {"y": (0.5, "micrometer"), "x": (0.25, "micrometer")}


def test_nothing_there(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no TIFF file"):
        SequenceReader.scene_names(tmp_path / "x_*.tif")


def test_what_is_a_sequence(tmp_path):
    folder = write(tmp_path / "a", {"1.tif": planes(5, 6), "[2].tif": planes(5, 6)})
    assert is_sequence(folder)
    assert is_sequence(folder / "*.tif")
    assert is_sequence(folder / "{z}.tif")
    assert not is_sequence(folder / "1.tif")
    assert not is_sequence(folder / "[2].tif")
    assert not is_sequence(folder / "3.tif")
    (folder / "notes.txt").write_text("x")
    assert not is_sequence(folder)
    assert not is_sequence(tmp_path)


def test_pickling_and_threads(tmp_path):
    voxels = planes(20, 30, 40)
    images = {f"{i}.tif": plane for i, plane in enumerate(voxels)}
    folder = write(tmp_path / "a", images, compression="zlib")
    reader = pickle.loads(pickle.dumps(SequenceReader(folder, axes="t")))
    assert reader.scene.axes == "tyx"
    boxes = [Box((a, y, 3), (a + 6, y + 9, 40)) for a in range(14) for y in (0, 9, 21)]
    with ThreadPoolExecutor(8) as threads:
        for box, found in zip(boxes, threads.map(reader.read, boxes), strict=True):
            np.testing.assert_array_equal(found, voxels[box.slices])
    reader.close()
    np.testing.assert_array_equal(whole(reader), voxels)


def test_few_files_are_open_at_once(tmp_path):
    fds = Path("/proc/self/fd")
    if not fds.is_dir():
        pytest.skip("no list of open files on this system")
    images = {f"{i}.tif": planes(5, 6) for i in range(200)}
    reader = SequenceReader(write(tmp_path / "a", images, compression="zlib"))
    before = len(list(fds.iterdir()))
    whole(reader)
    assert len(list(fds.iterdir())) <= before + 32
    reader.close()
    assert len(list(fds.iterdir())) <= before


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1), st.randoms(use_true_random=False))
def test_natural_order_is_that_of_the_numbers(numbers, shuffler: random.Random):
    paths = [Path(f"scan_{n}_x.tif") for n in sorted(numbers)]
    mixed = list(paths)
    shuffler.shuffle(mixed)
    assert sorted(mixed, key=natural_key) == paths


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 5)),
    st.integers(0, 3),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_the_grid_does_not_depend_on_the_order_of_files(shape, first, step, shuffler):
    places = list(np.ndindex(*shape))
    files = [
        Path("_".join(f"{a}{first + i * step}" for a, i in zip("tcz", place, strict=True)) + ".tif")
        for place in places
    ]
    mixed = list(files)
    shuffler.shuffle(mixed)
    grid = by_marks(mixed, Path("*"))
    assert list(grid.files) == files
    assert grid.shape == tuple(n for n in shape if n > 1)
