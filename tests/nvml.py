"""A fake NVML library below the real nvidia-ml-py: C functions that tell of cards that are not."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

GIB = 2**30


@dataclass
class FakeInstance:
    """A MIG instance."""

    uuid: str
    total: int = 10 * GIB
    free: int = 10 * GIB
    ids: tuple[int, int] = (1, 0)


@dataclass
class FakeCard:
    """A card; in MIG mode if `instances` is not None, even if that is empty.

    `error` is what NVML answers when its handle is asked for, `memory_error` when its memory is.
    """

    uuid: str
    name: str = "NVIDIA A100"
    total: int = 40 * GIB
    free: int = 39 * GIB
    instances: list[FakeInstance | None] | None = None
    error: int = 0
    memory_error: int = 0
    knows_mig: bool = True


@dataclass
class FakeNvml:
    """The library; what lies behind its handles can be changed while it is in use."""

    cards: list[FakeCard] = field(default_factory=list)
    init_error: int = 0
    n_open: int = 0

    def __post_init__(self) -> None:
        u, p, i = ctypes.c_uint, ctypes.c_void_p, ctypes.c_int
        self._kept = {
            name: ctypes.CFUNCTYPE(i, *types)(getattr(self, f"_{name}"))
            for name, types in {
                "nvmlInitWithFlags": (u,),
                "nvmlShutdown": (),
                "nvmlDeviceGetCount_v2": (p,),
                "nvmlDeviceGetHandleByIndex_v2": (u, p),
                "nvmlDeviceGetName": (p, p, u),
                "nvmlDeviceGetUUID": (p, p, u),
                "nvmlDeviceGetMigMode": (p, p, p),
                "nvmlDeviceGetMaxMigDeviceCount": (p, p),
                "nvmlDeviceGetMigDeviceHandleByIndex": (p, u, p),
                "nvmlDeviceGetGpuInstanceId": (p, p),
                "nvmlDeviceGetComputeInstanceId": (p, p),
                "nvmlDeviceGetMemoryInfo": (p, p),
            }.items()
        }
        self.__dict__.update(self._kept)
        self.nvmlErrorString = _error_string

    def install(self, patch: pytest.MonkeyPatch) -> FakeNvml:
        """Put it in place of the machine's library, and forget what CUDA is told to show."""
        import pynvml
        from distributed.diagnostics import nvml as of_dask

        patch.setattr(pynvml, "nvmlLib", self)
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        # Dask asks for more, in the process of its scheduler.
        patch.setattr(of_dask, "NVML_STATE", of_dask.NVMLState.DISABLED_CONFIG)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.delenv("CUDA_DEVICE_ORDER", raising=False)
        return self

    def _nvmlInitWithFlags(self, _flags):
        self.n_open += not self.init_error
        return self.init_error

    def _nvmlShutdown(self):
        self.n_open -= 1
        return 0

    # A handle is 1000 + 100 * card, and for an instance of it one more than its place.
    def _at(self, handle):
        card, place = divmod(handle - 1000, 100)
        return self.cards[card] if place == 0 else self.cards[card].instances[place - 1]

    def _nvmlDeviceGetCount_v2(self, count):
        return _put(count, ctypes.c_uint, len(self.cards))

    def _nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        if index >= len(self.cards):
            return 2  # NVML_ERROR_INVALID_ARGUMENT
        return self.cards[index].error or _put(handle, ctypes.c_void_p, 1000 + 100 * index)

    def _nvmlDeviceGetName(self, handle, text, size):
        return _write(text, size, getattr(self._at(handle), "name", "NVIDIA A100 MIG 1g.10gb"))

    def _nvmlDeviceGetUUID(self, handle, text, size):
        return _write(text, size, self._at(handle).uuid)

    def _nvmlDeviceGetMigMode(self, handle, current, pending):
        card = self._at(handle)
        if not card.knows_mig:
            return 3  # NVML_ERROR_NOT_SUPPORTED
        mode = int(card.instances is not None)
        return _put(current, ctypes.c_uint, mode) or _put(pending, ctypes.c_uint, mode)

    def _nvmlDeviceGetMaxMigDeviceCount(self, _handle, count):
        return _put(count, ctypes.c_uint, 7)

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index, instance):
        places = self._at(handle).instances
        if index >= len(places) or places[index] is None:
            return 6  # NVML_ERROR_NOT_FOUND
        return _put(instance, ctypes.c_void_p, handle + 1 + index)

    def _nvmlDeviceGetGpuInstanceId(self, handle, found):
        return _put(found, ctypes.c_uint, self._at(handle).ids[0])

    def _nvmlDeviceGetComputeInstanceId(self, handle, found):
        return _put(found, ctypes.c_uint, self._at(handle).ids[1])

    def _nvmlDeviceGetMemoryInfo(self, handle, found):
        device = self._at(handle)
        if getattr(device, "memory_error", 0):
            return device.memory_error
        numbers = (device.total, device.free, device.total - device.free)
        ctypes.cast(found, ctypes.POINTER(ctypes.c_ulonglong * 3))[0][:] = numbers
        return 0


@ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)
def _error_string(code: int) -> bytes:
    return {3: b"Not Supported", 4: b"Insufficient Permissions", 9: b"Driver Not Loaded"}.get(
        code, b"Unknown Error"
    )


def _put(pointer: int, kind: type, value: int) -> int:
    ctypes.cast(pointer, ctypes.POINTER(kind))[0] = value
    return 0


def _write(pointer: int, size: int, text: str) -> int:
    content = text.encode()[: size - 1] + b"\0"
    ctypes.memmove(pointer, content, len(content))
    return 0


def cards(n: int, free: Sequence[int] | None = None) -> list[FakeCard]:
    """Return `n` cards of one kind, with this much memory free."""
    return [
        FakeCard(f"GPU-{i:08x}-0000", free=39 * GIB if free is None else free[i]) for i in range(n)
    ]
