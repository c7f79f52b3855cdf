from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.io.frames import MAGIC, read_facts
from patchworks.io.record import TileRecord, read_counts, smallest_unsigned
from tests.strategies import label_images, shapes

laws = settings(deadline=None, max_examples=60)

DTYPES = ["uint8", "uint16", "uint32", "uint64"]
KEYS = [f"{axis}{side}" for axis in range(5) for side in "lu"]


@st.composite
def records(draw) -> TileRecord:
    planes = {
        key: draw(label_images(draw(shapes()), dtype=draw(st.sampled_from(DTYPES))))
        for key in draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=4))
    }
    n_labels = draw(st.integers(0, 2**33))
    return TileRecord(
        draw(st.integers(0, 10**7)), n_labels, n_labels + draw(st.integers(0, 2**33)), planes
    )


def assert_same(found: TileRecord, record: TileRecord) -> None:
    assert (found.tile, found.n_labels, found.n_nodes) == (
        record.tile,
        record.n_labels,
        record.n_nodes,
    )
    assert list(found.planes) == list(record.planes)
    for key, plane in record.planes.items():
        assert found.planes[key].dtype == plane.dtype
        np.testing.assert_array_equal(found.planes[key], plane)


@laws
@given(records())
def test_a_record_survives_its_file(record):
    assert_same(TileRecord.from_bytes(record.to_bytes()), record)


@laws
@given(records())
def test_the_same_record_has_the_same_bytes(record):
    assert record.to_bytes() == TileRecord.from_bytes(record.to_bytes()).to_bytes()


def test_planes_that_are_views_are_written_as_they_look():
    array = np.arange(24, dtype="uint16").reshape(4, 6)
    planes = {"0u": array.T, "0l": array[::2, ::-1], "1u": np.asfortranarray(array)}
    record = TileRecord(3, 24, 24, planes)
    assert_same(TileRecord.from_bytes(record.to_bytes()), record)


@laws
@given(records())
def test_the_header_alone_holds_the_counts(record):
    assert read_counts(record.to_bytes()[:4096]) == (record.n_labels, record.n_nodes)


def test_the_header_of_a_tile_with_all_sides_fits_what_is_read_for_the_counts():
    plane = np.ones((10**4, 1, 1, 1, 2), "uint32")
    record = TileRecord(10**8, 2**40, 2**41, dict.fromkeys(KEYS, plane))
    _, end = read_facts(record.to_bytes())
    assert end < 4096


A_RECORD = TileRecord(
    7, 300, 302, {"0u": np.arange(36, dtype="uint16").reshape(2, 18), "1l": np.ones((9, 2), "u1")}
).to_bytes()


def test_a_record_that_ends_early_raises_value_error():
    for length in range(len(A_RECORD)):
        with pytest.raises(ValueError):
            TileRecord.from_bytes(A_RECORD[:length])


@pytest.mark.parametrize("missing", ["tile", "n_labels", "n_nodes", "arrays"])
def test_a_header_that_lacks_an_entry_raises_value_error(missing):
    damaged = A_RECORD.replace(f'"{missing}"'.encode(), f'"{missing[::-1]}"'.encode())
    with pytest.raises(ValueError):
        TileRecord.from_bytes(damaged)


@pytest.mark.parametrize("dtype", [b"<u9", b"<t2", b"|O2"])
def test_a_plane_of_an_unknown_dtype_raises_value_error(dtype):
    assert A_RECORD.count(b"<u2") == 1
    with pytest.raises(ValueError):
        TileRecord.from_bytes(A_RECORD.replace(b"<u2", dtype))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        MAGIC,
        b"XXXX\0\0\0\0",
        b"\x93NUMPY" + bytes(100),
        MAGIC + b"\xff\xff\xff\xff{}",
        MAGIC + b"\4\0\0\0null",
    ],
)
def test_a_file_that_is_no_record_raises_value_error(content):
    with pytest.raises(ValueError):
        TileRecord.from_bytes(content)


@given(st.integers(0, 2**64 - 1))
def test_smallest_unsigned_holds_the_number_and_no_smaller_one_does(largest):
    dtype = smallest_unsigned(largest)
    assert dtype.kind == "u"
    assert largest <= np.iinfo(dtype).max
    assert dtype.itemsize == 1 or largest >= 2 ** (4 * dtype.itemsize)
