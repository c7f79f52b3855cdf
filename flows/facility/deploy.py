"""`patchworks deploy`: everything that a facility's server needs, made or brought up to date.

::

    work pools ─► GPU slots ─► deployments of prefect.yaml ─► what people had set ─► automations

Called again it changes nothing but what is new: schedules that were switched on stay on, limits and
parameters that were set in the UI stay, and so do schedules and notifications that were added.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint

from flows.configured import configured_url
from flows.errors import ServerError
from flows.facility.automations import automations, dead_after_of, ensure_automations
from flows.facility.blocks import ensure_blocks
from flows.facility.pools import ensure_gpu_slots, ensure_pools
from flows.server import prefect_server
from patchworks.errors import InputError

PREFECT_FILE = Path("deployments") / "prefect.yaml"
INBOX = "process inbox/inbox"
NIGHTLY = "clean up/nightly"


@dataclass(frozen=True, kw_only=True)
class Facility:
    """What is said of a facility; what is left out stays as it is on the server.

    Parameters
    ----------
    file : Path
        The deployments.
    inbox, results : str, optional
        Folder that microscopes write into, and where results go.
    work_dir : str, optional
        Local folder of the ledger, which an inbox in a bucket needs.
    cpu_runs, gpus : int, optional
        Runs at a time in the pool cpu; GPUs that runs may take, which is also the limit of the
        pool gpu.
    dead_after_s : float, optional
        Seconds without a heartbeat after which a run counts as dead.
    schedules : bool, optional
        Switch all schedules on or off.
    """

    file: Path = PREFECT_FILE
    inbox: str | None = None
    results: str | None = None
    work_dir: str | None = None
    cpu_runs: int | None = None
    gpus: int | None = None
    dead_after_s: float | None = None
    schedules: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What is on the server now.

    Parameters
    ----------
    deployments : tuple of str
        Names of the deployments.
    n_gpu_slots : int
        GPUs that runs may take.
    notified : tuple of str
        Environment variables of which a block was made now.
    schedules : mapping of str to bool
        Whether each schedule is switched on, by deployment.
    """

    deployments: tuple[str, ...]
    n_gpu_slots: int
    notified: tuple[str, ...] = ()
    schedules: Mapping[str, bool] = field(default_factory=dict)


def deploy(facility: Facility) -> Deployed:
    """Make or bring up to date all that a facility's server needs.

    Raises
    ------
    InputError
        If the file of the deployments is not there, or a folder or URL cannot be used.
    ServerError
        If no server is configured, it does not answer, or refuses a deployment.
    """
    names = names_in(facility.file)
    if not configured_url():
        raise ServerError(
            "no Prefect server is configured: start one (`prefect server start`), and set "
            "PREFECT_API_URL, such as http://127.0.0.1:4200/api"
        )
    with prefect_server(), get_client(sync_client=True) as client:
        before = {name: _read(client, name) for name in names}
        inbox = before.get(INBOX)
        variables = variables_of(facility, inbox.parameters if inbox is not None else {})
        ensure_pools(client, {"cpu": facility.cpu_runs, "gpu": facility.gpus})
        n_slots = ensure_gpu_slots(client, facility.gpus)
        for name, said in zip(names, content_of(facility.file)["deployments"], strict=True):
            _name_added_schedules(client, before[name], said)
        _run_prefect(facility.file, variables)
        for name in names:
            _keep_what_people_set(client, name, before[name], facility)
        blocks = ensure_blocks()
        dead_after_s = facility.dead_after_s
        if dead_after_s is None:
            dead_after_s = dead_after_of(client)
        ensure_automations(client, automations(blocks.values(), dead_after_s=dead_after_s))
        after = {name: _read(client, name) for name in names}
    return Deployed(
        deployments=tuple(names),
        n_gpu_slots=n_slots,
        notified=tuple(blocks),
        schedules={
            name: any(schedule.active for schedule in found.schedules)
            for name, found in after.items()
            if found is not None and found.schedules
        },
    )


