"""What a facility's server is given: the file of deployments, limits, automations."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Completed, Running

import flows
from flows.cli import main
from flows.cluster import ClusterSpec
from flows.errors import ServerError
from flows.facility.automations import (
    DEAD_AFTER_S,
    automations,
    dead_after_of,
    ensure_automations,
)
from flows.facility.blocks import MAIL_URL, WEBHOOK_URL, ensure_blocks
from flows.facility.deploy import Facility, content_of, deploy, names_in, variables_of
from flows.facility.mail import SmtpMail
from flows.facility.pools import (
    GPU_LIMIT,
    POOLS,
    ensure_gpu_slots,
    ensure_pools,
    free_forgotten_slots,
)
from flows.facility.serving import deployment_of
from flows.gpu_slots import GPU_SLOTS, gpu_slots
from flows.housekeeping import housekeeping_flow
from flows.inbox.intake import PROCESS
from patchworks.errors import InputError

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"
DEPLOYMENTS = content_of(FILE)["deployments"]
ENTRIES = pytest.mark.parametrize(
    "said", DEPLOYMENTS, ids=lambda said: f"{said['entrypoint'].rpartition('.')[2]}-{said['name']}"
)


@pytest.fixture
def said_by_deploy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHWORKS_VERSION", "1.2.3")
    monkeypatch.setenv("PATCHWORKS_INBOX", "/data/inbox")
    monkeypatch.setenv("PATCHWORKS_RESULTS", "/data/results")
    monkeypatch.setenv("PATCHWORKS_WORK_DIR", "")


class TestFile:
    @ENTRIES
    def test_every_entry_is_a_flow_that_takes_its_parameters(self, said, said_by_deploy):
        flow = load_flow_from_entrypoint(said["entrypoint"])
        deployment = deployment_of(said)
        given = dict(deployment.parameters)
        required = {"image": "a", "source": "a", "target": "b", "labeled": "a", "store": "a"}
        known = flow.parameters.properties
        given |= {key: value for key, value in required.items() if key in known}
        if flow.name == "merge labels":
            given["labels"] = {"write_to": "b"}
        assert given.keys() <= known.keys()
        assert flow.validate_parameters(given)

    @ENTRIES
    def test_every_entry_is_versioned_tagged_and_in_a_pool_that_deploy_makes(
        self, said, said_by_deploy
    ):
        assert deployment_of(said).version == "1.2.3"
        assert "patchworks" in said["tags"]
        pool = said["work_pool"]
        assert pool["name"] in POOLS
        env = pool["job_variables"]["env"]
        assert (GPU_SLOTS in env) == (pool["name"] == "gpu")
        assert env.get(GPU_SLOTS, GPU_LIMIT) == GPU_LIMIT
        assert int(env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) * 3 <= DEAD_AFTER_S

    @ENTRIES
    def test_schedules_are_off_until_somebody_switches_them_on(self, said, said_by_deploy):
        for schedule in said.get("schedules", []):
            assert schedule["active"] is False
            assert schedule["slug"], "by which it is known the next time"
        assert all(not s.active for s in deployment_of(said).schedules or [])

    def test_every_flow_of_the_package_is_there_once_by_each_name(self):
        names = names_in(FILE)
        assert len(set(names)) == len(names)
        assert PROCESS in names
        deployed = {name.split("/")[0] for name in names}
        assert deployed == {
            *[name.replace("_", " ") for name in flows.__all__],
            "process inbox",
            "clean up",
        }

    def test_the_trigger_hands_on_what_the_event_says(self, said_by_deploy):
        (inbox,) = [said for said in DEPLOYMENTS if said["name"] == "inbox"]
        (trigger,) = deployment_of(inbox).triggers
        assert trigger.parameters["inbox"] == "{{ event.payload.inbox }}"
        assert trigger.expect == {"patchworks.inbox.image-settled"}
        flow = load_flow_from_entrypoint(inbox["entrypoint"])
        assert trigger.parameters.keys() <= flow.parameters.properties.keys()

    def test_a_bucket_as_an_inbox_needs_a_local_folder_for_its_ledger(self, tmp_path):
        bucket = "s3://scans/inbox"
        with pytest.raises(InputError, match=r"s3://scans/inbox.*--work-dir"):
            variables_of(Facility(inbox=bucket), {})
        with pytest.raises(InputError, match=r"s3://scans/work.*local folder"):
            variables_of(Facility(inbox=bucket, work_dir="s3://scans/work"), {})
        said = variables_of(Facility(inbox=bucket, work_dir=str(tmp_path)), {})
        assert said["PATCHWORKS_RESULTS"] == "s3://scans/inbox/results"
        assert said["PATCHWORKS_WORK_DIR"] == str(tmp_path)
        again = variables_of(Facility(inbox=bucket), {"work_dir": str(tmp_path)})
        assert again == said, "as it is on the server"

    def test_a_file_that_is_none_is_an_error_of_one_line(self, tmp_path):
        with pytest.raises(InputError, match="in a clone of patchworks"):
            content_of(tmp_path / "none.yaml")
        (tmp_path / "a.yaml").write_text("deployments: 3")
        with pytest.raises(InputError, match="no list 'deployments'"):
            content_of(tmp_path / "a.yaml")


@pytest.mark.usefixtures("server")
class TestServer:
    def test_gpu_slots_are_held_while_a_run_uses_them(self, monkeypatch):
        with get_client(sync_client=True) as client:
            ensure_gpu_slots(client, 2)
            assert ensure_gpu_slots(client, None) == 2, "as it was set"

            def taken() -> int:
                return client.read_global_concurrency_limit_by_name(GPU_LIMIT).active_slots

            one = ClusterSpec(gpus=["0"])
            with gpu_slots(one):
                assert taken() == 0, "nothing is counted where no limit is named"
            monkeypatch.setenv(GPU_SLOTS, GPU_LIMIT)
            with gpu_slots(ClusterSpec()), gpu_slots(one):
                assert taken() == 1
            assert taken() == 0
            with (
                pytest.raises(ServerError, match=r"3 GPU slots.*patchworks deploy --gpus"),
                gpu_slots(ClusterSpec(gpus=["0", "1", "2"])),
            ):
                pass
            monkeypatch.setenv(GPU_SLOTS, "no-such-limit")
            with pytest.raises(ServerError, match="no-such-limit"), gpu_slots(one):
                pass

    def test_slots_that_a_killed_server_forgot_are_free_once_no_run_is_on(self):
        with get_client(sync_client=True) as client:
            ensure_pools(client, {})
            ensure_gpu_slots(client, 2)
            client.increment_concurrency_slots([GPU_LIMIT], 1, mode="concurrency")
            flow = housekeeping_flow
            deployment = flow.to_deployment("on-gpu", work_pool_name="gpu").apply()
            run = client.create_flow_run_from_deployment(deployment, parameters={"folders": []})
            client.set_flow_run_state(run.id, Running(), force=True)
            assert free_forgotten_slots(client) == 0
            client.set_flow_run_state(run.id, Completed(), force=True)
            assert free_forgotten_slots(client) == 1
            assert client.read_global_concurrency_limit_by_name(GPU_LIMIT).active_slots == 0
            assert free_forgotten_slots(client) == 0
            client.delete_deployment(deployment)
            for name in POOLS:
                client.delete_work_pool(name)

    def test_pools_and_automations_are_made_once_and_what_people_set_stays(self):
        with get_client(sync_client=True) as client:
            for _ in range(2):
                ensure_pools(client, {"cpu": None})
                ensure_automations(client, automations([], dead_after_s=60))
            assert client.read_work_pool("cpu").concurrency_limit == 2
            ensure_pools(client, {"cpu": 5})
            ensure_pools(client, {"cpu": None})
            assert client.read_work_pool("cpu").concurrency_limit == 5
            (dead,) = client.read_automations_by_name("patchworks - dead runs")
            assert dead.actions[0].state == StateType.CRASHED
            client.pause_automation(dead.id)
            ensure_automations(client, automations([], dead_after_s=90))
            (dead,) = client.read_automations_by_name("patchworks - dead runs")
            assert (dead.enabled, dead.trigger.within.total_seconds()) == (False, 90)
            for name in POOLS:
                client.delete_work_pool(name)
            for found in client.read_automations():
                client.delete_automation(found.id)

    def test_how_long_is_dead_and_who_is_told_stay_until_somebody_says_otherwise(self):
        webhook, mail = uuid4(), uuid4()
        with get_client(sync_client=True) as client:
            assert dead_after_of(client) == DEAD_AFTER_S
            ensure_automations(client, automations([webhook, mail], dead_after_s=90))
            assert dead_after_of(client) == 90
            for now in ([mail], [], [webhook, mail]):
                ensure_automations(client, automations(now, dead_after_s=dead_after_of(client)))
                (word,) = client.read_automations_by_name("patchworks - word of failures")
                told = sorted(action.block_document_id for action in word.actions)
                assert told == sorted([webhook, mail]), "each once"
                assert dead_after_of(client) == 90
            for found in client.read_automations():
                client.delete_automation(found.id)

    def test_a_pool_that_a_worker_made_gets_its_default_limit_once(self):
        with get_client(sync_client=True) as client:
            for name in POOLS:
                client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            client.update_work_pool("gpu", WorkPoolUpdate(concurrency_limit=4))

            def limits() -> list[int | None]:
                return [client.read_work_pool(name).concurrency_limit for name in POOLS]

            ensure_pools(client, {})
            assert limits() == [2, 4, None], "one that was set is left as it is"
            client.update_work_pool("cpu", WorkPoolUpdate(concurrency_limit=None))
            ensure_pools(client, {})
            assert limits() == [None, 4, None], "so is one that was taken away since"
            for name in POOLS:
                client.delete_work_pool(name)

    def test_the_nightly_clean_up_reports_and_then_removes(self, tmp_path):
        left = tmp_path / ".image.zarr.0123abcd.partial"
        left.mkdir()
        (left / "chunk").write_bytes(b"12345")
        for path in (left / "chunk", left):
            os.utime(path, (1e9, 1e9))
        report = housekeeping_flow([str(tmp_path)], 30)
        assert (report.n_bytes, report.n_folders) == (5, {"would be removed": 1})
        assert left.exists()
        report = housekeeping_flow([str(tmp_path)], 30, dry_run=False)
        assert report.n_folders == {"removed": 1}
        assert not left.exists()
        with get_client(sync_client=True) as client:
            shown = [a for a in client.read_artifacts() if a.key == "clean-up"]
        assert len(shown) == 2
        assert "0123abcd" in shown[0].data
        with pytest.raises(InputError, match="absolute"):
            housekeeping_flow(["here"])

    def test_the_nightly_clean_up_leaves_out_buckets_and_frees_slots_whatever_the_folders(
        self, tmp_path, monkeypatch
    ):
        freed = []
        monkeypatch.setattr("flows.housekeeping.free_forgotten_slots", freed.append)
        (tmp_path / ".image.zarr.0123abcd.partial").mkdir()
        os.utime(tmp_path / ".image.zarr.0123abcd.partial", (1e9, 1e9))
        report = housekeeping_flow(["s3://scans/results", str(tmp_path)], dry_run=False)
        assert report.n_folders == {"removed": 1}
        for none in (["s3://scans/results"], [""]):  # as `deploy` says without an inbox
            assert housekeeping_flow(none, dry_run=False).n_folders == {}
        with pytest.raises(InputError, match="absolute"):
            housekeeping_flow(["here"], dry_run=False)
        assert len(freed) == 4

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # of apprise
    def test_blocks_come_from_the_environment_and_keep_their_secret(self, monkeypatch):
        monkeypatch.setenv(WEBHOOK_URL, "https://example.org/hook/s3cret")
        monkeypatch.setenv(MAIL_URL, "mailtos://user:s3cret@example.org?to=a@example.org")
        first = ensure_blocks()
        assert ensure_blocks() == first, "renewed, not doubled"
        with get_client(sync_client=True) as client:
            for block in first.values():
                shown = client.request("GET", f"/block_documents/{block}").text
                assert "s3cret" not in shown
        assert SmtpMail.load("patchworks-mail").url.get_secret_value().startswith("mailtos://")

    @pytest.mark.parametrize("variable", [WEBHOOK_URL, MAIL_URL])
    def test_what_is_no_url_is_refused_without_being_said(self, monkeypatch, variable):
        monkeypatch.setenv(variable, "s3cret")
        with pytest.raises(InputError, match=variable) as refused:
            ensure_blocks()
        assert "s3cret" not in str(refused.value)


def test_without_a_server_deploy_says_which_line_is_missing(monkeypatch):
    monkeypatch.setattr("flows.facility.deploy.configured_url", lambda: None)
    with pytest.raises(ServerError, match="PREFECT_API_URL"):
        deploy(Facility(file=FILE))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("deploy --gpus -1", "--gpus: '-1': expected an integer from 0 to"),
        ("deploy --cpu-runs -1", "--cpu-runs: '-1': expected an integer from 0 to"),
        ("deploy --dead-after nan", "--dead-after: 'nan': expected seconds, from 60 to"),
        ("deploy --dead-after 5", "--dead-after: '5': expected seconds, from 60 to"),
        ("watch inbox --every -1", "--every: '-1': expected seconds, from 0 to"),
        ("watch inbox --settle inf", "--settle: 'inf': expected seconds, from 0 to"),
    ],
)
def test_a_number_out_of_its_range_is_refused_before_anything_is_done(capsys, said, expected):
    with pytest.raises(SystemExit) as ended:
        main(said.split())
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
