"""The errors of the flows, beside those of the library."""

from patchworks.errors import PatchworksError


class ServerError(PatchworksError, RuntimeError):
    """No Prefect server answers: the configured one is silent, or our own did not start."""


class HistoryError(ServerError):
    """The folder that keeps the history of runs cannot be used."""


class HistoryWarning(UserWarning):
    """The history of this run is not kept, and why."""
