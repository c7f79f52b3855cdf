"""What "auto" tiles of a flow have to fit is known before its workers start; and it goes on so."""

from __future__ import annotations

import distributed
import numpy as np
import pytest
import zarr

from flows.cluster import ClusterSpec
from flows.job import cluster_of
from flows.segment_image import plan_segmentation
from flows.work_place import place_of
from patchworks.errors import ClientError, InputError
from patchworks.execution.cluster import cpu_workers, gpu_workers, spec_cluster
from patchworks.io.stage import Stage
from patchworks.run_plan import open_stage
from tests.images import above_1100, smooth_noise
from tests.machines import GIB, pretend
from tests.nvml import FakeNvml, cards


@pytest.fixture
def machine(tmp_path, monkeypatch):
    n = iter(range(99))

    def put(**facts) -> None:
        pretend(tmp_path / f"machine{next(n)}", monkeypatch, **facts)

    return put


def test_workers_of_this_machine_share_its_memory_as_they_will(machine):
    machine(gib=16, n_cores=8, gpus=cards(2, [9 * GIB, 5 * GIB]))
    eight = place_of(ClusterSpec())
    assert (eight.n_workers, eight.memory_bytes, eight.gpu) == (8, 2 * GIB, None)
    given = place_of(ClusterSpec(n_workers=3, threads_per_worker=2, memory_limit="1 GiB"))
    assert (given.n_processes, given.n_batches, given.memory_bytes) == (3, 2, GIB)
    assert place_of(ClusterSpec(maximum=4)).memory_bytes == 4 * GIB
    gpus = place_of(ClusterSpec(gpus="all", n_workers=6))
    assert (gpus.n_workers, gpus.memory_bytes, gpus.gpu.free_bytes) == (2, 2 * GIB, 5 * GIB)
    first = place_of(ClusterSpec(gpus=["0"], n_workers=7))
    assert (first.n_workers, first.gpu.free_bytes) == (1, 9 * GIB)


def test_devices_that_are_only_named_have_no_memory_that_counts(machine):
    machine(gib=16, n_cores=8)
    place = place_of(ClusterSpec(gpus=["0", "1"], n_workers=2))
    assert (place.n_workers, place.gpu) == (2, None)
    with pytest.raises(ClientError, match="gpus: all"):
        place_of(ClusterSpec(gpus="all"))


def test_jobs_of_a_queue_have_what_they_are_asked_for_with(machine):
    machine(gib=16, n_cores=8)
    kwargs = {"cores": 8, "processes": 4, "memory": "32 GiB"}
    place = place_of(
        ClusterSpec(kind="class", cluster_class="a.B", cluster_kwargs=kwargs, scale=40)
    )
    assert (place.n_processes, place.n_batches, place.memory_bytes) == (40, 2, 8 * GIB)
    unknown = place_of(ClusterSpec(kind="class", cluster_class="a.B"))
    assert (unknown.n_workers, unknown.memory_bytes) == (8, 2 * GIB)


@pytest.mark.slow
def test_of_a_scheduler_that_runs_its_workers_count_those_with_gpus_if_there_are():
    cpus = cpu_workers(1, nthreads=3, resources={"CPU": 3}, memory_limit=GIB)
    with spec_cluster(cpus) as cluster:
        place = place_of(ClusterSpec.parse(cluster.scheduler.address))
        assert (place.n_processes, place.n_batches, place.memory_bytes) == (1, 3, GIB)
    both = {**cpus, **gpu_workers(["0", "1"], memory_limit=2 * GIB)}
    with spec_cluster(both) as cluster:
        place = place_of(ClusterSpec.parse(cluster.scheduler.address))
        assert (place.n_processes, place.n_batches, place.memory_bytes) == (2, 1, 2 * GIB)
    with pytest.raises(ValueError, match="No clients found"):
        distributed.default_client()


def test_max_workers_is_how_many_gpus_a_flow_uses(monkeypatch):
    FakeNvml(cards(3, [GIB, 9 * GIB, 8 * GIB])).install(monkeypatch)
    assert cluster_of(None, use_gpu=True).gpus == "all"
    two = cluster_of(None, use_gpu=True, max_workers=2)
    assert (two.gpus, two.n_workers) == ([cards(3)[1].uuid, cards(3)[2].uuid], None)
    assert cluster_of(None, max_workers=2).n_workers == 2


def planned(image, folder):
    groups = {
        "tiles": {"tile_shape": "auto", "overlap": 4},
        "labels": {"write_to": str(folder / "l.zarr")},
    }
    return plan_segmentation(image, above_1100, groups, cluster=ClusterSpec(n_workers=1)).plan


def test_a_flow_goes_on_with_the_tiles_it_was_begun_with(machine, tmp_path):
    image = tmp_path / "i.zarr"
    zarr.create_array(image, data=smooth_noise((64, 200, 200)), chunks=(16, 32, 32))
    machine(gib=0.4, n_cores=2)
    few = planned(image, tmp_path)
    open_stage(few)
    machine(gib=64, n_cores=2)
    again = planned(image, tmp_path)
    assert again.stage == few.stage
    assert again.spec.grid == few.spec.grid
    Stage(few.stage.root).remove()
    assert planned(image, tmp_path).spec.grid.n_tiles < few.spec.grid.n_tiles


def test_a_flow_refuses_chosen_tiles_of_five_axes(tmp_path):
    with pytest.raises(InputError, match="5 axes"):
        planned(np.zeros((1, 1, 4, 8, 8), "u1"), tmp_path)
