"""Fixtures that several folders of tests share."""

from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cluster import ClusterSpec
from flows.cluster_start import connected
from flows.history import DATA_DIR
from flows.server import PrefectServer, prefect_server
from patchworks import run_plan
from patchworks.execution.dask import active_client
from patchworks.execution.machine import Memory, held_bytes
from patchworks.execution.peak_memory import highest_memory
from patchworks.memory import SHARE


@pytest.fixture(scope="session", autouse=True)
def history_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the runs of the tests out of the developer's own history."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv(DATA_DIR, str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_run_exceeds_its_budget() -> Iterator[None]:
    """Fail the test in which a run in this process takes more memory than it may plan with."""
    take_steps = run_plan._take_steps

    def watched(run) -> None:
        held, budget = held_bytes(), SHARE * Memory.of_this_process().available_bytes
        with highest_memory() as highest:  # not `measured`, which collects garbage each time
            take_steps(run)
        took = highest() - held
        if run.report.projected_bytes - held <= budget:  # else it was said beforehand
            assert took <= budget, f"{took} bytes taken of {budget:.0f}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_plan, "_take_steps", watched)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_client_is_left() -> Iterator[None]:
    """Fail the module that leaves a client behind: all tests after it would run on its workers."""
    yield
    assert active_client() is None


@pytest.fixture(scope="session")
def server(history_of_the_tests: None) -> Iterator[PrefectServer]:
    """One Prefect server of the tests' own, even where the developer has configured another."""
    with pytest.MonkeyPatch.context() as env:
        env.delenv("PREFECT_API_URL", raising=False)
        with temporary_settings(restore_defaults={PREFECT_API_URL}), prefect_server() as running:
            yield running


@pytest.fixture(scope="session")
def workers(server: PrefectServer) -> Iterator[str]:
    """Two worker processes for all flows that need none of their own: their scheduler's address."""
    with connected(ClusterSpec(n_workers=2), {"set_as_default": False}) as client:
        yield str(client.scheduler.address)
