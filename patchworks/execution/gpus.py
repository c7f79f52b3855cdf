"""The NVIDIA GPUs that this process may use, and how much of their memory is free.

NVML, the library beneath ``nvidia-smi``, is asked, for it makes no context on any device. It knows
nothing of ``CUDA_VISIBLE_DEVICES``, which is read here as CUDA reads it.

NVML counts devices along the PCI bus, CUDA by default (``CUDA_DEVICE_ORDER=FASTEST_FIRST``) from
the fastest on. Where all devices are of one kind, both agree. Elsewhere a number such as ``1`` may
stand for any of them: then the device keeps that number for a name, which CUDA understands, and is
taken to have what the smallest has. UUIDs mean the same to both, and so devices are named by them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from patchworks.errors import ClientError, MissingExtraError
from patchworks.execution.machine import Memory

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A device that one process can use at a time: a card, or a MIG instance of one.

    Parameters
    ----------
    name : str
        What ``CUDA_VISIBLE_DEVICES`` is to be for it: its UUID, wherever that is known.
    product : str
        What it is, for people.
    total_bytes, free_bytes : int
        Its memory, and what of that nobody uses now.
    is_mig : bool
        Whether it is a MIG instance, of which CUDA shows a process only one.
    """

    name: str
    product: str
    total_bytes: int
    free_bytes: int
    is_mig: bool = False

    def __str__(self) -> str:
        """Name the device, and its memory."""
        free, total = self.free_bytes / 2**30, self.total_bytes / 2**30
        return f"{self.product} ({self.name}): {free:.1f} of {total:.1f} GiB free"


@dataclass(frozen=True, slots=True)
class _Device:
    """A device as NVML counts it; its memory is asked for once it is chosen."""

    uuid: str
    product: str
    read_memory: Callable[[], tuple[int, int]]
    also_called: str = ""  # what drivers before R470 call a MIG instance
    is_mig: bool = False

    def described(self) -> Gpu:
        total, free = self.read_memory()
        return Gpu(
            name=self.uuid,
            product=self.product,
            total_bytes=total,
            free_bytes=free,
            is_mig=self.is_mig,
        )


@dataclass(frozen=True, slots=True)
class _Card:
    """A card: itself, or in MIG mode its instances, of which there may be none."""

    device: _Device
    instances: tuple[_Device, ...] | None = None

    @property
    def offered(self) -> tuple[_Device, ...]:
        return (self.device,) if self.instances is None else self.instances


def visible_gpus(asked_by: str = "use_gpu=True", *, chosen: str | None = None) -> list[Gpu]:
    """Return the GPUs that this process and those it starts may use, in CUDA's order.

    Parameters
    ----------
    asked_by : str
        The parameter that asks for GPUs, for the messages.
    chosen : str, optional
        In place of this process's ``CUDA_VISIBLE_DEVICES``.

    Raises
    ------
    MissingExtraError
        If nvidia-ml-py is not installed.
    ClientError
        If there is no GPU, none is visible, or NVML cannot tell.
    """
    chosen = os.environ.get(VISIBLE) if chosen is None else chosen
    with _nvml(asked_by) as nvml:
        cards, refused = _cards(nvml)
        try:
            gpus = _chosen(cards, chosen, os.environ.get(ORDER, ""))
        except nvml.NVMLError as error:
            raise ClientError(
                f"{asked_by}: a GPU does not say how much memory it has ({error}); look at it with "
                "nvidia-smi, or leave it out with CUDA_VISIBLE_DEVICES"
            ) from error
    if gpus:
        return gpus
    if chosen is not None:
        raise ClientError(
            f"{asked_by}: no GPU is visible to this process ({VISIBLE}={chosen!r}; this machine "
            f"has {_named(cards)}); set it to what is there, or leave {asked_by} out"
        )
    raise ClientError(
        f"{asked_by}: this machine has {_named(cards)}{refused}; leave {asked_by} out"
    )


def most_free(gpus: Sequence[Gpu], n_gpus: int | None) -> list[Gpu]:
    """Return so many GPUs, those with the most free memory, in their order; None for all."""
    chosen = sorted(gpus, key=lambda gpu: -gpu.free_bytes)[:n_gpus]
    return [gpu for gpu in gpus if gpu in chosen]


def _named(cards: Sequence[_Card]) -> str:
    said = [
        f"{card.device.product} ({card.device.uuid})"
        + ("" if card.instances is None else f" in MIG mode, {len(card.instances)} instances")
        for card in cards
    ]
    return "; ".join(said) or "no GPU that may be used"


