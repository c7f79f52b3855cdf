"""The files that an engineer starts a facility with, as far as they can be checked without one."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
BY_HAND = DEPLOYMENTS / "by_hand.sh"
COMPOSE = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())


def test_containers_listen_on_loopback_alone():
    published = [p for service in COMPOSE["services"].values() for p in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_no_file_holds_a_secret():
    for path in DEPLOYMENTS.rglob("*"):
        if path.is_file() and path.suffix != ".sh":
            for name, value in re.findall(
                r"(\w*(?:PASSWORD|AUTH_STRING|SECRET)\w*)[:=](.+)", path.read_text()
            ):
                assert value.strip().startswith(("${", "{{")), f"{path}: {name}"


def test_every_variable_that_compose_asks_for_is_in_the_settings(tmp_path):
    subprocess.run(["bash", BY_HAND, "settings", tmp_path], check=True)
    written = (tmp_path / "facility.env").read_text()
    assert (tmp_path / "facility.env").stat().st_mode & 0o777 == 0o600
    asked = set(re.findall(r"\$\{(\w+):\?write", (DEPLOYMENTS / "compose.yaml").read_text()))
    assert asked == set(re.findall(r"^(\w+)=", written, re.MULTILINE)) & asked
    again = subprocess.run(
        ["bash", BY_HAND, "settings", tmp_path], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert again.returncode == 1
    assert "is there already" in again.stderr


def bash(*arguments: object) -> str:
    done = subprocess.run(["bash", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def test_settings_can_be_read_whatever_the_folder_is_called(tmp_path):
    folder = tmp_path / 'of $HOME, "quoted" `x` \\ and spaced'
    bash(BY_HAND, "settings", folder)
    read = 'set -eu; . "$1"; echo "$PREFECT_HOME"'
    assert bash("-c", read, "bash", folder / "facility.env") == f"{folder}/prefect\n"


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    for name in ("run", "log"):
        (tmp_path / name).mkdir()
    yield tmp_path
    bash(BY_HAND, "stop", tmp_path)


KEEP = '. "$1" status "$2"; keep server TERM sleep 1000'


def test_what_is_kept_runs_until_it_is_stopped(place):
    bash("-c", KEEP, "bash", BY_HAND, place)
    assert bash(BY_HAND, "status", place) == "server runs\n"
    assert "server runs already" in bash("-c", KEEP, "bash", BY_HAND, place)
    assert bash(BY_HAND, "stop", place) == "server ended\n"
    assert list((place / "run").iterdir()) == []


@pytest.mark.parametrize("left", ["by the script before", "by an older one", "before a reboot"])
def test_a_process_that_got_the_number_of_one_that_ended_is_left_alone(place, left):
    bash("-c", KEEP, "bash", BY_HAND, place)
    bash(BY_HAND, "stop", place)
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        (place / "run" / "server.pid").write_text(f"{stranger.pid}\n")
        if left != "by an older one":
            started = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(") ")[2].split()[19]
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            said = f"{boot} 1" if left == "by the script before" else f"another-boot {started}"
            (place / "run" / "server.since").write_text(f"{said}\n")
        try:
            assert bash(BY_HAND, "status", place) == "server is stopped\n"
            assert bash(BY_HAND, "stop", place) == ""
            assert stranger.poll() is None
            assert "server started" in bash("-c", KEEP, "bash", BY_HAND, place)
        finally:
            stranger.kill()


def test_what_an_older_script_keeps_is_still_known(place):
    bash("-c", KEEP, "bash", BY_HAND, place)
    (place / "run" / "server.since").unlink()
    assert bash(BY_HAND, "status", place) == "server runs\n"
    assert bash(BY_HAND, "stop", place) == "server ended\n"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_units(tmp_path):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "prefect").symlink_to("/bin/true")
    (bin_folder / "patchworks").symlink_to("/bin/true")
    units = []
    for unit in (DEPLOYMENTS / "systemd").iterdir():
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/opt/patchworks/.venv/bin", str(bin_folder)))
        units.append(copy)
    assert units
    checked = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
