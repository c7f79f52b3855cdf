"""Real flows on real worker processes, against one server."""

import logging
import os
import time
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import distributed
import pytest
from dask.base import annotate
from dask.delayed import delayed
from prefect import Flow, flow, get_client, task
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Log
from prefect.context import FlowRunContext
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.errors import ServerError
from flows.runners import ClusterRunner, local_dask_runner

P = ParamSpec("P")
R = TypeVar("R")

N_TASKS = 20
LOGS_ARRIVE_WITHIN_S = 20.0


@task
def tell(number: int) -> int:
    logging.getLogger("patchworks.steps.segment").info("tile %d is segmented", number)
    return os.getpid()


@task
def memory_fractions() -> list[Any]:
    manager = distributed.get_worker().memory_manager
    return [
        manager.memory_target_fraction,
        manager.memory_spill_fraction,
        manager.memory_pause_fraction,
    ]


@task
def compute_with_dask(number: int) -> int:
    return int(delayed(lambda: number + 1)().compute())


@flow
def tell_all() -> tuple[UUID, list[int], list[Any]]:
    futures = [tell.submit(number) for number in range(N_TASKS)]
    wait(futures)
    return (
        UUID(flow_run.id),
        [future.result() for future in futures],
        memory_fractions.submit().result(),
    )


@flow
def tell_once() -> int:
    return tell.submit(0).result()


@flow
def compute_after_annotated_start() -> int:
    context = FlowRunContext.get()
    assert context is not None
    assert isinstance(context.task_runner, ClusterRunner)
    with annotate(resources={"GPU": 1}):
        context.task_runner.client  # noqa: B018 - starts the cluster
    return compute_with_dask.submit(1).result()


def on_workers(some_flow: Flow[P, R], n_workers: int) -> Flow[P, R]:
    runner = local_dask_runner(n_workers=n_workers)
    return some_flow.with_options(task_runner=runner)  # type: ignore[arg-type]


def library_lines(flow_run_id: UUID) -> list[Log]:
    """Read the run's lines until all are there: workers send them in batches."""
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    deadline = time.monotonic() + LOGS_ARRIVE_WITHIN_S
    lines: list[Log] = []
    with get_client(sync_client=True) as client:
        while len(lines) < N_TASKS and time.monotonic() < deadline:
            lines = [log for log in client.read_logs(of_run) if log.name.startswith("patchworks")]
            time.sleep(0.1)
    return lines


@pytest.mark.usefixtures("server")
def test_tasks_run_in_worker_processes_and_their_log_lines_arrive() -> None:
    flow_run_id, process_ids, fractions = on_workers(tell_all, 2)()

    assert len(process_ids) == N_TASKS
    assert os.getpid() not in process_ids
    assert len(set(process_ids)) <= 2
    lines = library_lines(flow_run_id)
    assert sorted(line.message for line in lines) == sorted(
        f"tile {number} is segmented" for number in range(N_TASKS)
    )
    assert all(line.task_run_id is not None for line in lines)
    assert fractions == [False, False, False]


@pytest.mark.usefixtures("server")
def test_a_global_client_does_not_take_the_tasks() -> None:
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        process_id = on_workers(tell_once, 1)()

        assert process_id != os.getpid()
        assert distributed.get_client() is client


@pytest.mark.usefixtures("server")
def test_an_annotation_at_the_start_does_not_stick_to_later_work() -> None:
    assert on_workers(compute_after_annotated_start, 2)() == 2


def test_a_runner_without_a_server_is_an_error_that_says_what_to_do() -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ServerError, match="prefect_server"),
    ):
        local_dask_runner(n_workers=1).client  # noqa: B018 - starts the cluster


def test_a_given_size_is_kept() -> None:
    spec = local_dask_runner(n_workers=3, memory_limit=2**30).spec

    assert (spec.kind, spec.n_workers, spec.memory_limit) == ("local", 3, str(2**30))
