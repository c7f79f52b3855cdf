"""The name of a flow run on lists and pages: what is done with which file."""

from __future__ import annotations

import re
from collections.abc import Callable

from prefect.runtime import flow_run


def named(verb: str, parameter: str) -> Callable[[], str]:
    """Return what Prefect asks for the name of a flow run.

    Parameters
    ----------
    verb : str
        What is done.
    parameter : str
        The flow's parameter that holds the path or URL it is done with.
    """

    def name() -> str:
        return f"{verb} {last_part(str(flow_run.parameters[parameter]))}"

    return name


def last_part(place: str) -> str:
    """Return the last part of a path or URL: whole, it would fill the page's first line.

    Examples
    --------
    >>> last_part("/scans/2026/scan.ome.zarr/"), last_part("s3://bucket/scan.czi")
    ('scan.ome.zarr', 'scan.czi')
    """
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1] or place
