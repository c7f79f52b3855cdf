"""A map that is kept is the map of that very image, and nobody else notices it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from patchworks import estimate_empty_tiles
from patchworks.emptiness import Emptiness
from patchworks.io.image_source import ImageSource
from patchworks.io.kept_map import NO_OBJECTS, paths_of
from patchworks.io.location import Location
from patchworks.plan import describe_image
from tests.stores import blobs, contents, ome_zarr

IMAGE = blobs((20, 150, 130))
TILES = (10, 40, 40)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


@pytest.fixture(autouse=True)
def small_boxes(monkeypatch):
    """Boxes of which several make a tile, as in an image that is not tiny."""
    monkeypatch.setattr("patchworks.geometry.box_grid.BOX", (10, 20, 20))
    monkeypatch.setattr("patchworks.geometry.box_grid.BOX_VOXELS", 1)
    monkeypatch.setattr("patchworks.geometry.box_grid.UNIT_BYTES", 1)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return ome_zarr(tmp_path / "image.zarr", [IMAGE], chunks=(10, 80, 80))


@pytest.fixture
def n_read(monkeypatch) -> list[int]:
    """Voxels of each box of an image that is read."""
    read, found = ImageSource.read, []

    def counted(self, box, out=None):
        found.append(box.size)
        return read(self, box, out)

    monkeypatch.setattr(ImageSource, "read", counted)
    return found


def occupied(image, **keywords) -> np.ndarray:
    return estimate_empty_tiles(image, TILES, threshold=0, **keywords)["occupied"]


def truth(image: np.ndarray) -> np.ndarray:
    return occupied(np.asarray(image))


def test_the_second_time_nothing_is_read(store, n_read):
    first = occupied(store)
    assert sum(n_read) == IMAGE.size, "each voxel once"
    n_read.clear()
    assert np.array_equal(occupied(store), first)
    assert not n_read


def test_the_threshold_that_was_found_is_kept_too(store, n_read):
    first = estimate_empty_tiles(store, TILES)
    n_read.clear()
    assert estimate_empty_tiles(store, TILES)["threshold"] == first["threshold"]
    assert not n_read


@pytest.mark.parametrize("way", ["a chunk", "the whole image", "a copy of another"])
def test_an_image_that_is_written_anew_never_meets_its_old_map(store, tmp_path, way):
    assert occupied(store).any()
    if way == "a chunk":
        zarr.open_array(f"{store}/0", mode="r+")[:10, :80, :80] = 255
    else:
        place = store if way == "the whole image" else tmp_path / "other.zarr"
        ome_zarr(place, [np.zeros_like(IMAGE)], chunks=(10, 80, 80))
        if way == "a copy of another":
            Path(store).rename(tmp_path / "gone.zarr")
            Path(place).rename(store)
    found = occupied(store)
    assert np.array_equal(found, truth(zarr.open_array(f"{store}/0")[...]))


def test_all_names_of_an_array_mean_one_map(store, tmp_path, n_read):
    expected = occupied(store)
    n_read.clear()
    (tmp_path / "link.zarr").symlink_to(store)
    ways = [f"{store}/0", tmp_path / "link.zarr", zarr.open_array(f"{store}/0"),
            zarr.open_group(store)["0"]]  # fmt: skip
    for way in ways:
        assert np.array_equal(occupied(way), expected)
    assert not n_read
    assert {p.name for p in tmp_path.iterdir()} == {"image.zarr", "image.zarr.maxima", "link.zarr"}


def test_a_map_lies_beside_the_outermost_store(tmp_path):
    for folder in ("plate.zarr", "plate.zarr/A"):
        zarr.open_group(tmp_path / folder, mode="w")
    ome_zarr(tmp_path / "plate.zarr" / "A" / "1", [IMAGE])
    before = contents(tmp_path / "plate.zarr")
    occupied(tmp_path / "plate.zarr" / "A" / "1")
    assert contents(tmp_path / "plate.zarr") == before
    assert [p.name for p in (tmp_path / "plate.zarr.maxima").iterdir()] == ["A-1-0-all.all.all.map"]


def test_channels_have_maps_of_their_own(tmp_path):
    store = ome_zarr(tmp_path / "i.zarr", [np.stack([IMAGE, np.zeros_like(IMAGE)])], axes="czyx")
    assert occupied(store, channel=0).any()
    assert not occupied(store, channel=1).any()
    assert len(list((tmp_path / "i.zarr.maxima").iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"no map", None])
def test_a_map_that_cannot_be_read_is_made_again(store, content):
    expected = occupied(store)
    (kept,) = Path(f"{store}.maxima").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-3] if content is None else content)
    assert np.array_equal(occupied(store), expected)
    assert len(kept.read_bytes()) == len(whole)


def test_where_nothing_can_be_written_beside_it_goes_to_the_cache(store, cache, n_read):
    Path(f"{store}.maxima").write_text("in the way of a folder")
    expected = occupied(store)
    assert [p.name for p in (cache / "patchworks" / "maxima").iterdir()]
    n_read.clear()
    assert np.array_equal(occupied(store), expected)
    assert not n_read


def test_where_nothing_can_be_written_at_all_it_is_not_kept(store, cache, monkeypatch):
    Path(f"{store}.maxima").write_text("in the way of a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", f"{store}.maxima")
    assert np.array_equal(occupied(store), truth(IMAGE))


def test_what_changes_while_it_is_read_is_not_kept(store, n_read, monkeypatch):
    found = Emptiness.of(describe_image(store))
    found.look_at(range(found.units.n_tiles))
    zarr.open_array(f"{store}/0", mode="r+")[:10, :80, :80] = 255
    assert not found.keep()
    assert not Path(f"{store}.maxima").exists()


def test_two_at_once_do_no_harm(store):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: occupied(store), range(8)))
    assert all(np.array_equal(f, truth(IMAGE)) for f in found)
    assert [p.suffix for p in Path(f"{store}.maxima").iterdir()] == [".map"]


def test_what_two_runs_know_adds_up(store):
    first, second = (Emptiness.of(describe_image(store)) for _ in range(2))
    half = first.units.n_tiles // 2
    assert half
    first.look_at(range(half))
    second.look_at(range(half, first.units.n_tiles))
    first.keep()
    second.keep()
    assert Emptiness.of(describe_image(store)).maxima.is_complete


def test_chunks_that_were_never_written_are_not_read(tmp_path, n_read):
    path = tmp_path / "image.zarr"
    array = zarr.create_array(
        path, shape=(10, 200, 200), chunks=(10, 50, 50), dtype="u2", fill_value=7
    )
    array[:, 50:100, 150:] = 9
    found = estimate_empty_tiles(path, (10, 50, 50), threshold=8)
    assert found["n_occupied"] == 1
    assert sum(n_read) == 10 * 50 * 50
    assert estimate_empty_tiles(path, (10, 50, 50), threshold=6)["n_occupied"] == 16


@pytest.mark.parametrize("identity", [None, f"{NO_OBJECTS}(None, None, None)"])
def test_without_a_way_to_tell_images_apart_no_map_is_kept(store, monkeypatch, identity):
    def unknown(self):
        if identity is None:
            raise NotImplementedError
        return identity

    monkeypatch.setattr(ImageSource, "identity", unknown)
    assert np.array_equal(occupied(store), truth(IMAGE))
    assert not Path(f"{store}.maxima").exists()


@pytest.mark.parametrize("url", ["s3://bucket/image.zarr/0", "memory://image.zarr"])
def test_the_map_of_a_url_lies_in_the_cache(cache, url):
    (path,) = paths_of(Location(url), (1, None, None))
    assert path.parent == cache / "patchworks" / "maxima"
    assert path.name.endswith("-1.all.all.map")
