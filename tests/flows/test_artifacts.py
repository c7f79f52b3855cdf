"""What people see of a run, read back from a real server."""

import asyncio
import io
import json
import re
import socket
import time
from contextlib import contextmanager
from threading import Thread
from uuid import UUID, uuid4

import numpy as np
import pytest
from PIL import Image
from prefect import flow, get_client, task
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.runner._hook_runner import _run_hooks
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from prefect.tasks import Task

from flows import tasks
from flows.artifacts import (
    Progress,
    StepRow,
    publish_conversion,
    publish_failure,
    publish_result,
    publish_table,
    say_how_to_go_on,
    step_rows,
)
from flows.artifacts.progress import Rate
from flows.artifacts.result import MAX_PICTURE_BYTES, data_uri, max_picture_bytes
from flows.artifacts.table import TASKS_OF_STEP
from flows.artifacts.units import NBSP
from patchworks.conversion.run import ConversionReport
from patchworks.report import RunReport


def artifacts_of(flow_run_id) -> list[Artifact]:
    """Return the artifacts of a flow run, the last first; results of Prefect's own left out."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(str(flow_run_id))])),
            limit=50,
        )
    return sorted((a for a in found if a.key), key=lambda a: a.created, reverse=True)


def the(flow_run_id, key: str) -> Artifact:
    (found,) = [a for a in artifacts_of(flow_run_id) if a.key == key]
    return found


def plain(text: str) -> str:
    return text.replace(NBSP, " ")


def in_a_flow(function, *arguments, **keywords):
    """Call a function inside a flow; return the flow run's id and what it returned."""

    @flow(name="show", persist_result=False)
    def show():
        return flow_run.id, function(*arguments, **keywords)

    return show()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestRate:
    def test_what_earlier_tries_did_is_no_speed(self):
        rate = Rate(0.0, done=1000)
        rate.add(10.0, 1050)
        assert rate.lately() == rate.overall() == 5

    def test_it_follows_the_last_minute(self):
        rate = Rate(0.0, done=0)
        for second in range(1, 601):
            rate.add(float(second), second if second <= 300 else 300 + 10 * (second - 300))
        assert rate.lately() == pytest.approx(10)
        assert rate.overall() == pytest.approx(5.5)

    def test_slow_work_is_measured_over_more_than_a_minute(self):
        rate = Rate(0.0, done=0)
        for n in range(1, 101):
            rate.add(300.0 * n, n)
        assert rate.lately() == pytest.approx(1 / 300)


@pytest.mark.usefixtures("server")
class TestProgress:
    def test_it_moves_while_the_step_runs(self):
        def work():
            clock, seen = Clock(), []
            with Progress("segment", "tiles", 4096, done=96, clock=clock) as progress:
                seen.append(the(flow_run.id, "segment-tiles"))
                for done in (346, 596):
                    clock.now += 20
                    progress.update(done)
                    seen.append(the(flow_run.id, "segment-tiles"))
                clock.now += 1
                progress.update(600)
                seen.append(the(flow_run.id, "segment-tiles"))
                clock.now += 260
                progress.update(4096)
            return seen

        run, seen = in_a_flow(work)
        assert {a.type for a in seen} == {"progress"}
        assert [a.data for a in seen] == [2.3, 8.4, 14.6, 14.6]  # the last came too soon
        assert plain(seen[0].description) == "96 of 4 096 tiles, 96 of them done before"
        assert plain(seen[1].description) == (
            "346 of 4 096 tiles, about 5 min left, 12.5 tiles/s, 96 of them done before"
        )
        last = the(run, "segment-tiles")
        assert last.id == seen[0].id
        assert last.data == 100
        assert plain(last.description) == (
            "4 096 of 4 096 tiles, in 5 min 1 s, 13.3 tiles/s, 96 of them done before"
        )

    def test_another_thread_may_update_it(self):
        def work():
            progress = Progress("merge regions", "regions", 10)
            progress._sent -= 5
            thread = Thread(target=progress.update, args=(5,))
            thread.start()
            thread.join()
            half = the(flow_run.id, "merge-regions").data
            progress.close()
            progress.update(10)
            return half

        run, half = in_a_flow(work)
        assert half == 50
        assert the(run, "merge-regions").data == 50
        assert "stopped after" in the(run, "merge-regions").description

    def test_nothing_to_do_is_all_done(self):
        run, _ = in_a_flow(lambda: Progress("segment", "tiles", 0).close())
        assert (the(run, "segment-tiles").data, the(run, "segment-tiles").description) == (
            100,
            "no tiles to do",
        )

    def test_updates_are_bounded_in_a_run_of_many_hours(self):
        clock = Clock()
        progress = Progress("segment", "tiles", 10**9, clock=clock)
        sent = []
        progress._send = lambda: (sent.append(clock.now), setattr(progress, "_sent", clock.now))
        for second in range(10 * 3600):
            clock.now = 101.0 + second
            progress.update(second)
        assert 1200 < len(sent) < 2500
        assert sent[1] - sent[0] <= 3


