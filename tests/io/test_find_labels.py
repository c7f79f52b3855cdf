"""Which label images belong to an image: those that it lists, and those beside it."""

import numpy as np
import pytest
import zarr

from patchworks import tile_process
from patchworks.errors import InputError
from patchworks.io.find_labels import find_labels, labels_named, only_labels
from patchworks.io.location import Location
from patchworks.plugins.ome_zarr import to_ome_zarr, write_labels
from tests.rights import closed, open_folder
from tests.stores import blobs, components

IMAGE = blobs((40, 50))
TILES = {"tile_shape": (40, 25), "overlap": 4, "progress": False}


def an_image(path, image=IMAGE, **options):
    return to_ome_zarr(image, path, progress=False, **options)


def names(path):
    return [labels.name for labels in find_labels(Location.parse(path))]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_of_its_store_all_that_are_listed(tmp_path, version):
    image = an_image(tmp_path / "a.ome.zarr", ngff_version=version)
    assert names(image) == []
    for name in ("nuclei", "cells"):
        tile_process(str(image), components, output_component=name, **TILES)
    zarr.open_group(image / "labels", mode="r+").create_group("not listed")
    assert names(image) == ["nuclei", "cells"]


def test_labels_without_a_list_are_found_too(tmp_path):
    image = an_image(tmp_path / "a.zarr")
    write_labels(image, (IMAGE > 0).astype("uint8"), name="cells", progress=False)
    zarr.open_group(image / "labels", mode="r+").attrs.put({})
    assert names(image) == ["cells"]


class TestBeside:
    def test_what_has_its_shape_and_nobody_elses_name(self, tmp_path):
        image = an_image(tmp_path / "scan.ome.zarr", IMAGE[None], axes="cyx")
        for place in ("scan_cells.zarr", "labels.zarr"):
            tile_process(str(image), components, write_to=tmp_path / place, **TILES)
        assert names(image) == ["labels", "scan_cells"]
        other = an_image(tmp_path / "scan_2.zarr")
        tile_process(str(other), components, write_to=tmp_path / "scan_2_cells.zarr", **TILES)
        assert names(image) == ["scan_cells"]  # whose labels.zarr is, nothing says
        assert names(other) == ["scan_2_cells"]

    def test_what_has_another_shape_is_not_its_own(self, tmp_path):
        image = an_image(tmp_path / "scan.zarr")
        tile_process(IMAGE[:, 1:], components, write_to=tmp_path / "scan_part.zarr", **TILES)
        assert names(image) == []


class TestClosed:
    """What one may not look into hides none of what one may."""

    @pytest.fixture(params=["0.4", "0.5"])
    def image(self, request):
        with open_folder() as place:
            image = an_image(place / "scan.zarr", ngff_version=request.param)
            tile_process(str(image), components, output_component="inside", **TILES)
            tile_process(str(image), components, write_to=place / "scan_beside.zarr", **TILES)
            yield image

    def test_a_folder_beside_the_image(self, image):
        private = image.parent / "private"
        private.mkdir()
        with closed(private):
            assert names(image) == ["inside", "scan_beside"]

    def test_the_folder_around_the_image(self, image):
        with closed(image.parent, 0o111):
            assert names(image) == ["inside"]

    def test_the_metadata_of_a_label_image(self, image):
        other = an_image(image.parent / "scan_other.zarr", ngff_version="0.4")
        with closed(other / ".zattrs"):
            assert names(image) == ["inside", "scan_beside"]
        [metadata] = [*image.glob("labels/inside/.zattrs"), *image.glob("labels/inside/zarr.json")]
        with closed(metadata):
            assert names(image) == ["scan_beside"]

    def test_one_of_the_labels_that_nothing_lists(self, image):
        tile_process(str(image), components, output_component="closed", **TILES)
        zarr.open_group(image / "labels", mode="r+").attrs.put({})
        with closed(image / "labels" / "closed"):
            assert names(image) == ["inside", "scan_beside"]

    def test_the_folder_of_labels(self, image):
        with closed(image / "labels"):
            assert names(image) == ["scan_beside"]

    @pytest.mark.parametrize("part", [".", ".zattrs"])
    def test_labels_may_be_those_of_a_closed_image(self, image, part):
        (image.parent / "scan_beside.zarr").rename(image.parent / "labels.zarr")
        assert names(image) == ["inside", "labels"]
        other = an_image(image.parent / "other.zarr", ngff_version="0.4")
        with closed(other / part):
            assert names(image) == ["inside"]


class TestNaming:
    def test_the_only_one_needs_no_name(self, tmp_path):
        image = an_image(tmp_path / "a.zarr")
        place = Location.parse(image)
        with pytest.raises(InputError, match="no label image was found in it or beside it"):
            only_labels(place)
        tile_process(str(image), components, **TILES)
        assert only_labels(place) == place / "labels" / "labels"
        tile_process(str(image), components, output_component="cells", **TILES)
        with pytest.raises(InputError, match=r"2 label images is meant.*'labels', 'cells'"):
            only_labels(place)

    def test_by_name_and_by_path(self, tmp_path):
        image = an_image(tmp_path / "a.zarr")
        tile_process(str(image), components, output_component="cells", **TILES)
        tile_process(np.ones((4, 4)), components, write_to=tmp_path / "far.zarr", progress=False)
        place = Location.parse(image)
        assert labels_named(place, "cells") == place / "labels" / "cells"
        far = str(tmp_path / "far.zarr")
        assert labels_named(place, far).url == far
        with pytest.raises(InputError, match=r"labels='nuclei'.*it has \['cells'\]"):
            labels_named(place, "nuclei")
