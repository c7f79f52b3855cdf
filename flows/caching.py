"""When a task run shows as Cached: its stage has kept what the same work returned before.

What tasks return is kept in the stage itself (`results/`), so that it goes when the stage goes. The
key covers what decides the stage (image content, function with its weights and parameters, tiles),
the stage's own id, the version of patchworks and the batch. Done is what the stage says: a batch is
only looked up once all of its tiles or regions are marked there; else it runs, and runs what is
missing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
from prefect.context import TaskRunContext

from patchworks.fingerprint import digest

RESULTS = "results"
"""Folder of the stage that holds them."""


@dataclass(frozen=True)
class StageOf:
    """A stage as tasks are told of it.

    Parameters
    ----------
    root : str
        Its folder, or its URL.
    id : str
        What decides what is in it, and which of several made in the same place it is.
    attempt : str
        Names the try, where the stage wants to know.
    """

    root: str
    id: str
    attempt: str = ""

    @classmethod
    def of(cls, root: str | os.PathLike[str], *decided_by: object, attempt: str = "") -> StageOf:
        """Return the stage at `root`, whose content is decided by the values given."""
        return cls(str(root), digest(version("patchworks"), *decided_by), attempt)


def key_of(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Return what the result of a task run is kept under: its task, its stage, its indices."""
    stage: StageOf = parameters["stage"]
    rest = sorted((name, repr(value)) for name, value in parameters.items() if name != "stage")
    return f"{context.task.name.replace(' ', '-')}-{digest(stage.id, rest)}"


CACHED: dict[str, Any] = {
    "cache_policy": CacheKeyFnPolicy(cache_key_fn=key_of),
    "persist_result": True,
    "result_serializer": "json",
}
"""Options of a task whose results are kept in its stage."""

UNCACHED: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
"""Options of a task that is quick, or that must see for itself."""


def kept_in(stage: StageOf, *, is_done: bool) -> dict[str, Any]:
    """Return the options of a task run over a batch of a stage.

    Parameters
    ----------
    stage : StageOf
        Where results are kept; a stage that is no local folder keeps none.
    is_done : bool
        Whether the stage says that all of the batch is done; else what was kept of it is not
        looked at.
    """
    if "://" in stage.root:
        return UNCACHED
    return {"result_storage": Path(stage.root) / RESULTS, "refresh_cache": not is_done}
