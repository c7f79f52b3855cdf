"""Each image once, in order, never more than the limit, whatever is cut off when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from flows.inbox import ledger as ledger_module
from flows.inbox import memory as memory_module
from flows.inbox import quarantine as quarantine_module
from flows.inbox.inbox import Inbox
from flows.inbox.intake import Outcome
from flows.inbox.ledger import Ledger, Record
from flows.inbox.settings import Settings
from flows.inbox.watch import Watcher
from flows.parameters import Tiles
from patchworks.errors import InputError
from tests.inbox.stand_in import Runs, intake, step

NOT_UTF8 = os.fsdecode(b"sc\xe4n")


def an_inbox(folder: Path, n_images: int) -> Inbox:
    folder.mkdir(exist_ok=True)
    for number in range(n_images):
        file = folder / f"{number:02d}.czi"
        file.write_bytes(b"x")
        os.utime(file, (1000 + number, 1000 + number))
    return Inbox.of(str(folder))


def finish(inbox: Inbox, runs: Runs, **taking: Any) -> None:
    """Step until there is no more work; every run ends well."""
    for _ in range(200):
        if not step(inbox, runs, **taking).has_work:
            return
        runs.end_oldest()
    raise AssertionError("there is always more work")


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_after(monkeypatch: pytest.MonkeyPatch, n_operations: int) -> Iterator[list[str]]:
    """Kill after so many operations that last: files written, named or removed, runs asked for.

    Each is cut off both before and after it was done.
    """
    done: list[str] = []

    def counted(name: str, operation: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if len(done) == n_operations:
                raise Killed(f"before {name}")
            result = operation(*arguments, **keywords)
            done.append(name)
            return result

        return call

    with monkeypatch.context() as patch:
        for module in (ledger_module, memory_module, quarantine_module):
            patch.setattr(module, "write_whole", counted("write", module.write_whole))
        for name in ("replace", "hardlink_to", "unlink", "write_bytes"):
            patch.setattr(Path, name, counted(name, getattr(Path, name)))
        patch.setattr(Runs, "start", counted("start", Runs.start))
        yield done


def story(inbox: Inbox, runs: Runs) -> None:
    """Two images that end well, one that crashes once, one that fails, one with bad settings."""
    for _ in range(12):
        standing = step(inbox, runs, limit=2)
        for run in runs.going_on:
            name = Path(str(runs.asked[run][1]["source"])).stem
            if name == "01" and run not in runs.ended and not runs.crashed_once:
                runs.crashed_once = True
                runs.ended[run] = Outcome("crashed", "killed")
            elif name == "02":
                runs.ended[run] = Outcome("failed", "cut off")
            else:
                runs.ended[run] = Outcome("done")
        if not standing.has_work:
            return
    raise AssertionError("the story does not end")


def the_end(folder: Path, runs: Runs) -> dict[str, Any]:
    found = Ledger(folder / ".ledger")
    return {
        "done": sorted(record.path for record in found.records("done")),
        "quarantined": {r.path: r.reason.split("\n")[0] for r in found.records("quarantined")},
        "open": found.records("open"),
        "texts": sorted(file.name for file in (folder / "quarantine").glob("*")),
        "drafts": sorted(file.name for file in (folder / ".ledger").rglob(".*.tmp")),
        "sources": sorted(Path(source).name for source in runs.sources),
    }


def test_cut_off_at_any_operation_it_ends_as_if_nothing_had_happened(tmp_path, monkeypatch):
    n_operations = 0
    while True:
        folder = tmp_path / f"{n_operations}"
        inbox, runs = an_inbox(folder, 4), Runs(limit=2)
        runs.crashed_once = False
        (folder / "03.yaml").write_text("tiles: {overlaps: 3}")
        was_killed = False
        with killed_after(monkeypatch, n_operations) as done:
            try:
                story(inbox, runs)
            except Killed:
                was_killed = True
        if was_killed:
            story(inbox, runs)
        end = the_end(folder, runs)
        end.pop("drafts")  # a draft that a kill left is nobody's record
        assert end == {
            "done": ["00.czi", "01.czi"],
            "quarantined": {
                "02.czi": "cut off",
                "03.czi": "03.yaml: tiles.overlaps: no such key (got 3)",
            },
            "open": [],
            "texts": ["02.czi.txt", "03.czi.txt"],
            "sources": ["00.czi", "01.czi", "01.czi", "02.czi"],
        }, done
        if not was_killed:
            break
        n_operations += 1
    assert n_operations > 40, "operations that could be cut off"


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_never_more_than_the_limit_oldest_first_and_none_is_lost(tmp_path, limit):
    inbox, runs = an_inbox(tmp_path / "inbox", 20), Runs(limit)
    finish(inbox, runs, limit=limit)
    assert [Path(source).name for source in runs.sources] == [f"{n:02d}.czi" for n in range(20)]
    assert len(inbox.ledger.records("done")) == 20
    finish(inbox, runs, limit=limit)
    assert len(runs.asked) == 20, "and never twice"


def test_one_that_is_claimed_twice_is_claimed_once(tmp_path):
    inbox = an_inbox(tmp_path / "inbox", 0)
    inbox.ledger.prepare()
    claims = [inbox.ledger.claim(Record(key="k", path="a", target="b")) for _ in range(3)]
    assert claims == [True, False, False]


def test_a_run_that_crashes_again_and_again_is_quarantined(tmp_path):
    inbox, runs = an_inbox(tmp_path / "inbox", 1), Runs()
    for _ in range(3):
        step(inbox, runs, max_crashes=3)
        runs.end_oldest(Outcome("crashed", "signal 9"))
    standing = step(inbox, runs, max_crashes=3)
    assert not standing.has_work
    assert len(runs.asked) == 3
    text = (tmp_path / "inbox" / "quarantine" / "00.czi.txt").read_text()
    assert "3 runs ended without a result" in text
    assert "signal 9" in text
    assert (tmp_path / "inbox" / "00.czi").read_bytes() == b"x", "the file is where it was"


def test_an_image_that_another_run_is_at_work_on_waits_and_keeps_nobody_else_waiting(
    tmp_path,
):
    inbox, runs = an_inbox(tmp_path / "inbox", 2), Runs()
    step(inbox, runs, limit=1)
    runs.end_oldest(Outcome("busy", "another run is writing it"))
    step(inbox, runs, limit=1)
    assert [Path(source).name for source in runs.sources] == ["00.czi", "01.czi"]
    runs.end_oldest()
    assert step(inbox, runs, limit=1).has_work
    assert len(runs.asked) == 2
    (record,) = inbox.ledger.records("open")
    inbox.ledger.update(replace(record, not_before=0.0))
    finish(inbox, runs, limit=1)
    assert len(runs.asked) == 3
    assert len(inbox.ledger.records("done")) == 2


def test_a_run_that_the_server_forgot_is_asked_for_again(tmp_path):
    inbox, runs = an_inbox(tmp_path / "inbox", 1), Runs()
    step(inbox, runs)
    runs.outcomes = lambda _: {}
    step(inbox, runs)
    assert len(runs.asked) == 2


@pytest.mark.parametrize("how", ["text", "settings", "anew"])
def test_a_quarantined_image_is_tried_again_when_a_person_says_so(tmp_path, how):
    folder = tmp_path / "inbox"
    inbox, runs = an_inbox(folder, 1), Runs()
    step(inbox, runs)
    runs.end_oldest(Outcome("failed", "no luck"))
    assert not step(inbox, runs).has_work
    assert not step(inbox, runs).has_work
    if how == "text":
        (folder / "quarantine" / "00.czi.txt").unlink()
    elif how == "settings":
        (folder / "00.yaml").write_text("tiles: {overlap: 4}")
    else:
        (folder / "00.czi").write_bytes(b"whole now")
    finish(inbox, runs)
    assert len(runs.asked) == 2
    assert not list((folder / "quarantine").glob("*"))
    assert len(inbox.ledger.records("done")) == 1


def test_many_that_are_tried_again_keep_to_the_limit(tmp_path):
    folder = tmp_path / "inbox"
    inbox, runs = an_inbox(folder, 10), Runs(limit=2)
    (folder / "patchworks.yaml").write_text("tiles: {overlap: none}")
    assert not step(inbox, runs, limit=2).has_work
    assert len(list((folder / "quarantine").glob("*"))) == 10
    (folder / "patchworks.yaml").write_text("tiles: {overlap: 4}")
    finish(inbox, runs, limit=2)
    assert len(inbox.ledger.records("done")) == 10
    assert all(parameters["tiles"]["overlap"] == 4 for _, parameters in runs.asked.values())


def test_what_is_not_complete_waits_and_is_given_up_in_the_end(tmp_path):
    folder = tmp_path / "inbox"
    inbox, runs = an_inbox(folder, 0), Runs()
    (folder / "a.zarr" / "0").mkdir(parents=True)
    (folder / "a.zarr" / "0" / "chunk").write_bytes(b"x")
    assert step(inbox, runs).n_unsettled == 1
    assert not step(inbox, runs, give_up_s=1e-9).has_work
    assert "no metadata" in (folder / "quarantine" / "a.zarr.txt").read_text()
    assert runs.asked == {}


def test_an_unsettled_image_is_not_touched(tmp_path):
    inbox, runs = an_inbox(tmp_path / "inbox", 1), Runs()
    standing = step(inbox, runs, settle_s=60)
    assert (standing.n_unsettled, standing.has_work) == (1, False)
    assert runs.asked == {}


class TestSettings:
    def test_each_group_is_taken_from_the_nearest_file(self, tmp_path):
        folder = tmp_path / "inbox"
        inbox, runs = an_inbox(folder, 0), Runs()
        (folder / "alice").mkdir()
        (folder / "alice" / "scan.ome.tif").write_bytes(b"x")
        (folder / "patchworks.yaml").write_text(
            "tiles: {overlap: 1}\nsegmenter: {name: threshold, value: 5}\n"
        )
        (folder / "alice" / "patchworks.yml").write_text("tiles: {overlap: 2}\n")
        (folder / "alice" / "scan.yaml").write_text("deployment: process image/gpu\n")
        default = Settings(tiles=Tiles(overlap=9), selection={"level": 1})
        intake(inbox, runs, default).step()
        ((deployment, said),) = runs.asked.values()
        assert deployment == "process image/gpu"
        assert (said["tiles"]["overlap"], said["selection"]["level"]) == (2, 1)
        assert (said["segmenter"]["name"], said["segmenter"]["value"]) == ("threshold", 5)
        assert said["target"] == str(folder / "results" / "alice" / "scan.ome.zarr")
        assert "conversion" not in said, "as the flow has it"

    @pytest.mark.parametrize(
        "content, said",
        [
            ("tiles: [", "not a YAML file"),
            ("- 3", "expected groups"),
            ("tile: {overlap: 3}", "tile: no such key"),
            ("segmenter: {name: threshold, valu: 3}", "valu"),
            ("labels: {pyramid_levels: 0}", "greater than or equal to 1"),
            ("segmenter: {import: 'os:system'}", "refused"),
            ("cluster: {kind: class, cluster_class: a.B}", "refused"),
            ("cluster: {host: 0.0.0.0}", "refused"),
            ("labels: {write_to: /etc/labels.zarr}", "refused"),
            ("run: {stage_dir: /etc}", "refused"),
        ],
    )
    def test_bad_settings_are_the_reason_in_the_quarantine(self, tmp_path, content, said):
        folder = tmp_path / "inbox"
        inbox, runs = an_inbox(folder, 1), Runs()
        (folder / "00.yaml").write_text(content)
        assert not step(inbox, runs).has_work
        text = (folder / "quarantine" / "00.czi.txt").read_text()
        assert "00.yaml: " in text
        assert said in text
        assert runs.asked == {}

    def test_whoever_trusts_the_inbox_may_say_everything(self, tmp_path):
        inbox, runs = an_inbox(tmp_path / "inbox", 1), Runs()
        (tmp_path / "inbox" / "00.yaml").write_text("segmenter: {import: 'a.b:c'}")
        step(inbox, runs, trust_settings=True)
        ((_, said),) = runs.asked.values()
        assert said["segmenter"] == {"import": "a.b:c", "kwargs": None}


def test_results_never_share_a_name(tmp_path):
    folder = tmp_path / "inbox"
    inbox, runs = an_inbox(folder, 0), Runs()
    for name in ("scan.czi", "scan.lif", "scan.ome.tif"):
        (folder / name).write_bytes(b"x")
    finish(inbox, runs)
    targets = {
        Path(said["source"]).name: Path(said["target"]).name for _, said in runs.asked.values()
    }
    assert sorted(targets.values())[-1] == "scan.ome.zarr"
    assert len(set(targets.values())) == 3
    (folder / "scan.czi").write_bytes(b"anew")
    finish(inbox, runs)
    again = list(runs.asked.values())[-1][1]
    assert Path(again["target"]).name == targets["scan.czi"], "a file keeps the name it was given"


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda folder: (folder / "loop.czi").symlink_to("loop.czi"), "loop.czi"),
        (lambda folder: (folder / NOT_UTF8).mkdir(), "name is not UTF-8"),
        (lambda folder: (folder / f"{NOT_UTF8}.czi").touch(), "name is not UTF-8"),
    ],
    ids=["loop", "folder", "file"],
)
def test_an_entry_that_cannot_be_looked_at_is_said_once_and_stops_no_other(
    tmp_path, caplog, spoil, said
):
    folder = tmp_path / "inbox"
    inbox, runs = an_inbox(folder, 2), Runs()
    spoil(folder)
    finish(inbox, runs)
    finish(inbox, runs)
    assert [Path(source).name for source in runs.sources] == ["00.czi", "01.czi"]
    assert len([m for m in caplog.messages if said in m]) == 1, caplog.messages
    assert not list((folder / ".ledger").rglob(".*.tmp"))


def test_an_image_whose_name_leaves_no_room_for_an_ending_is_quarantined(tmp_path):
    folder = tmp_path / "inbox"
    inbox, runs = an_inbox(folder, 1), Runs()
    for letter in "ab":
        (folder / f"{'x' * 250}{letter}.czi").write_bytes(b"x")
    step(inbox, runs)
    runs.ended = dict.fromkeys(runs.asked, Outcome("failed", "no luck"))
    assert not step(inbox, runs).has_work
    assert len(inbox.ledger.records("quarantined")) == 3
    texts = list((folder / "quarantine").iterdir())
    assert len(texts) == 3
    for text in texts:
        text.unlink()
    assert step(inbox, runs).n_open == 3, "tried again when its text is deleted"


def test_results_cannot_go_into_the_inbox_itself_whatever_it_is_called(tmp_path):
    folder = an_inbox(tmp_path / "inbox", 0).work_dir
    (tmp_path / "link").symlink_to(folder)
    for same in (folder, tmp_path / "link", folder / "a" / "..", folder.as_uri()):
        with pytest.raises(InputError, match=r"the inbox itself.*inbox/results"):
            Inbox.of(str(folder), str(same))
    with pytest.raises(InputError, match="the inbox itself"):
        Inbox.of("memory://in", "memory://in/", str(tmp_path))


@pytest.mark.parametrize("then, now", [("inbox/out", None), ("inbox/out", "elsewhere"), (".", ".")])
def test_a_result_is_never_taken_as_a_new_image_wherever_it_lies(tmp_path, then, now):
    folder = tmp_path / "inbox"
    an_inbox(folder, 1)
    (folder / "inbox").mkdir()  # results above the inbox: those of this folder lie in the inbox
    (folder / "inbox" / "deep.czi").write_bytes(b"x")
    inbox, runs = Inbox.of(str(folder), str(tmp_path / then)), Runs()
    step(inbox, runs)
    for _, said in runs.asked.values():
        result = Path(said["target"])
        result.mkdir(parents=True)
        (result / "zarr.json").write_text("{}")
    finish(inbox, runs)
    later = Inbox.of(str(folder), now and str(tmp_path / now))
    finish(later, runs)
    assert sorted(Path(source).name for source in runs.sources) == ["00.czi", "deep.czi"]


def test_a_damaged_record_costs_its_own_image_a_second_look(tmp_path):
    inbox, runs = an_inbox(tmp_path / "inbox", 2), Runs()
    step(inbox, runs)
    (first, *_) = (tmp_path / "inbox" / ".ledger" / "open").glob("*.json")
    first.write_bytes(b"")
    for _ in range(3):
        runs.end_oldest()
    finish(inbox, runs)
    assert len(inbox.ledger.records("done")) == 2


def test_files_of_a_bucket_are_copied_here_and_the_copy_goes(tmp_path):
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pipe_file("/bucket/in/a.czi", b"content")
    with pytest.raises(InputError, match="results="):
        Inbox.of("memory://bucket/in")
    inbox = Inbox.of("memory://bucket/in", str(tmp_path / "out"), str(tmp_path / "work"))
    runs = Runs()
    step(inbox, runs)
    (source,) = runs.sources
    assert Path(source).read_bytes() == b"content"
    finish(inbox, runs)
    assert not Path(source).exists()
    assert files.cat_file("/bucket/in/a.czi") == b"content"
    files.store.clear()


def test_a_watcher_says_each_image_until_somebody_claims_it(tmp_path):
    inbox, runs = an_inbox(tmp_path / "inbox", 2), Runs()
    inbox.ledger.prepare()
    watcher = Watcher(inbox, settle_s=0, remind_s=1000)
    assert [arrival.path for arrival in watcher.look()] == ["00.czi", "01.czi"]
    assert watcher.look() == []
    watcher.remind_s = 0
    assert len(watcher.look()) == 2
    finish(inbox, runs)
    assert watcher.look() == []