def content_of(file: Path) -> dict[str, Any]:
    """Return what a file of deployments says.

    Raises
    ------
    InputError
        If it is not there, or no such file.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror or error}); call this in a clone of "
            f"patchworks, or name the file with --file"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not a YAML file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("deployments"), list):
        raise InputError(f"{file}: no list 'deployments' in it; see deployments/prefect.yaml")
    return content


def names_in(file: Path) -> list[str]:
    """Return the names of the deployments in a file, as ``flow name/deployment name``."""
    return [
        f"{load_flow_from_entrypoint(said['entrypoint']).name}/{said['name']}"
        for said in content_of(file)["deployments"]
    ]


def _read(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _name_added_schedules(
    client: SyncPrefectClient, before: DeploymentResponse | None, said: Mapping[str, Any]
) -> None:
    """Give a slug to the schedules that have none, as those made in the UI.

    Where all have one, `prefect deploy` changes those of the file alone; otherwise it deletes all
    and makes those of the file anew. It refuses a file without slugs where the server has some.
    """
    of_file = said.get("schedules")
    if before is None or not of_file or not all(each.get("slug") for each in of_file):
        return
    for schedule in before.schedules:
        if schedule.slug is None:
            slug, kept = f"added-{schedule.id.hex[:8]}", schedule.parameters  # else they are lost
            client.update_deployment_schedule(before.id, schedule.id, slug=slug, parameters=kept)


def variables_of(facility: Facility, known: Mapping[str, Any]) -> dict[str, str]:
    """Return what the file's variables stand for.

    Parameters
    ----------
    facility : Facility
        What is said of it.
    known : mapping
        Parameters of the inbox that is on the server.

    Raises
    ------
    InputError
        If the inbox is a URL, and no local folder is said for its ledger.
    """
    place = facility.inbox or known.get("inbox") or ""
    results = facility.results or ("" if facility.inbox else known.get("results") or "")
    work_dir = facility.work_dir or known.get("work_dir") or ""
    if "://" in work_dir:
        raise InputError(f"--work-dir {work_dir}: a URL; expected a local folder for the ledger")
    if facility.inbox and "://" in facility.inbox and not work_dir:
        raise InputError(
            f"--inbox {facility.inbox}: a URL, beside which no ledger can lie; say a local folder "
            f"for it with --work-dir"
        )
    return {
        "PATCHWORKS_VERSION": version("patchworks"),
        "PATCHWORKS_INBOX": _absolute(place),
        "PATCHWORKS_RESULTS": _absolute(results or (f"{place}/results" if place else "")),
        "PATCHWORKS_WORK_DIR": _absolute(work_dir),
    }


def _run_prefect(file: Path, variables: Mapping[str, str]) -> None:
    """Let Prefect's own command read the file."""
    prefect = [sys.executable, "-m", "prefect", "--no-prompt", "deploy"]
    done = subprocess.run(
        [*prefect, "--prefect-file", str(file.absolute()), "--all"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServerError(
            f"{file}: `prefect deploy` ended with status {done.returncode}:\n"
            f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )


def _absolute(place: str) -> str:
    return str(Path(place).expanduser().absolute()) if place and "://" not in place else place


def _keep_what_people_set(
    client: SyncPrefectClient, name: str, before: DeploymentResponse | None, facility: Facility
) -> None:
    """Put back what `prefect deploy` has overwritten with the file's values."""
    after = _read(client, name)
    if after is None:
        return
    were = {each.slug: each for each in before.schedules} if before else {}
    for schedule in after.schedules:
        was = were.get(schedule.slug, schedule)
        is_on = was.active if facility.schedules is None else facility.schedules
        kept = was.parameters if schedule.slug is not None else {}
        wanted: dict[str, Any] = {"active": is_on, "parameters": {**schedule.parameters, **kept}}
        if wanted != {"active": schedule.active, "parameters": schedule.parameters}:
            client.update_deployment_schedule(after.id, schedule.id, **wanted)
    if before is not None and name in (INBOX, NIGHTLY):
        said = {"inbox", "results", "folders"} if facility.inbox or facility.results else set()
        said |= {"work_dir"} if facility.work_dir else set()
        kept = {key: value for key, value in before.parameters.items() if key not in said}
        merged = {**after.parameters, **kept}
        if merged != after.parameters:
            client.update_deployment(after.id, DeploymentUpdate(parameters=merged))
