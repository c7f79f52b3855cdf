"""What may stand in a `ClusterSpec`, and which cluster it starts."""

import gc
import json
import logging
import os
import textwrap
import time
from pathlib import Path

import distributed
import pytest
from prefect import flow, task
from prefect.context import FlowRunContext
from prefect.futures import wait
from pydantic import ValidationError

from flows import cluster_start
from flows.cluster import ClusterSpec
from flows.cluster_start import await_workers, connected, import_cluster_class
from flows.runners import ClusterRunner
from flows.workers import Offer, count_slots
from patchworks.errors import ClientError, InputError
from patchworks.execution.machine import available_cores

EXAMPLES = Path(__file__).parents[2] / "deployments" / "clusters"

QUIET = {"set_as_default": False}


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"address": "tcp://node:1"}, "address: only for kind: address, and kind is local"),
        ({"kind": "address"}, "kind: address needs address"),
        ({"kind": "address", "address": "node"}, "'node' is no address of a scheduler"),
        ({"kind": "address", "address": "tcp://a:1", "n_workers": 2}, "n_workers: only for kind"),
        ({"kind": "address", "address": "tcp://a:1", "maximum": 2}, "leave minimum and maximum"),
        ({"kind": "class"}, "kind: class needs cluster_class"),
        ({"kind": "class", "cluster_class": "SLURM"}, "no import path of a class"),
        ({"kind": "class", "cluster_class": "a.B", "gpus": "all"}, "gpus: only for kind: local"),
        ({"kind": "class", "cluster_class": "a.B", "scale": 2, "maximum": 3}, "scale is a fixed"),
        (
            {"kind": "class", "cluster_class": "a.B", "cluster_kwargs": {"asynchronous": True}},
            "leave asynchronous out",
        ),
        ({"scale": 2}, "scale: only for kind: class"),
        ({"minimum": 1}, "say maximum as well"),
        ({"minimum": 3, "maximum": 2}, "minimum 3 is more than maximum 2"),
        ({"n_workers": 3, "maximum": 2}, "n_workers is a fixed number"),
        ({"gpus": ["0"], "maximum": 2}, "would end GPU workers"),
        ({"gpus": []}, "names no GPU"),
        ({"gpus": "some"}, "gpus"),
        ({"memory_limit": "a lot"}, "'a lot' is no size"),
        ({"memory_limit": "0"}, "no memory"),
        ({"n_workers": 0}, "greater than or equal to 1"),
        ({"segment_resources": {"GPU": 0}}, "greater than 0"),
        ({"n_worker": 2}, "n_worker: no such key; the keys are kind, n_workers"),
    ],
)
def test_a_wrong_spec_is_an_error_that_says_what_to_do(fields, expected):
    with pytest.raises(InputError) as caught:
        ClusterSpec.parse(fields)
    assert expected in str(caught.value)
    with pytest.raises(ValidationError):
        ClusterSpec(**fields)


def test_a_spec_survives_a_form():
    spec = ClusterSpec(kind="class", cluster_class="a.B", cluster_kwargs={"cores": 2}, scale=3)
    assert ClusterSpec(**json.loads(spec.model_dump_json())) == spec
    assert ClusterSpec(**json.loads(ClusterSpec().model_dump_json())) == ClusterSpec()
    for field in ClusterSpec.model_json_schema()["properties"].values():
        assert field["description"]


def test_whatever_names_a_cluster_is_a_spec(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("kind: local\ngpus: [0, 1]\n")
    assert ClusterSpec.parse(None) == ClusterSpec()
    assert ClusterSpec.parse(file) == ClusterSpec.parse(str(file)) == ClusterSpec(gpus=["0", "1"])
    assert ClusterSpec.parse({"n_workers": 2}) == ClusterSpec(n_workers=2)
    assert ClusterSpec.parse("tls://node:8786").kind == "address"
    assert ClusterSpec.parse(ClusterSpec(n_workers=2)).n_workers == 2
    with pytest.raises(InputError, match="got a int"):
        ClusterSpec.parse(3)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("n_worker: 2", "n_worker: no such key"),
        ("n_workers: two", "n_workers: .*valid integer.*'two'"),
        ("kind: [", "not a YAML file.*line"),
        ("- kind", "holds keys and values"),
        (None, "cannot be read .*No such file"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, expected):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=rf"(?s)mine\.yaml: .*{expected}"):
        ClusterSpec.from_yaml(file)


