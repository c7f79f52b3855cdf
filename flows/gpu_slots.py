"""GPU slots across flow runs: a run on GPUs waits until as many are free as it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from flows.cluster import ClusterSpec
from flows.errors import ServerError
from patchworks.execution.gpus import visible_gpus

GPU_SLOTS = "PATCHWORKS_GPU_SLOTS"
"""Environment variable: the global concurrency limit that counts GPUs in use; set by deployments to
the work pool `gpu`. Without it nothing is counted."""

LEASE_S = 120.0
"""Seconds after which the slots of a run that was killed are free again."""


@contextmanager
def gpu_slots(spec: ClusterSpec) -> Iterator[None]:
    """Hold a slot for each GPU that a run takes on this machine.

    Raises
    ------
    ServerError
        If there is no such limit, or it is lower than the number of GPUs.
    ClientError, MissingExtraError
        If all GPUs are asked for and there is none.
    """
    name, n_gpus = os.environ.get(GPU_SLOTS), n_gpus_of(spec)
    if not name or not n_gpus:
        yield
        return
    with ExitStack() as held:
        try:
            held.enter_context(
                concurrency(
                    name,
                    occupy=n_gpus,
                    strict=True,
                    lease_duration=LEASE_S,
                    # The GPUs are in use, whether the server can be told or not.
                    raise_on_lease_renewal_failure=False,
                )
            )
        except ConcurrencySlotAcquisitionError as error:
            raise ServerError(
                f"{n_gpus} GPU slots of the limit {name!r} ({GPU_SLOTS}) cannot be had: {error}; "
                f"set the limit to the number of GPUs with patchworks deploy --gpus"
            ) from error
        yield


def n_gpus_of(spec: ClusterSpec) -> int:
    """Return how many GPUs of this machine a run takes.

    Examples
    --------
    >>> n_gpus_of(ClusterSpec()), n_gpus_of(ClusterSpec(gpus=["0", "1"]))
    (0, 2)
    """
    if isinstance(spec.gpus, list):
        return len(spec.gpus)
    return len(visible_gpus("gpus: all")) if spec.gpus == "all" else 0
