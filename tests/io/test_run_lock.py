"""Who gets a lock, who is refused, and what happens to the lock of a dead owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zarr

from patchworks.errors import TargetInUseError, TargetNotWritableError
from patchworks.io import lock_owner, run_lock
from patchworks.io.location import Location
from patchworks.io.lock_owner import LockOwner
from patchworks.io.run_lock import RunLock, lock_path_of

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys, time
from pathlib import Path
from patchworks.io.run_lock import RunLock
with RunLock(Path(sys.argv[1]), "image.zarr", run="flow-7"):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
"""

RACE = """
import os, sys, warnings
from pathlib import Path
from patchworks.errors import TargetInUseError
from patchworks.io.run_lock import RunLock
warnings.simplefilter("ignore", DeprecationWarning)  # it forks beside threads of zarr's
lock = RunLock(Path(sys.argv[1]), "image.zarr")
begin, end = os.pipe(), os.pipe()

def race():
    os.close(begin[1]), os.close(end[1])
    os.read(begin[0], 1)  # until all are there
    try:
        with lock:
            lock.check()
            os.read(end[0], 1)  # until all others have tried
            lock.check()
            return 2 if lock.previous else 1
    except TargetInUseError:
        return 0

children = []
for _ in range(20):
    child = os.fork()
    if not child:
        os._exit(race())
    children.append(child)
os.close(begin[1])
results = [os.waitpid(-1, 0)[1] for _ in children[1:]]
os.close(end[1])
results.append(os.waitpid(-1, 0)[1])
print(*sorted(map(os.waitstatus_to_exitcode, results)))
"""


