"""The commands of a facility: `patchworks deploy`, `patchworks watch`."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WEEK_S = 7 * 86_400.0
_TWO_HEARTBEATS_S = 60.0  # a run that lives sends one every 30 s
_MOST_RUNS = 2**16


def add_facility(commands: Any) -> None:
    """Add the commands to those of `patchworks`."""
    deploy = commands.add_parser(
        "deploy",
        help="put work pools, limits, deployments and automations on the Prefect server, or bring "
        "them up to date",
    )
    deploy.set_defaults(run=_deploy)
    deploy.add_argument("--inbox", help="folder that microscopes write into")
    deploy.add_argument("--results", help="where results go (default: results in the inbox)")
    deploy.add_argument(
        "--work-dir", help="local folder of the ledger (default: the inbox, if that is a folder)"
    )
    deploy.add_argument("--cpu-runs", type=_count, help="runs at a time without a GPU (default: 2)")
    deploy.add_argument("--gpus", type=_count, help="GPUs that all runs may take (default: 1)")
    deploy.add_argument(
        "--dead-after", type=_seconds(_TWO_HEARTBEATS_S), metavar="SECONDS",
        help="without a heartbeat (default: as it is, 600 at first)",
    )  # fmt: skip
    deploy.add_argument(
        "--schedules",
        choices=("on", "off"),
        help="switch the schedules of inbox and clean-up on or off (default: as they are)",
    )
    deploy.add_argument(
        "--file", type=Path, help="the deployments (default: deployments/prefect.yaml)"
    )
    watch = commands.add_parser(
        "watch",
        help="emit a Prefect event for each image that has settled in an inbox, until Ctrl-C",
    )
    watch.set_defaults(run=_watch)
    watch.add_argument("inbox", help="folder, or URL of a prefix in a bucket")
    watch.add_argument("--results", help="where results go (default: results in the inbox)")
    watch.add_argument("--work-dir", help="folder of the ledger (default: the inbox)")
    watch.add_argument(
        "--settle", type=_seconds(0), default=60.0, metavar="SECONDS",
        help="for which nothing of an image may have changed (default: 60)",
    )  # fmt: skip
    watch.add_argument(
        "--every", type=_seconds(0), default=5.0, metavar="SECONDS",
        help="between two looks (default: 5)",
    )  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > _MOST_RUNS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer from 0 to {_MOST_RUNS}")
    return int(text)


def _seconds(least: float) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= _WEEK_S:  # nor is NaN
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected seconds, from {least:g} to {_WEEK_S:g}"
            )
        return value

    return parsed


def _deploy(options: argparse.Namespace) -> None:
    from flows.facility.deploy import Facility, deploy

    said = {
        "file": options.file,
        "inbox": options.inbox,
        "results": options.results,
        "work_dir": options.work_dir,
        "cpu_runs": options.cpu_runs,
        "gpus": options.gpus,
        "dead_after_s": options.dead_after,
        "schedules": {"on": True, "off": False}.get(options.schedules),
    }
    done = deploy(Facility(**{name: value for name, value in said.items() if value is not None}))
    lines = [("deployment", name) for name in done.deployments]
    lines.append(("GPU slots", f"{done.n_gpu_slots}"))
    for name, is_on in done.schedules.items():
        lines.append(("schedule", f"{name}: {'on' if is_on else 'off'}"))
    lines += [("notification", f"of {variable}") for variable in done.notified]
    for pool in ("cpu", "gpu", "light"):
        lines.append(("next", f"prefect worker start --pool {pool} --name {pool}-1"))
    for name, value in lines:
        print(f"{name:<22}{value}")  # noqa: T201


def _watch(options: argparse.Namespace) -> None:
    from flows.inbox.inbox import Inbox
    from flows.inbox.watch import Watcher, emit_settled, watch
    from flows.server import prefect_server

    inbox = Inbox.of(options.inbox, options.results, options.work_dir)
    with prefect_server(announce=True):
        print(f"{'watching':<22}{inbox.listing.location}", flush=True)  # noqa: T201
        watch(
            Watcher(inbox, settle_s=options.settle),
            every_s=options.every,
            say=functools.partial(emit_settled, inbox),
        )