def test_a_message_names_what_was_asked_for_and_no_secret():
    spec = ClusterSpec(kind="class", cluster_class="a.B", cluster_kwargs={"token": "x"}, scale=3)
    assert str(spec) == "cluster (kind: class, cluster_class: a.B, scale: 3)"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_is_a_spec(file):
    assert ClusterSpec.from_yaml(file).kind in ("local", "address", "class")


def test_there_are_examples_of_every_kind():
    stems = {file.stem for file in EXAMPLES.glob("*.yaml")}
    assert stems == {"local", "gpu", "slurm", "slurm-gpu", "kubernetes", "existing", "ssh"}


def test_a_slurm_job_asks_for_its_gpu_and_tells_dask_of_it():
    spec = ClusterSpec.from_yaml(EXAMPLES / "slurm-gpu.yaml")
    with import_cluster_class(spec.cluster_class)(**spec.cluster_kwargs) as cluster:
        script = cluster.job_script()
    assert "#SBATCH --gres=gpu:1" in script
    assert "--resources GPU=1" in script
    assert "--nthreads 1 " in script
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False" in script


@pytest.mark.parametrize(
    "path, expected",
    [
        ("no_such_package.Cluster", r"pip install no-such-package"),
        ("distributed.NoSuchCluster", "NoSuchCluster"),
        ("distributed.__version__", "is a str, not a class"),
    ],
)
def test_a_class_that_is_not_there_is_an_error(path, expected):
    with pytest.raises(InputError, match=expected):
        import_cluster_class(path)


def test_a_class_that_cannot_start_is_an_error_with_its_reason():
    spec = ClusterSpec(
        kind="class", cluster_class="distributed.LocalCluster", cluster_kwargs={"n_wrkers": 1}
    )
    with (
        pytest.raises(ClientError, match=r"(?s)LocalCluster\) could not be started.*n_wrkers"),
        connected(spec, QUIET),
    ):
        pass


