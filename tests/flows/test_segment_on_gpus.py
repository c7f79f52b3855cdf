"""A whole run with two workers labelled as GPUs and two without: what ran where; nothing left."""

import os
import time
from contextlib import suppress
from pathlib import Path

import distributed
import numpy as np
import psutil
import pytest
from scipy import ndimage

from flows import segment_image
from flows.cluster import ClusterSpec
from flows.cluster_start import connected
from patchworks import tile_process
from tests.images import files_of, ome_zarr, smooth_noise

pytestmark = pytest.mark.usefixtures("server")

RUN = {"tile_shape": (8, 32, 32), "overlap": 4}
GPUS = ClusterSpec(gpus=["0", "1"], n_workers=2)


class Telling:
    """A threshold that says on which GPU it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        (self.folder / f"{device}-{os.getpid()}").touch()
        return ndimage.label(tile > 1100)[0]

    def __reduce__(self):
        return Telling, (self.folder,)


def marked_processes(mark: str) -> list[psutil.Process]:
    """Processes of this test, wherever they hang in the tree by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            # Python's own resource tracker stays for as long as the process that spawns does.
            is_tracker = "resource_tracker" in " ".join(process.cmdline())
            is_ours = process.environ().get("PATCHWORKS_MARK") == mark
            if is_ours and not is_tracker and process.pid != os.getpid():
                found.append(process)
    return found


def test_segmentation_runs_on_the_gpus_and_all_else_beside_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHWORKS_MARK", str(tmp_path))
    image = ome_zarr(tmp_path / "image.zarr", smooth_noise())
    places = tmp_path / "places"
    places.mkdir()
    # By its address, so that the scheduler can be asked afterwards where each task ran.
    with connected(GPUS, {}) as client, distributed.get_task_stream(client) as stream:
        names = {
            address: str(worker["name"])
            for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
        }
        report = segment_image(
            image,
            segmenter=Telling(places),
            write_to=tmp_path / "a.zarr",
            skip_empty=True,
            empty_threshold=0,
            cluster=client.scheduler.address,
            **RUN,
        )
        assert len(marked_processes(str(tmp_path))) >= 4
    ran = {(str(task["key"]).split("-")[0], names[task["worker"]][:3]) for task in stream.data}
    on_gpus = {task for task, worker in ran if worker == "gpu"}
    on_others = {task for task, worker in ran if worker == "cpu"}
    assert on_gpus == {"segment_tiles"}
    assert {"merge_regions", "stitch", "finish_pyramid", "estimate_empty_tiles"} <= on_others
    assert "segment_tiles" not in on_others
    devices = {place.name.split("-")[0] for place in places.iterdir()}
    assert devices == {"0", "1"}
    assert report.n_segmented == report.n_tiles
    tile_process(
        image,
        Telling(places),
        write_to=tmp_path / "b.zarr",
        skip_empty=True,
        empty_threshold=0,
        progress=False,
        **RUN,
    )
    assert files_of(tmp_path / "a.zarr") == files_of(tmp_path / "b.zarr")
    deadline = time.monotonic() + 20
    while (left := marked_processes(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


@pytest.mark.slow
def test_a_local_run_gives_each_gpu_a_process_of_its_own(tmp_path):
    places = tmp_path / "places"
    places.mkdir()
    report = segment_image(
        ome_zarr(tmp_path / "image.zarr", smooth_noise()),
        segmenter=Telling(places),
        cluster={"gpus": ["0", "1"], "n_workers": 2},
        **RUN,
    )
    assert report.n_segmented == report.n_tiles
    found = sorted(place.name.split("-")[0] for place in places.iterdir())
    assert found == ["0", "1"]
