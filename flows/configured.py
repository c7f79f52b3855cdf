"""Which Prefect server is configured."""

import os

from prefect.settings import PREFECT_API_URL


def configured_url() -> str | None:
    """Return the URL of the API of the configured server, or None.

    Prefect reads the environment when it is imported. A URL that was set later, or by the main
    thread's `prefect_server` for a new thread, stands in the environment alone.
    """
    return PREFECT_API_URL.value() or os.environ.get("PREFECT_API_URL") or None
