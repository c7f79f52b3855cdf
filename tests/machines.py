"""Machines that are not there: control groups in real files, and GPUs in a fake NVML library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from patchworks.execution import machine
from tests.nvml import FakeCard, FakeNvml

GIB = 2**30


def control_groups(
    folder: Path, patch: pytest.MonkeyPatch, groups: dict[str, tuple[str, str, int]]
) -> None:
    """Lay out groups as limit, use, and cached part of the use; this process is in the deepest."""
    for group, (limit, used, cached) in groups.items():
        place = folder / "fs" / group
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.max").write_text(limit + "\n")
        (place / "memory.current").write_text(used + "\n")
        (place / "memory.stat").write_text(f"anon 70\ninactive_file {cached}\n")
    deepest = max(groups, key=len)
    (folder / "own").write_text(f"0::/{deepest}\n")
    patch.setattr(machine, "CGROUPS", folder / "fs")
    patch.setattr(machine, "OWN_CGROUP", folder / "own")


def pretend(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    gib: float,
    n_cores: int,
    gpus: Sequence[FakeCard] = (),
    machine_gib: float = 4096,
) -> None:
    """Have this process in a container of a larger machine, with so much memory free."""
    limit = int(gib * GIB)
    control_groups(folder, patch, {"a": ("max", "0", 0), "a/b": (str(limit), "0", 0)})
    whole = psutil.virtual_memory()._replace(
        total=int(machine_gib * GIB), available=int(machine_gib * GIB)
    )
    patch.setattr(machine.psutil, "virtual_memory", lambda: whole)
    patch.setattr(os, "cpu_count", lambda: n_cores)
    patch.setattr(os, "sched_getaffinity", lambda _: set(range(n_cores)), raising=False)
    FakeNvml(list(gpus)).install(patch)
