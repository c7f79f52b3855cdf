"""The flow and the library are one: the same stores, byte by byte."""

from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr
from scipy import ndimage

from flows import segment_image
from patchworks import tile_process
from patchworks.segmenters import threshold

pytestmark = pytest.mark.usefixtures("server")


def files_of(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def an_image(shape: tuple[int, ...] = (20, 90, 70)) -> np.ndarray:
    noise = np.random.default_rng(5).normal(0, 1, shape)
    smooth = ndimage.gaussian_filter(noise, 2.5)
    return (1000 + 8000 * smooth).clip(0).astype("uint16")


def as_store(folder: Path, image: np.ndarray, zarr_format: int) -> Path:
    path = folder / f"image{zarr_format}.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.create_array("0", shape=image.shape, chunks=(10, 32, 32), dtype=image.dtype)[:] = image
    multiscale = {
        "version": "0.4",
        "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [{"type": "scale", "scale": [2.0, 0.5, 0.5]}],
            }
        ],
    }
    if zarr_format == 2:
        group.attrs.put({"multiscales": [multiscale]})
    else:
        del multiscale["version"]
        group.attrs.put({"ome": {"version": "0.5", "multiscales": [multiscale]}})
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store(tmp_path, zarr_format):
    store = as_store(tmp_path, an_image(), zarr_format)
    run = {"tile_shape": (10, 32, 32), "overlap": (4, 8, 8)}
    tile_process(store, threshold(1100), write_to=tmp_path / "a.zarr", progress=False, **run)
    report = segment_image(
        store, segmenter={"name": "threshold", "value": 1100}, write_to=tmp_path / "b.zarr", **run
    )
    ours, theirs = files_of(tmp_path / "a.zarr"), files_of(tmp_path / "b.zarr")
    assert ours.keys() == theirs.keys()
    assert ours == theirs
    assert report.n_segmented == report.n_tiles == 18
    assert report.n_objects == int(da.from_zarr(tmp_path / "b.zarr", component="0").max())


def test_a_numpy_array_with_otsu_and_empty_tiles(tmp_path):
    image = an_image()
    image[:, 40:] = 0
    run = {"tile_shape": (10, 32, 32), "overlap": 4, "skip_empty": True}
    tile_process(image, threshold(), write_to=tmp_path / "a.zarr", progress=False, **run)
    report = segment_image(image, segmenter="threshold", write_to=tmp_path / "b.zarr", **run)
    assert files_of(tmp_path / "a.zarr") == files_of(tmp_path / "b.zarr")
    assert report.n_empty > 0


def test_a_dask_array_and_a_function_of_ones_own(tmp_path):
    image = da.from_array(an_image((64, 70)), chunks=(20, 30))

    def bright(tile: np.ndarray) -> np.ndarray:
        return ndimage.label(tile > 1200)[0]

    tile_process(image, bright, write_to=tmp_path / "a.zarr", progress=False)
    segment_image(image, segmenter=bright, write_to=tmp_path / "b.zarr")
    assert files_of(tmp_path / "a.zarr") == files_of(tmp_path / "b.zarr")
