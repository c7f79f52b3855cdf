"""The manifest of a Dask cluster on Kubernetes that our example makes; no cluster is asked.

In an environment of its own: `pip install dask-kubernetes pytest pyyaml`, then
`pytest --noconftest -m slow tests/deployments/test_kubernetes.py`.
"""

from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "deployments" / "clusters" / "kubernetes.yaml"


def test_the_example_is_what_the_operator_takes():
    operator = pytest.importorskip("dask_kubernetes.operator")
    given = yaml.safe_load(EXAMPLE.read_text())["cluster_kwargs"]
    manifest = operator.make_cluster_spec(**given)
    assert manifest["kind"] == "DaskCluster"
    [worker] = manifest["spec"]["worker"]["spec"]["containers"]
    assert worker["image"] == given["image"]
    assert worker["resources"] == given["resources"]
    environment = {variable["name"]: variable["value"] for variable in worker["env"]}
    assert environment.items() >= given["env"].items()