@task(name="segment tiles", retries=1)
def segment_tiles(n: int) -> int:
    from prefect.context import TaskRunContext

    if n == 1 and TaskRunContext.get().task_run.run_count == 1:
        raise RuntimeError("once")
    return n


@task(name="merge", cache_key_fn=lambda *_: "always the same", persist_result=True)
def merge_regions() -> int:
    return 1


@task
def something_else() -> int:
    return 1


@pytest.mark.usefixtures("server")
class TestTable:
    def test_task_runs_are_counted_per_step(self, tmp_path):
        def work():
            merge = merge_regions.with_options(result_storage_key=f"{uuid4()}")
            for n in range(3):
                segment_tiles(n)
            merge()
            merge()
            something_else()
            rows = step_rows(
                flow_run.id,
                {"start workers": 2.0, "segment": 100.0, "merge": 1.5},
                n_tiles={"segment": 3},
                n_bytes={"merge": 3_400_000},
                n_expected=6,
            )
            publish_table(rows)
            return rows

        run, rows = in_a_flow(work)
        assert rows[:2] == [
            StepRow(step="start workers", seconds=2.0),
            StepRow(step="segment", seconds=100.0, n_tiles=3, n_task_runs=3, n_retries=1),
        ]
        assert (rows[2].n_task_runs, rows[2].n_bytes) == (2, 3_400_000)
        assert rows[2].n_cached >= 1
        assert rows[3].step == "something else"
        table = the(run, "steps")
        assert table.type == "table"
        cells = [{k: plain(v) for k, v in row.items()} for row in json.loads(table.data)]
        assert cells[1] == {
            "step": "segment", "time": "1 min 40 s", "tiles": "3", "bytes": "",
            "task runs": "3", "cached": "0", "retries": "1",
        }  # fmt: skip
        assert cells[2]["bytes"] == "3.4 MB"
        assert (cells[-1]["step"], cells[-1]["task runs"]) == ("total", "6")

    def test_more_task_runs_than_a_page_holds(self):
        import flows.artifacts.table as table

        def work(patch):
            patch.setattr(table, "PAGE", 2)
            for n in (0, 2, 3, 4):
                segment_tiles(n)
            return step_rows(flow_run.id, {"segment": 1.0}, n_expected=4)

        with pytest.MonkeyPatch.context() as patch:
            _, (row,) = in_a_flow(work, patch)
        assert row.n_task_runs == 4


def test_every_task_belongs_to_a_step():
    names = {t.name for t in vars(tasks).values() if isinstance(t, Task)}
    assert names
    assert names <= {name for names in TASKS_OF_STEP.values() for name in names}


def a_report() -> RunReport:
    return RunReport(
        "file:///scans/my%20scan.zarr/labels/nuclei",
        n_tiles=4096,
        n_objects=12345,
        n_segmented=4000,
        n_empty=90,
        n_reused=6,
        seconds={"segment": 90.0, "merge": 10.0},
        n_halvings=1024,
    )


@pytest.mark.usefixtures("server")
class TestResult:
    def test_it_says_what_was_made_where_and_how_to_open_it(self):
        picture = b"\x89PNG" + bytes(1000)
        run, _ = in_a_flow(
            lambda: publish_result(
                a_report(),
                picture,
                ["3 tiles were cut"],
                n_bytes=10**6,
                image="/scans/my scan.zarr",
            )
        )
        found = the(run, "result")
        text = plain(found.data)
        assert found.type == "markdown"
        for part in (
            "## 12 345 objects",
            "4 096: 4 000 segmented, 90 left out as empty, 6 done before",
            "| time | 1 min 40 s |",
            "| objects per second | 123 |",
            "| memory | 1 024 times a tile was cut in two",
            "| labels | `/scans/my scan.zarr/labels/nuclei` |",
            "| size on disk | 1.0 MB |",
            "**Warning:** 3 tiles were cut",
            "view_in_napari('/scans/my scan.zarr', '/scans/my scan.zarr/labels/nuclei')",
            f"]({data_uri(picture)})",
        ):
            assert part in text

    def test_a_picture_takes_150_kb_at_most(self):
        noise = np.random.default_rng(0).integers(0, 256, (900, 1100, 3), dtype="uint8")
        with io.BytesIO() as file:
            Image.fromarray(noise).save(file, "PNG")
            large = file.getvalue()
        fits, broken = (b"\x89PNG" + bytes(max_picture_bytes() + n) for n in (-4, 200))
        for picture, kind in ((fits, "png"), (large, "webp"), (broken, None)):
            run, _ = in_a_flow(publish_result, a_report(), picture)
            found = re.findall(r"\((data:image/(.*?);.*?)\)", the(run, "result").data)
            assert [k for _, k in found] == ([kind] if kind else [])
            assert all(len(uri) <= MAX_PICTURE_BYTES for uri, _ in found)

    def test_many_warnings_are_cut(self):
        run, _ = in_a_flow(publish_result, a_report(), None, ["one\nline"] * 100)
        text = the(run, "result").data
        assert text.count("**Warning:** one line") == 20
        assert "and 80 more, in the log" in text

    def test_a_conversion(self):
        report = ConversionReport("/scans/scan.ome.zarr", 10**9, 40, 10, 10.0)
        run, _ = in_a_flow(publish_conversion, report, source="/scans/scan.czi")
        text = plain(the(run, "result").data)
        for part in ("1.0 GB", "40, 10 of them done before", "100 MB/s", "`/scans/scan.czi`"):
            assert part in text


