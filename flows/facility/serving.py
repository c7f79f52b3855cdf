"""The deployments of a file, served by one process: no work pools and no workers are needed."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import serve
from prefect.client.orchestration import get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Schedule
from prefect.utilities.templating import apply_values

from flows.facility.automations import DEAD_AFTER_S, automations, ensure_automations
from flows.facility.deploy import PREFECT_FILE, content_of
from flows.server import prefect_server


def serve_all(
    file: Path = PREFECT_FILE,
    *,
    inbox: str | None = None,
    with_gpu: bool = False,
    limit: int = 4,
    dead_after_s: float = DEAD_AFTER_S,
) -> None:
    """Serve the deployments of a file until Ctrl-C, on the configured Prefect server or an own one.

    Parameters
    ----------
    file : Path
        The deployments.
    inbox : str, optional
        Folder that microscopes write into.
    with_gpu : bool
        Whether those of the work pool ``gpu`` are among them.
    limit : int
        Runs at a time. A pass over the inbox is one, and so is each of its images.
    dead_after_s : float
        Seconds without a heartbeat after which a run counts as dead.
    """
    folder = str(Path(inbox).expanduser().absolute()) if inbox else ""
    said = {
        "PATCHWORKS_VERSION": version("patchworks"),
        "PATCHWORKS_INBOX": folder,
        "PATCHWORKS_RESULTS": f"{folder}/results" if folder else "",
        "PATCHWORKS_WORK_DIR": "",
    }
    os.environ.update(said)
    content = content_of(file)
    os.environ.update(content["definitions"]["env"])
    with prefect_server(announce=True):
        with get_client(sync_client=True) as client:
            ensure_automations(client, automations([], dead_after_s=dead_after_s))
        pools = ("cpu", "light", "gpu") if with_gpu else ("cpu", "light")
        wanted = [each for each in content["deployments"] if each["work_pool"]["name"] in pools]
        serve(*[deployment_of(each) for each in wanted], limit=limit)


def deployment_of(said: dict[str, Any]) -> RunnerDeployment:
    """Return what is served for an entry of the file."""
    triggers = said.get("triggers", [])  # what they say of events is filled in by the server
    template = {key: value for key, value in said.items() if key not in ("triggers", "work_pool")}
    filled: dict[str, Any] = apply_values(template, dict(os.environ))
    limit = filled.get("concurrency_limit", {}).get("limit")
    flow: Any = load_flow_from_entrypoint(filled["entrypoint"])
    made: RunnerDeployment = flow.to_deployment(
        name=filled["name"],
        parameters=filled.get("parameters"),
        tags=filled.get("tags"),
        version=filled.get("version"),
        concurrency_limit=limit,
        enforce_parameter_schema=True,
        schedules=[_schedule(each) for each in filled.get("schedules", [])] or None,
        triggers=[DeploymentEventTrigger.model_validate(each) for each in triggers] or None,
    )
    return made


def _schedule(said: dict[str, Any]) -> Schedule:
    interval = said.get("interval")
    return Schedule(
        interval=timedelta(seconds=interval) if interval else None,
        cron=said.get("cron"),
        active=said["active"],
        slug=said["slug"],
    )
