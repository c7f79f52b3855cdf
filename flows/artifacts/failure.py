"""What failed, what is kept, how to go on: the last artifact of a run that did not end well."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext
from prefect.logging.loggers import flow_run_logger

from flows.artifacts.desk import Logger, ask, publish
from flows.artifacts.result import fenced, path_text
from flows.artifacts.units import count_text

KEY = "how-to-go-on"

MAX_MESSAGE = 4000
MAX_PARAMETER = 500
"""Characters of an error, and of a parameter, that are shown."""

LINE = 76
"""Characters of a line: what a page has no room for, it hides."""

SAID_JUST_NOW = timedelta(minutes=2)
"""A flow says itself how to go on, with counts, right before its failure hook would."""


@dataclass(frozen=True, slots=True)
class _Cause:
    """A common cause of failures: how a message tells it, and what to change."""

    name: str
    pattern: str
    advice: str


_CAUSES = (
    _Cause(
        "memory",
        r"memory|killedworker|worker died|oom|status code -9|sigkill|signal 9",
        "a worker needed more than it had. Give smaller tiles (`tile_shape`), fewer workers, or "
        "more memory for each. Tiles that are done are kept only as long as the tile shape stays.",
    ),
    _Cause(
        "segmentation function",
        r"segmentererror|shape|dtype|segmenter|' raised ",
        "it raised an error, or returned something else than one integer label per voxel in the "
        "shape of its tile. The message names the tile: try the function on that part of the "
        "image alone. A changed function starts from the first tile.",
    ),
    _Cause(
        "image",
        r"imageread|sourcenotfound|no such file|not a zarr|cannot be read|there is nothing",
        "it is not there, cannot be read, or is damaged in one place. The workers must see it "
        "under the same path as this process.",
    ),
    _Cause(
        "output",
        r"targetexists|notwritable|targetinuse|permission|no space left|another run|\block",
        "the folder is full, cannot be written, holds other labels (`overwrite`), or another run "
        "is writing there: wait for it, or write elsewhere.",
    ),
    _Cause(
        "server or network",
        r"connect|timeout|timed out|prefect server|unreachable|503|502",
        "it was away for a while. Nothing has to be changed.",
    ),
)


def publish_failure(
    message: str,
    *,
    n_done: int | None = None,
    n_total: int | None = None,
    stage: str | None = None,
    how: str | None = None,
    flow_run_id: UUID | None = None,
    logger: Logger | None = None,
) -> UUID | None:
    """Publish the markdown artifact ``how-to-go-on``; return its id, if it has one.

    Parameters
    ----------
    message : str
        What failed.
    n_done, n_total : int, optional
        Tiles that are done and kept, of how many.
    stage : str, optional
        Path or URL where they are kept.
    how : str, optional
        How to go on, as markdown; by default as the current flow run was started.
    flow_run_id : UUID, optional
        The current flow run by default.
    logger : logging.Logger, optional
        The run's by default.
    """
    if how is None:
        context = FlowRunContext.get()
        how = _how_to_run_again(context.flow_run if context else None)
    markdown = _page(message, _kept_text(n_done, n_total, stage), how)
    return publish(
        *("markdown", KEY, markdown, "This run did not end well; what is done is kept."),
        flow_run_id=flow_run_id,
        logger=logger,
    )


def say_how_to_go_on(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Log how to go on, and publish the artifact: a hook for `on_failure` and `on_crashed`."""
    logger = flow_run_logger(flow_run, flow)
    message = state.message or f"the run ended as {state.name}, without a message"
    logger.error(
        "What is done is kept. %s goes on from there; see the artifact %r.",
        "Another run of the deployment with the same parameters"
        if flow_run.deployment_id
        else "The same call",
        KEY,
    )
    if not _was_said(flow_run, state, logger):
        how = _how_to_run_again(flow_run)
        publish_failure(message, how=how, flow_run_id=flow_run.id, logger=logger)


def _was_said(flow_run: FlowRun, state: State[Any], logger: Logger) -> bool:
    """Whether the flow itself has just published the artifact, with more than a hook knows."""

    def latest(client: SyncPrefectClient) -> bool:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                key=ArtifactFilterKey(any_=[KEY]),
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]),
            ),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
        return any(a.created and a.created > state.timestamp - SAID_JUST_NOW for a in found)

    return bool(ask(latest, "what the run has said already", logger))


def _kept_text(n_done: int | None, n_total: int | None, stage: str | None) -> str:
    where = f" in `{path_text(stage)}`" if stage else ""
    if n_done is None:
        return f"What is done is kept{where}."
    of_all = "" if n_total is None else f" of {count_text(n_total)}"
    return f"{count_text(n_done)}{of_all} tiles are done and kept{where}."


def _page(message: str, kept: str, how: str) -> str:
    likely = [c for c in _CAUSES if re.search(c.pattern, message, re.IGNORECASE)]
    parts = [
        "## What failed",
        fenced(_wrapped(_shortened(message, MAX_MESSAGE))),
        "## How to go on",
    ]
    parts += [kept, how]
    if likely:
        parts += ["### What it points to", "\n".join(_bullets(likely))]
    others = [cause for cause in _CAUSES if cause not in likely]
    parts += [
        "### Common causes" if not likely else "### Other causes",
        "\n".join(_bullets(others)),
    ]
    return "\n\n".join(parts) + "\n"


def _bullets(causes: list[_Cause]) -> Iterator[str]:
    yield from (f"- **{cause.name}**: {cause.advice}" for cause in causes)


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n...\n{text[-limit // 2 :]}"


def _wrapped(text: str) -> str:
    lines = [
        textwrap.fill(line, LINE, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    ]
    return "\n".join(lines)


def _how_to_run_again(flow_run: FlowRun | None) -> str:
    """Return what to do, as markdown, with the parameters of the run."""
    if flow_run is None:
        return "Make the same call again: it goes on from there."
    parameters = _plain_parameters(flow_run.parameters or {})
    written = "\n".join(
        f"{name} = {json.dumps(_given(value), ensure_ascii=False)}"
        for name, value in parameters.items()
    )
    if flow_run.deployment_id is None:
        return (
            "Make the same call again: it goes on from there. This run was asked for:\n\n"
            f"{fenced(written)}"
        )
    given = json.dumps(flow_run.parameters, default=str)
    command = f"prefect deployment run --id {flow_run.deployment_id} --params {shlex.quote(given)}"
    return (
        "Press **Retry** on this page, or run the deployment again with the same parameters: it "
        f"goes on from there.\n\n{fenced(command, 'bash')}"
    )


def _given(value: Any) -> Any:
    """Return a group of parameters without those that nobody gave."""
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if item is not None}


def _plain_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that a person can read; objects of Python are left out."""
    shown = {}
    for name, value in parameters.items():
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            continue
        if value is not None and len(text) <= MAX_PARAMETER:
            shown[name] = value
    return shown