@flow(name="fails", on_failure=[say_how_to_go_on], on_crashed=[say_how_to_go_on])
def fails(image: str, secret: object, says_more: bool = False):
    if says_more:
        publish_failure("no luck", n_done=12, n_total=4096, stage="file:///scans/stage")
    raise ValueError("'my_fn' returned shape (13, 64) for a block of (14, 64)")


@pytest.mark.usefixtures("server")
class TestFailure:
    def test_the_hook_says_what_failed_and_how_to_go_on(self):
        state = fails("/scans/```scan.zarr", object(), return_state=True)
        found = the(state.state_details.flow_run_id, "how-to-go-on")
        assert found.type == "markdown"
        for part in ("returned shape (13, 64)", "same call again", 'image = "/scans/```scan.zarr"'):
            assert part in " ".join(found.data.split())
        likely = found.data.split("### Other causes")[0]
        assert "segmentation function" in likely
        assert "memory" not in likely

    def test_the_hook_does_not_repeat_what_the_flow_has_said(self):
        state = fails("/scans/scan.zarr", object(), says_more=True, return_state=True)
        found = the(state.state_details.flow_run_id, "how-to-go-on")
        assert "12 of 4 096 tiles are done and kept in `/scans/stage`" in plain(found.data)

    def test_what_a_function_raised_points_to_the_function(self):
        message = "tile 45 at (320, 320): 'model' raised ValueError: " + "nothing to do " * 20
        run, _ = in_a_flow(publish_failure, message)
        text = the(run, "how-to-go-on").data
        likely = text.partition("### What it points to")[2].partition("### Other causes")[0]
        assert "segmentation function" in likely
        # A page has no room for more, and hides the rest.
        assert max(map(len, text.split("```")[1].splitlines())) <= 80

    def test_parameters_that_nobody_gave_are_left_out(self):
        tiles = {"tile_shape": [64, 64], "stitch": "auto", "empty_threshold": None}
        state = fails("/scans/scan.zarr", tiles, return_state=True)
        found = the(state.state_details.flow_run_id, "how-to-go-on")
        assert '"tile_shape": [64, 64]' in found.data
        assert "empty_threshold" not in found.data

    def test_a_crash_of_a_deployed_run_is_told_from_outside_of_it(self):
        """As the process does it that watches the run's."""
        with get_client(sync_client=True) as client:
            run = client.create_flow_run(fails, parameters={"image": "/scans/it's.zarr"})
        deployed = FlowRun.model_validate({**run.model_dump(), "deployment_id": uuid4()})
        state = Crashed(message="Flow run process exited with non-zero status code -9.")
        asyncio.run(_run_hooks([say_how_to_go_on], deployed, fails, state))
        text = the(run.id, "how-to-go-on").data
        assert f"prefect deployment run --id {deployed.deployment_id} --params" in text
        assert "**Retry**" in text
        assert text.index("**memory**") < text.index("### Other causes")


def publish_everything() -> None:
    with Progress("segment", "tiles", 10) as progress:
        progress._sent -= 10
        progress.update(3)
    rows = step_rows(flow_run.id, {"segment": 1.0})
    publish_table(rows)
    publish_result(a_report())
    publish_conversion(ConversionReport("a.zarr", 1, 1, 0, 1.0))
    publish_failure("no luck")


@contextmanager
def server_that(*, hangs: bool):
    """Serve a port where nobody listens, or where nobody answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if hangs:
            listening.listen(50)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            yield


@pytest.mark.parametrize(
    "hangs", [pytest.param(False, marks=pytest.mark.slow), True], ids=["gone", "hangs"]
)
@pytest.mark.usefixtures("server")
def test_a_server_that_does_not_answer_breaks_nothing(hangs, monkeypatch, caplog):
    monkeypatch.setattr("flows.artifacts.desk.ANSWER_WITHIN_S", 0.2)

    def work():
        start = time.perf_counter()
        with server_that(hangs=hangs), Progress("segment", "tiles", 10) as progress:
            progress._sent -= 10
            progress.update(3)
            assert [row.n_task_runs for row in step_rows(flow_run.id, {"segment": 1.0})] == [0]
            assert publish_failure("no luck") is None
        return time.perf_counter() - start

    run, seconds = in_a_flow(work)
    assert artifacts_of(run) == []
    assert seconds < 15
    warned = [r for r in caplog.records if "the run goes on" in r.getMessage()]
    assert len([r for r in warned if "segment" in r.getMessage()]) == 1


def test_outside_of_a_run_nothing_is_published_and_no_server_started(monkeypatch, caplog):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        publish_everything()
        assert publish_failure("no luck", flow_run_id=uuid4()) is None
    assert "no Prefect server is configured" in caplog.text