def test_no_scheduler_at_the_address_is_an_error(monkeypatch):
    monkeypatch.setattr(cluster_start, "_CONNECT_S", 1.0)
    with (
        pytest.raises(ClientError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"),
        connected(ClusterSpec.parse("tcp://127.0.0.1:9"), QUIET),
    ):
        pass


def test_jobs_that_never_start_are_an_error_that_says_where_to_look(tmp_path, monkeypatch):
    # A queue that takes jobs and never runs them.
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho Submitted batch job 7\n")
    for command in (sbatch, tmp_path / "scancel"):
        command.write_text(sbatch.read_text())
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    given = ClusterSpec.from_yaml(EXAMPLES / "slurm.yaml").model_dump()
    spec = ClusterSpec.parse(given | {"wait_for_workers_s": 1, "scale": 1})
    with (
        connected(spec, QUIET) as client,
        pytest.raises(ClientError, match=r"(?s)SLURMCluster.*within 1 s.*squeue --me"),
    ):
        await_workers(client, spec)


def test_a_worker_that_offers_the_wrong_thing_is_named():
    spec = ClusterSpec(
        n_workers=1, segment_resources={"GPU": 1}, wait_for_workers_s=0.5, memory_limit="1 GiB"
    )
    with (
        connected(spec, QUIET) as client,
        pytest.raises(ClientError, match=r"(?s)takes?: .*'GPU'.*cpu-0 at tcp.*no resources"),
    ):
        await_workers(client, spec)


def test_a_local_cluster_listens_on_loopback_and_is_patient_with_its_workers():
    with connected(ClusterSpec(n_workers=1, threads_per_worker=2), QUIET) as client:
        offers = await_workers(client, ClusterSpec())
        assert [(offer.name, offer.nthreads) for offer in offers] == [("cpu-0", 2)]
        assert offers[0].address.startswith("tcp://127.0.0.1:")
        scheduler = client.cluster.scheduler
        assert scheduler.worker_ttl == 2 * 3600
        assert scheduler.allowed_failures == 3
        # Nothing of it is at an address that another machine reaches, HTTP neither.
        listening = client.run(_listening)
        assert set(*listening.values()) == {"127.0.0.1"}
        assert set(_listening()) >= {"127.0.0.1"}
    assert logging.getLogger("distributed").level <= logging.WARNING


def _listening() -> list[str]:
    import psutil

    found = psutil.Process().net_connections("tcp")
    return [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN]


def test_by_default_there_is_a_worker_per_core():
    with connected(ClusterSpec(), QUIET) as client:
        offers = await_workers(client, ClusterSpec())
        assert len(offers) == available_cores()
        limits = [one["memory_limit"] for one in client.scheduler_info()["workers"].values()]
        assert all(limit > 2**20 for limit in limits)


def test_slots_count_threads_resources_and_workers_to_come():
    def offer(nthreads, **resources):
        return Offer(address="tcp://a:1", name="a", nthreads=nthreads, resources=resources)

    offers = [offer(4, GPU=1), offer(4, GPU=2), offer(3), offer(3, CPU=8)]
    assert count_slots(offers, {}) == 14
    assert count_slots(offers, {"GPU": 1}) == 3
    assert count_slots(offers, {"GPU": 2}) == 1
    assert count_slots(offers, {"CPU": 1}) == 3
    assert count_slots(offers, {"FPGA": 1}) == 1
    assert count_slots([offer(2)], {}, 5) == 10
    assert count_slots([], {}, 5) == 1


@task
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return str(distributed.get_worker().name)


@flow
def nap_in_parallel(n_tasks: int) -> tuple[int, int, list[str]]:
    runner = FlowRunContext.get().task_runner
    n_slots = runner.n_slots("segment")
    with runner.placed("segment"):
        futures = [nap.submit(1.0) for _ in range(n_tasks)]
    wait(futures)
    most = len({future.result() for future in futures})
    deadline = time.monotonic() + 30
    while len(runner.client.scheduler_info()["workers"]) > 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    return n_slots, most, list(runner.client.scheduler_info()["workers"])


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_an_adaptive_cluster_grows_with_the_work_and_shrinks_after_it():
    spec = ClusterSpec(minimum=1, maximum=3, memory_limit="1 GiB")
    on_workers = nap_in_parallel.with_options(task_runner=ClusterRunner(spec))
    n_slots, n_workers, left = on_workers(30)
    assert n_slots == 3
    assert n_workers == 3
    assert len(left) == 1


@flow
def nap_once() -> tuple[int, str]:
    runner = FlowRunContext.get().task_runner
    return runner.n_slots("other"), nap.submit(0.0).result()


# dask_jobqueue.local leaves the pipes of its jobs open.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.usefixtures("server")
def test_a_job_queue_from_yaml_carries_out_a_flow(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    file = tmp_path / "queue.yaml"
    file.write_text(
        textwrap.dedent(
            """\
            kind: class
            cluster_class: dask_jobqueue.local.LocalCluster
            scale: 1
            wait_for_workers_s: 60
            cluster_kwargs:
              cores: 2
              processes: 1
              memory: 2GB
              scheduler_options: {host: 127.0.0.1, dashboard_address: "127.0.0.1:0"}
            """
        )
    )
    runner = ClusterRunner(ClusterSpec.from_yaml(file))
    n_slots, worker = nap_once.with_options(task_runner=runner)()
    assert n_slots == 2
    assert worker == "LocalCluster-0"
    gc.collect()


def test_a_queue_that_refuses_jobs_is_an_error_with_its_reason(tmp_path, monkeypatch):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho sbatch: error: invalid account >&2; exit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with (
        pytest.raises(
            ClientError, match=r"(?s)SLURMCluster.*could not be started.*invalid account"
        ),
        connected(ClusterSpec.from_yaml(EXAMPLES / "slurm.yaml"), QUIET),
    ):
        pass
