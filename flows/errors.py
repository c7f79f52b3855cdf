"""The errors of the flows, beside those of the library."""

from patchworks.errors import PatchworksError


class ServerError(PatchworksError, RuntimeError):
    """No Prefect server answers: the configured one is silent, or our own did not start."""
