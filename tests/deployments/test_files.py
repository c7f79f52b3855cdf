"""The files that an engineer starts a facility with, as far as they can be checked without one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
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
    subprocess.run(["bash", DEPLOYMENTS / "by_hand.sh", "settings", tmp_path], check=True)
    written = (tmp_path / "facility.env").read_text()
    assert (tmp_path / "facility.env").stat().st_mode & 0o777 == 0o600
    asked = set(re.findall(r"\$\{(\w+):\?write", (DEPLOYMENTS / "compose.yaml").read_text()))
    assert asked == set(re.findall(r"^(\w+)=", written, re.MULTILINE)) & asked
    again = subprocess.run(
        ["bash", DEPLOYMENTS / "by_hand.sh", "settings", tmp_path], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert again.returncode == 1
    assert "is there already" in again.stderr


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
