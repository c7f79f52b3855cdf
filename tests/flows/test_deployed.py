"""The flows as a deployment runs them: of plain JSON, in a process that knows no more than that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import cloudpickle
import distributed
import numpy as np
import psutil
import pytest
import tifffile
import zarr
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.flows import load_flow_from_entrypoint

from flows.cluster import ClusterSpec
from patchworks import load_ome_zarr
from tests.images import above_1100, ome_zarr, smooth_noise

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
IMAGE = smooth_noise((16, 60, 50))
N_OBJECTS = int(above_1100(IMAGE).max())

TILES = {"tile_shape": [8, 32, 32], "overlap": 4}
SEGMENTER = {"name": "threshold", "value": 1100}

FLOWS = ("build_pyramid", "convert_image", "merge_labels", "process_image", "segment_image")


@pytest.fixture(scope="module")
def cluster(server) -> Iterator[dict[str, str]]:
    """Workers that all flows of this module share, as a form names them."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as running:
        yield {"kind": "address", "address": running.scheduler_address}


def from_file(name: str) -> Flow[Any, Any]:
    """Return a flow as a worker's process gets it: from its file, whatever module that is."""
    flow: Flow[Any, Any] = load_flow_from_entrypoint(f"{ROOT}/flows/{name}.py:{name}_flow")
    return flow


def sent(name: str) -> Flow[Any, Any]:
    """Return a flow as the process of a served run gets it: with no more than it needs."""
    flow = load_flow_from_entrypoint(f"flows.{name}:{name}_flow")
    received: Flow[Any, Any] = cloudpickle.loads(cloudpickle.dumps(flow))
    return received


def deployed(name: str, **parameters: Any) -> Any:
    """Run a flow as the process of a run does: loaded from a file, of what JSON carries."""
    return run_flow(from_file(name), parameters=json.loads(json.dumps(parameters)))


class TestOfPlainJson:
    def test_segment_image(self, tmp_path, cluster):
        store = ome_zarr(tmp_path / "image.zarr", IMAGE)
        report = deployed(
            "segment_image", image=str(store), segmenter=SEGMENTER, tiles=TILES,
            labels={"output_component": "nuclei", "pyramid_levels": 2}, cluster=cluster,
            run={"retries": 1, "tile_timeout_s": 60}, selection={"channel": None},
        )  # fmt: skip
        assert (report.n_objects, report.n_tiles) == (N_OBJECTS, 8)
        assert load_ome_zarr(store, label="nuclei").max().compute() == N_OBJECTS
        again = deployed(
            "segment_image", image=str(store), segmenter=SEGMENTER, tiles=TILES,
            labels={"output_component": "nuclei", "pyramid_levels": 2}, selection={"channel": None},
        )  # fmt: skip
        assert (again.n_objects, again.n_reused) == (N_OBJECTS, 8), "done before, without workers"

    def test_a_function_of_ones_own(self, tmp_path, cluster):
        store = ome_zarr(tmp_path / "image.zarr", IMAGE)
        report = deployed(
            "segment_image", image=str(store), segmenter={"import": "tests.images:above_1100"},
            tiles=TILES, cluster=cluster,
        )  # fmt: skip
        assert report.n_objects == N_OBJECTS

    @pytest.mark.slow
    def test_convert_image(self, tmp_path, cluster):
        tifffile.imwrite(tmp_path / "scan.tif", IMAGE)
        report = deployed(
            "convert_image", source=str(tmp_path / "scan.tif"), target=str(tmp_path / "a.zarr"),
            conversion={"axes": "zyx", "pixel_size": {"z": 2, "y": 0.5, "x": 0.5}, "n_levels": 2},
            cluster=cluster,
        )  # fmt: skip
        assert report.n_regions > 0
        np.testing.assert_array_equal(load_ome_zarr(tmp_path / "a.zarr"), IMAGE)

    def test_process_image(self, tmp_path, cluster):
        tifffile.imwrite(tmp_path / "scan.tif", IMAGE)
        report = deployed(
            "process_image", source=str(tmp_path / "scan.tif"), target=str(tmp_path / "a.zarr"),
            segmenter=SEGMENTER, tiles=TILES, conversion={"axes": "zyx"}, cluster=cluster,
        )  # fmt: skip
        assert report.n_objects == N_OBJECTS
        assert Path(report.labels) == tmp_path / "a.zarr" / "labels" / "labels"

    def test_merge_labels(self, tmp_path, cluster):
        group = zarr.open_group(tmp_path / "tiles.zarr", mode="w")
        labels = group.create_array("labels", shape=IMAGE.shape, chunks=(8, 30, 50), dtype="i4")
        for z in (slice(0, 8), slice(8, 16)):
            for y in (slice(0, 30), slice(30, 60)):
                labels[z, y] = above_1100(IMAGE[z, y])
        report = deployed(
            "merge_labels", labeled=str(tmp_path / "tiles.zarr"),
            labels={"write_to": str(tmp_path / "merged.zarr")}, cluster=cluster,
        )  # fmt: skip
        assert report.n_objects == N_OBJECTS

    def test_build_pyramid(self, tmp_path, cluster):
        group = zarr.open_group(tmp_path / "plain.zarr", mode="w")
        group.create_array("0", data=IMAGE, chunks=(8, 32, 32))
        report = deployed(
            "build_pyramid", store=str(tmp_path / "plain.zarr"), cluster=cluster,
            pyramid={"n_levels": 3, "axes": "zyx", "pixel_size": {"y": 0.5, "x": 0.5}},
        )  # fmt: skip
        assert report.n_levels == 3
        assert load_ome_zarr(tmp_path / "plain.zarr", level=2).shape == (16, 15, 13)


