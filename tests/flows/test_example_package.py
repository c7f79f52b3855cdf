"""Somebody else's package with a segmenter: by its name from Python, and from the UI's form."""

import json
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from patchworks import load_ome_zarr
from tests.cells import same_partition
from tests.flows.browser import CHROMIUM, page
from tests.flows.example_package import environment, install, lay_out, run_python
from tests.flows.test_deployed import await_value, serving
from tests.images import ome_zarr, smooth_noise

IMAGE = smooth_noise((8, 90, 100))
GIVEN = {"name": "example", "brighter_by": 60, "size": 9}

KNOWN = """
import json
from prefect.utilities.callables import parameter_schema
from flows.segment_image import segment_image_flow
from patchworks.segmenters import resolve_segmenter

schema = parameter_schema(segment_image_flow)
choice = {"name": "example", "size": 5, "objects": "dark"}
parameters = segment_image_flow.validate_parameters({"image": "x", "segmenter": choice})
try:
    segment_image_flow.validate_parameters({"image": "x", "segmenter": {**choice, "size": "five"}})
except Exception as error:
    refused = str(error)
print(json.dumps({
    "form": schema.definitions["Segmenter_example"],
    "choices": [each["$ref"] for each in schema.properties["segmenter"]["anyOf"]],
    "parsed": parameters["segmenter"].given(),
    "made": repr(resolve_segmenter(choice)),
    "refused": refused,
}))
"""


def test_flows_know_the_segmenter_of_an_installed_package(tmp_path):
    lay_out(tmp_path)
    found = run_python(KNOWN, tmp_path)
    assert "#/definitions/Segmenter_example" in found["choices"]
    assert found["form"]["title"] == "Example"
    assert found["form"]["properties"]["size"] == {
        "type": "integer", "title": "Size", "default": 61,
        "description": "Width of a box in voxels that no object can hold.",
    }  # fmt: skip
    assert found["form"]["properties"]["objects"]["enum"] == ["bright", "dark"]
    assert found["parsed"] == {"name": "example", "size": 5, "objects": "dark"}
    assert found["made"] == "TopHat(brighter_by=30.0, size=5, objects='dark')"
    assert re.search(r"segmenter 'example': size='five': .*valid integer", found["refused"])
    assert "Threshold" not in found["refused"], "errors are of the form that was named"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "installed"
    install(folder)
    return folder


def segmented(packages: Path, image: np.ndarray, **given) -> np.ndarray:
    """Return what the package's function gives for a whole image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(packages)
        from patchworks_example import example

        return example(**given)(image)


SEGMENT = """
import json, sys
from flows import segment_image

if __name__ == "__main__":
    report = segment_image(
        sys.argv[1],
        segmenter=json.loads(sys.argv[2]),
        tile_shape=(8, 45, 50),
        overlap=17,
        max_workers=2,
    )
    print(report)
"""


@pytest.mark.slow
def test_it_runs_by_its_name_from_python(tmp_path, installed, server):
    store = ome_zarr(tmp_path / "image.zarr", IMAGE)
    script = tmp_path / "segment.py"
    script.write_text(SEGMENT)
    done = subprocess.run(
        [sys.executable, str(script), str(store), json.dumps(GIVEN)],
        env=environment(installed) | {"PREFECT_API_URL": server.url},
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    whole = segmented(installed, IMAGE, brighter_by=60, size=9)
    found = load_ome_zarr(store, label="labels").compute()
    assert same_partition(found, whole)
    assert found.max() == whole.max() > 0


@pytest.mark.slow
def test_it_is_listed_by_the_command(installed):
    command = [sys.executable, "-m", "flows.cli", "segmenters", "example"]
    done = subprocess.run(
        command, env=environment(installed), capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("example  (patchworks-example)\n  Return a segmenter of objects")
    assert "    size: int = 61\n        Width of a box" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_it_runs_from_the_form_of_a_deployment(tmp_path, installed, server):
    image = IMAGE[0]
    store = ome_zarr(tmp_path / "image.zarr", image[None])
    with (
        serving(tmp_path, server.url, packages=installed) as process,
        get_client(sync_client=True) as client,
        page(1300, 1060) as tab,
    ):

        def deployment() -> UUID | None:
            named = (d.id for d in client.read_deployments() if d.name == tmp_path.name)
            return next(named, None)

        def ended() -> FlowRun | None:
            mine = [run for run in client.read_flow_runs() if run.deployment_id == served]
            return next((run for run in mine if run.state and run.state.is_final()), None)

        served = await_value(deployment, process)
        schema = client.read_deployment(served).parameter_openapi_schema
        assert "Segmenter_example" in schema["definitions"]
        tab.open(f"{server.ui_url}/deployments/deployment/{served}/run", "Submit", "segmenter")
        tab.fill("image", str(store))
        assert tab.click("Example", tag="button")
        tab.wait_for("Brighter By")
        tab.fill("Brighter By (Optional)", "60")
        tab.fill("Size (Optional)", "9")
        tab.fill("Objects (Optional)", "dark")
        assert tab.click("Submit", tag="button")
        done = await_value(ended, process)
    assert done.state_name == "Completed", (tmp_path / "log").read_text()
    assert done.parameters["segmenter"] == GIVEN | {"objects": "dark"}
    found = load_ome_zarr(store, label="labels").compute()
    expected = segmented(installed, image[None], brighter_by=60, size=9, objects="dark")[0]
    assert same_partition(found[0], expected)
    assert found.max() == expected.max() > 0
