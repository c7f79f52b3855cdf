import numpy as np
import pytest

from patchworks.errors import InputError
from patchworks.plugins.ome_zarr import to_ome_zarr, write_labels


def test_a_label_image_is_not_converted_as_an_image(tmp_path):
    image = to_ome_zarr(np.ones((40, 50), "uint8"), tmp_path / "i.ome.zarr", progress=False)
    labels = write_labels(image, np.arange(2000).reshape(40, 50), progress=False)
    with pytest.raises(InputError, match=r"labels: a label image.*write_labels"):
        to_ome_zarr(labels, tmp_path / "l.ome.zarr", progress=False)
    assert not (tmp_path / "l.ome.zarr").exists()


def test_labels_are_taken_from_another_store(tmp_path):
    image = to_ome_zarr(np.ones((40, 50), "uint8"), tmp_path / "i.ome.zarr", progress=False)
    labels = write_labels(image, np.arange(2000).reshape(40, 50), progress=False)
    other = to_ome_zarr(np.ones((40, 50), "uint8"), tmp_path / "o.ome.zarr", progress=False)
    assert write_labels(other, labels, progress=False).exists()