@contextmanager
def _nvml(asked_by: str) -> Iterator[Any]:
    """Yield NVML, ready to be asked; what keeps it from answering is said."""
    try:
        import pynvml
    except ImportError as error:
        raise MissingExtraError(
            f"{asked_by} needs nvidia-ml-py; install it with pip install 'patchworks[gpu]'"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        reasons = {
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "NVIDIA's driver is not installed here",
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "NVIDIA's driver is installed, but not loaded",
            pynvml.NVML_ERROR_NO_PERMISSION: "this user may not ask NVIDIA's driver",
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "NVIDIA's driver was updated: restart",
        }
        reason = reasons.get(error.value, "NVIDIA's driver does not answer")
        raise ClientError(
            f"{asked_by}: no GPU can be used on this machine: {reason} (NVML: {error}); leave "
            f"{asked_by} out, or see to it that nvidia-smi works"
        ) from error
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _cards(nvml: Any) -> tuple[list[_Card], str]:
    """Return the cards that this process may use, as NVML counts them, and why others are not."""
    cards, refused = [], ""
    try:
        n_cards = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return [], f" (NVML: {error})"
    for index in range(n_cards):
        try:
            cards.append(_card(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError as error:  # lost, or not for this container: CUDA skips it too
            refused += f"; GPU {index} cannot be used (NVML: {error})"
    return cards, refused


def _card(nvml: Any, handle: Any) -> _Card:
    device = _Device(nvml.nvmlDeviceGetUUID(handle), _product(nvml, handle), _memory(nvml, handle))
    try:
        is_divided = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # a card, or a driver, that knows no MIG
        is_divided = False
    return _Card(device, tuple(_instances(nvml, handle, device)) if is_divided else None)


def _instances(nvml: Any, card: Any, device: _Device) -> Iterator[_Device]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
        except nvml.NVMLError:  # the places for instances need not be taken
            continue
        yield _Device(
            nvml.nvmlDeviceGetUUID(handle),
            f"{device.product} (MIG)",
            _memory(nvml, handle),
            _old_name(nvml, handle, device),
            is_mig=True,
        )


def _old_name(nvml: Any, instance: Any, card: _Device) -> str:
    try:
        gpu = nvml.nvmlDeviceGetGpuInstanceId(instance)
        compute = nvml.nvmlDeviceGetComputeInstanceId(instance)
    except nvml.NVMLError:
        return ""
    return f"MIG-{card.uuid}/{gpu}/{compute}"


def _product(nvml: Any, handle: Any) -> str:
    try:
        return str(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:
        return "GPU"


def _memory(nvml: Any, handle: Any) -> Callable[[], tuple[int, int]]:
    def read() -> tuple[int, int]:
        try:
            found = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError_NotSupported:  # a device that has none of its own
            machine = Memory.of_this_process()
            return machine.limit_bytes, machine.available_bytes
        return int(found.total), int(found.free)

    return read


def _chosen(cards: Sequence[_Card], chosen: str | None, order: str) -> list[Gpu]:
    """Return the devices that a value of CUDA_VISIBLE_DEVICES leaves, None for all.

    As CUDA reads it: what is after an entry that means nothing is not visible, nor is anything if
    an entry comes twice. The beginning of a UUID is enough if no other begins so. The number of a
    card in MIG mode stands for its instances.
    """
    if chosen is None:
        return [device.described() for card in cards for device in card.offered]
    found: list[Gpu] = []
    is_mixed = len({card.device.product for card in cards}) > 1 and order != "PCI_BUS_ID"
    for entry in chosen.split(","):
        index = _leading_number(entry)
        if index is None:
            gpus = [device.described() for device in _by_uuid(cards, entry.strip())]
        elif index >= len(cards):
            gpus = []
        elif is_mixed:
            gpus = [_any_of(cards, str(index))]
        else:
            gpus = [device.described() for device in cards[index].offered]
        if not gpus and not (index is not None and index < len(cards)):
            break
        if {gpu.name for gpu in gpus} & {gpu.name for gpu in found}:
            return []
        found += gpus
    return found


def _leading_number(entry: str) -> int | None:
    """Return the number that an entry begins with, as C's ``strtol`` would, or None."""
    text = entry.strip()
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return int(digits) if digits else None


def _by_uuid(cards: Sequence[_Card], entry: str) -> Sequence[_Device]:
    """Return the one device, or the instances of the one card, whose UUID begins so."""
    if not entry.startswith(("GPU-", "MIG-")):
        return ()
    instances = [one for card in cards for one in card.instances or ()]
    old = [one for one in instances if one.also_called == entry]
    found = [card.offered for card in cards if card.device.uuid.startswith(entry)]
    found += [(one,) for one in old or instances if old or one.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else ()


def _any_of(cards: Sequence[_Card], name: str) -> Gpu:
    """Return a device of which only the number is known: it has what the smallest has."""
    gpus = [device.described() for card in cards for device in card.offered]
    least = min(gpus, key=lambda gpu: gpu.free_bytes)
    products = " or ".join(sorted({gpu.product for gpu in gpus}))
    return replace(least, name=name, product=products)