def program(text: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    with program(HOLDER, path) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / ".image.zarr.lock"


@pytest.fixture
def read_only(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a read-only file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def lock_at(path: Path) -> RunLock:
    return RunLock(path, "image.zarr")


def leave(path: Path, *, age: float = 0.0, **changes) -> LockOwner:
    """Write the lock of somebody else; returns who that is."""
    owner = replace(LockOwner.of_this_process(), token="another", **changes)
    path.write_bytes(owner.to_bytes())
    os.utime(path, (time.time() - age,) * 2)
    return owner


def test_a_lock_is_there_while_it_is_held_and_leaves_nothing(path):
    n_threads = threading.active_count()
    with lock_at(path) as lock:
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        assert LockOwner.from_bytes(path.read_bytes()).pid == os.getpid()
        assert lock.previous is None
        lock.check()
    assert list(path.parent.iterdir()) == []
    assert threading.active_count() == n_threads


def test_an_error_in_the_run_gives_the_lock_up(path):
    with pytest.raises(ZeroDivisionError), lock_at(path):
        raise ZeroDivisionError
    with lock_at(path) as lock:
        assert lock.previous is None


def test_a_second_process_is_refused_and_told_who_has_it(path):
    with holder(path) as process:
        with pytest.raises(TargetInUseError) as refused, lock_at(path):
            pass
        message = str(refused.value)
        for expected in (
            "image.zarr: another run is writing it",
            f"host {os.uname().nodename}, process {process.pid}, since 20",
            "run flow-7",
            "0 s ago",
            f"delete {path}",
        ):
            assert expected in message
        process.stdin.close()
        assert process.stdout.readline() == "released\n"
    with lock_at(path):
        pass
    assert list(path.parent.iterdir()) == []


def test_a_second_lock_of_the_same_process_is_refused(path):
    with lock_at(path) as lock:
        with pytest.raises(TargetInUseError), lock_at(path):
            pass
        with pytest.raises(TargetInUseError), lock:
            pass
        lock.check()
    with lock:
        lock.check()


def test_of_many_threads_one_gets_it(path):
    won, gate = [], threading.Barrier(8)

    def run() -> None:
        gate.wait()
        try:
            with lock_at(path):
                won.append(1)
                gate.wait(30)
        except TargetInUseError:
            gate.wait(30)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("is_reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_at_once(path, is_reaped):
    with holder(path) as process:
        os.kill(process.pid, signal.SIGKILL)
        if is_reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        start = time.perf_counter()
        with lock_at(path) as lock:
            assert time.perf_counter() - start < 2
            assert (lock.previous.pid, lock.previous.run) == (process.pid, "flow-7")
            lock.check()
    assert list(path.parent.iterdir()) == []


def test_a_stopped_process_is_not_dead(path):
    with holder(path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.utime(path, (0, 0))
        with pytest.raises(TargetInUseError), lock_at(path):
            pass


def test_another_process_of_the_same_number_does_not_own_the_lock(path):
    owner = leave(path, pid=os.getppid(), started=1.0)
    with lock_at(path) as lock:
        assert lock.previous == owner


def test_a_lock_that_an_exit_of_this_process_failed_to_remove_is_taken_over(path):
    owner = leave(path)
    with lock_at(path) as lock:
        assert lock.previous == owner


@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {"machine": "a container"}])
def test_an_owner_elsewhere_lives_as_long_as_its_heart(path, where):
    owner = leave(path, age=290, pid=2**30, **where)
    with pytest.raises(TargetInUseError, match=r"heartbeat 29\d s ago"), lock_at(path):
        pass
    os.utime(path, (time.time() - 310,) * 2)
    with lock_at(path) as lock:
        assert lock.previous == owner


def test_the_age_of_a_heartbeat_is_measured_by_the_clock_of_the_file_system(path, monkeypatch):
    leave(path, host="elsewhere")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(TargetInUseError, match="0 s ago"), lock_at(path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff\x00"])
def test_a_lock_that_cannot_be_read_counts_for_a_minute(path, content):
    path.write_bytes(content)
    with pytest.raises(TargetInUseError, match="its lock cannot be read"), lock_at(path):
        pass
    os.utime(path, (time.time() - 61,) * 2)
    with lock_at(path) as lock:
        assert lock.previous is None
        lock.check()


def test_a_lock_is_read_when_it_is_written_a_moment_late(path):
    path.touch()
    writer = threading.Timer(0.02, leave, [path], {"host": "elsewhere", "user": "ana"})
    writer.start()
    with pytest.raises(TargetInUseError, match="user ana"), lock_at(path):
        pass
    writer.join()


def test_no_owner_is_made_of_impossible_numbers():
    owner = LockOwner.of_this_process()
    assert LockOwner.from_bytes(owner.to_bytes()) == owner
    for pid in (0, -1, 2**40):
        assert LockOwner.from_bytes(replace(owner, pid=pid).to_bytes()) is None


@pytest.mark.parametrize("leftover", ["stale lock", "stale lock and abandoned takeover", "none"])
def test_of_twenty_processes_exactly_one_gets_it(path, leftover):
    if leftover != "none":
        leave(path, pid=os.getppid(), started=1.0)
    if "takeover" in leftover:
        takeover = path.with_name(f"{path.name}.takeover")
        takeover.touch()
        os.utime(takeover, (time.time() - 61,) * 2)
    with program(RACE, path) as process:
        said, _ = process.communicate(timeout=60)
    assert said.split() == ["0"] * 19 + ["1" if leftover == "none" else "2"]
    assert list(path.parent.iterdir()) == []


def test_a_takeover_at_work_is_waited_for(path):
    leave(path, pid=os.getppid(), started=1.0)
    takeover = path.with_name(f"{path.name}.takeover")
    takeover.touch()
    ending = threading.Timer(0.2, takeover.unlink)
    ending.start()
    with lock_at(path) as lock:
        assert lock.previous is not None
    ending.join()
    assert list(path.parent.iterdir()) == []


def test_who_finds_a_dead_owner_looks_again_before_taking_over(path, monkeypatch):
    leave(path, pid=os.getppid(), started=1.0)
    create = run_lock._create

    def late(made: Path, content: bytes) -> None:
        if made.suffix == ".takeover":
            leave(path, host="elsewhere", user="ana")  # was quicker
        create(made, content)

    monkeypatch.setattr(run_lock, "_create", late)
    with pytest.raises(TargetInUseError, match="user ana"), lock_at(path):
        pass
    assert LockOwner.from_bytes(path.read_bytes()).user == "ana"


def test_a_run_that_was_taken_over_notices_and_leaves_the_lock_alone(path):
    with lock_at(path) as lock:
        thief = leave(path, host="elsewhere", user="ana")
        with pytest.raises(TargetInUseError, match=r"taken over by another run \(user ana"):
            lock.check()
    assert LockOwner.from_bytes(path.read_bytes()) == thief


def test_a_run_whose_lock_was_deleted_notices(path):
    with lock_at(path) as lock:
        path.unlink()
        with pytest.raises(TargetInUseError, match="is gone"):
            lock.check()


def test_the_heart_beats_and_never_for_another(path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.02)
    with lock_at(path):
        for _ in range(3):
            os.utime(path, (0, 0))
            deadline = time.monotonic() + 5
            while path.stat().st_mtime == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert path.stat().st_mtime > 1e9
        path.with_name("lock").write_bytes(replace_token(path))
        path.with_name("lock").replace(path)
        time.sleep(0.1)
        os.utime(path, (0, 0))
        time.sleep(0.1)
        assert path.stat().st_mtime == 0


def replace_token(path: Path) -> bytes:
    return replace(LockOwner.from_bytes(path.read_bytes()), token="another").to_bytes()


def test_without_hard_links_it_is_the_same(path, monkeypatch):
    def hardlink_to(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
    with lock_at(path) as lock:
        lock.check()
        with pytest.raises(TargetInUseError), lock_at(path):
            pass
    assert list(path.parent.iterdir()) == []
    leave(path, pid=os.getppid(), started=1.0)
    with lock_at(path) as lock:
        assert lock.previous is not None


def test_a_child_that_was_forked_off_does_not_give_the_lock_up(path):
    program_text = """
import os, sys, warnings
from pathlib import Path
from patchworks.io.run_lock import RunLock
warnings.simplefilter("ignore", DeprecationWarning)
path = Path(sys.argv[1])
with RunLock(path, "image.zarr") as lock:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        lock.check()
        print("held")
"""
    with program(program_text, path) as process:
        assert process.communicate(timeout=30)[0] == "held\n"
    assert list(path.parent.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / ".image.zarr.lock"
    with (
        pytest.raises(TargetNotWritableError, match=r"image\.zarr: .*cannot be made.*elsewhere$"),
        RunLock(path, "image.zarr", advice="write elsewhere"),
    ):
        pass


def test_an_unwritable_cache_is_told_how_to_be_moved(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    place = Location("s3://bucket/image.zarr")
    with (
        pytest.raises(TargetNotWritableError, match="set XDG_CACHE_HOME"),
        RunLock(lock_path_of(place), str(place)),
    ):
        pass


def test_clear_removes_what_the_dead_left_and_nothing_else(path):
    lock_at(path).clear()
    leave(path, pid=os.getppid(), started=1.0)
    lock_at(path).clear()
    assert list(path.parent.iterdir()) == []
    leave(path, host="elsewhere")
    lock_at(path).clear()
    assert path.exists()
    path.unlink()
    with lock_at(path) as lock:
        lock_at(path).clear()
        lock.check()


def test_an_error_travels_between_processes(path):
    import pickle

    with lock_at(path), pytest.raises(TargetInUseError) as refused, lock_at(path):
        pass
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


@pytest.mark.skipif(sys.platform != "linux", reason="there is /proc")
def test_a_process_that_is_hidden_from_this_user_counts_as_running(monkeypatch):
    class HiddenPath(type(Path())):
        def read_bytes(self):
            raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(lock_owner, "Path", HiddenPath)
    assert replace(LockOwner.of_this_process(), started=1.0).is_running()
    with program("pass") as process:
        process.communicate()
    assert not replace(LockOwner.of_this_process(), pid=process.pid).is_running()


class TestWhereTheLockLies:
    def test_of_an_output_in_a_folder_beside_it(self, tmp_path):
        expected = tmp_path / ".image.ome.zarr.lock"
        assert lock_path_of(Location(str(tmp_path / "image.ome.zarr"))) == expected

    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_of_a_label_image_beside_the_store_whatever_is_in_it(self, tmp_path, zarr_format):
        store = tmp_path / "plate.zarr"
        group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
        group.create_group("A/1/0")
        image = Location(str(store / "A" / "1" / "0"))
        place, expected = (
            image / "labels" / "nuclei",
            tmp_path / ".plate.zarr.A-1-0-labels-nuclei.lock",
        )
        assert lock_path_of(place, image) == expected
        group.create_group("A/1/0/labels/nuclei")
        assert lock_path_of(place, image) == expected
        assert lock_path_of(place) == expected

    def test_one_for_each_label_image(self, tmp_path):
        image = Location(str(tmp_path / "image.zarr"))
        found = {lock_path_of(image / "labels" / name, image) for name in ("nuclei", "cells")}
        assert found == {tmp_path / f".image.zarr.labels-{n}.lock" for n in ("nuclei", "cells")}

    def test_the_same_by_whatever_way_the_output_is_named(self, tmp_path):
        (tmp_path / "real" / "image.zarr").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        (tmp_path / "alias.zarr").symlink_to(tmp_path / "real" / "image.zarr")
        images = [
            Location(str(tmp_path / name))
            for name in (
                "real/image.zarr",
                "link/image.zarr",
                "alias.zarr",
                "link/../real/image.zarr",
            )
        ]
        assert len({lock_path_of(image / "labels" / "x", image) for image in images}) == 1
        assert len({lock_path_of(images[i]) for i in (0, 1, 3)}) == 1

    def test_of_a_url_in_the_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        places = [Location(f"s3://bucket/{name}.zarr") for name in "ab"]
        found = [lock_path_of(place) for place in places]
        assert {path.parent for path in found} == {tmp_path / "patchworks" / "locks"}
        assert len(set(found)) == 2

    def test_of_a_store_in_a_folder_that_cannot_be_written_in_the_cache(
        self, tmp_path, monkeypatch, read_only
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        image = Location(str(read_only / "image.zarr"))
        found = lock_path_of(image / "labels" / "nuclei", image)
        assert found.parent == tmp_path / "patchworks" / "locks"
        assert lock_path_of(image).parent == read_only
        with (
            pytest.raises(TargetNotWritableError, match="Read-only file system"),
            RunLock(lock_path_of(image), "image.zarr"),
        ):
            pass