GOOD: dict[str, dict[str, Any]] = {
    "build_pyramid": {"store": "a.zarr"},
    "convert_image": {"source": "a.tif", "target": "a.zarr"},
    "merge_labels": {"labeled": "a.zarr", "labels": {"write_to": "b.zarr"}},
    "process_image": {"source": "a.tif", "target": "a.zarr"},
    "segment_image": {"image": "a.zarr"},
}
BAD: dict[str, list[dict[str, Any]]] = {
    "build_pyramid": [{"pyramid": {"n_levels": 0}}, {"pyramid": {"levels": 3}}],
    "convert_image": [{"conversion": {"codec": "gzip"}}, {"conversion": {"chunks": "auto"}}],
    "merge_labels": [{"merge": {"connectivity": 6}}, {"merge": {"overlaps": 1}}],
    "process_image": [{"target": None}, {"conversion": {"downscale": 1}}],
    "segment_image": [
        {"image": 3},
        {"tiles": {"stitch": "never"}},
        {"tiles": {"tile_shap": [8, 8]}},
        {"labels": {"pyramid_levels": 0}},
        {"run": {"retries": -1}},
        {"run": {"tile_timeout_s": 0}},
        {"selection": {"channel": -1}},
        {"segmenter": {"name": "threshold", "valu": 3}},
        {"segmenter": {"name": "blobs"}},
        {"segmenter": {"name": "onnx", "model": "a.onnx", "postprocess": "magic"}},
        {"segmenter": {"import": "no colon"}},
        {"cluster": {"kind": "cloud"}},
        {"cluster": {"n_worker": 2}},
    ],
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("way", [from_file, sent])
def test_a_flow_knows_its_parameters_however_it_reaches_its_process(name, way):
    given = way(name).validate_parameters(GOOD[name])
    assert isinstance(given["cluster"], ClusterSpec)


def test_what_a_form_cannot_be_is_refused_by_the_server(server):
    with get_client(sync_client=True) as client:
        for name in FLOWS:
            deployment = (
                from_file(name).to_deployment(name="form", enforce_parameter_schema=True).apply()
            )
            for bad in BAD[name]:
                with pytest.raises(PrefectHTTPStatusError) as refused:
                    create_run(client, deployment, GOOD[name] | bad)
                assert refused.value.response.status_code == 409, bad
            run = create_run(client, deployment, GOOD[name])
            client.delete_flow_run(run.id)


def create_run(client: Any, deployment: UUID, parameters: dict[str, Any]) -> FlowRun:
    run: FlowRun = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    return run


SERVE = """
import sys
from flows.segment_image import segment_image_flow

if __name__ == "__main__":  # the processes of runs and workers import this module
    segment_image_flow.serve(name=sys.argv[1], enforce_parameter_schema=True)
"""


@contextmanager
def serving(
    folder: Path, url: str, *, packages: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve the flow from a process of its own, which finds more packages in a folder.

    The deployment is named as the folder: another test's may still be on the server.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    path = os.pathsep.join([str(ROOT), *([str(packages)] if packages else [])])
    kept |= {"PYTHONPATH": path, "PREFECT_API_URL": url}
    kept |= {"PREFECT_HOME": str(folder / "home"), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    (folder / "serve.py").write_text(SERVE)
    command = [sys.executable, str(folder / "serve.py"), folder.name]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=kept, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            started = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            try:
                process.wait(20)
            finally:
                for each in [*started, process]:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()


def await_value(look: Callable[[], T | None], process: subprocess.Popen[bytes]) -> T:
    end = time.monotonic() + 60
    while (found := look()) is None:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_a_served_deployment_carries_out_what_the_api_is_asked_for(tmp_path, server):
    store = ome_zarr(tmp_path / "image.zarr", IMAGE)
    good = {
        "image": str(store),
        "segmenter": SEGMENTER,
        "tiles": TILES,
        "cluster": {"n_workers": 1},
    }
    with serving(tmp_path, server.url) as process, get_client(sync_client=True) as client:

        def deployment() -> UUID | None:
            return next((d.id for d in client.read_deployments() if d.name == tmp_path.name), None)

        def ended(run: FlowRun) -> FlowRun | None:
            found = client.read_flow_run(run.id)
            return found if found.state and found.state.is_final() else None

        served = await_value(deployment, process)
        runs = [
            create_run(client, served, good),
            create_run(client, served, good | {"image": str(tmp_path / "none.zarr")}),
        ]
        done, nowhere = [await_value(partial(ended, run), process) for run in runs]
    assert done.state_name == "Completed", (tmp_path / "log").read_text()
    assert load_ome_zarr(store, label="labels").max().compute() == N_OBJECTS
    assert nowhere.state_name == "Failed"
    assert "none.zarr" in nowhere.state.message
