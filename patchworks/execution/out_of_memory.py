"""Telling that a function ran out of memory, whatever it computes with, and freeing what it left.

No library is imported for it: an error is known by its type's name and module, or by its text, and
the caches of a library are emptied only where it has been imported already.
"""

from __future__ import annotations

import errno
import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from patchworks.errors import MISTAKES
from patchworks.execution.machine import return_free_memory

TYPES = {"OutOfMemoryError": "", "ResourceExhaustedError": "tensorflow", "MemoryError": ""}
"""Names of types that say it, and the package that they must come from, if it matters.

OutOfMemoryError of torch and cupy, ResourceExhaustedError of TensorFlow (others mean quotas by
it), MemoryError of PyCUDA and PyOpenCL, which is not Python's.
"""

TEXTS = (
    "out of memory",  # CUDA, HIP, XPU and MPS, in torch and cupy
    "out_of_memory",  # CUDA_ERROR_OUT_OF_MEMORY: numba, TensorFlow
    "_alloc_failed",  # CUDNN_STATUS_ALLOC_FAILED, CUBLAS_STATUS_ALLOC_FAILED, CUFFT_ALLOC_FAILED
    "resource_exhausted",  # XLA: JAX
    "defaultcpuallocator",  # torch without a GPU
    "unable to find a valid cudnn algorithm",  # for want of workspace
    "failed to allocate memory",  # ONNX Runtime, TensorFlow
    "dst tensor is not initialized",  # TensorFlow, where a copy to the GPU finds no room
    "mem_object_allocation_failure",  # OpenCL
    "bad_alloc",
    "cannot allocate memory",
)
"""What the texts of other errors say, in lower case."""

SPEAKING = {
    "cupy", "cupy_backends", "jax", "jaxlib", "numba", "onnxruntime", "openvino", "pyclesperanto",
    "pycuda", "pyopencl", "tensorflow", "tensorrt", "torch",
}  # fmt: skip
"""Packages whose errors are judged by their text; and RuntimeError, whoever raises it."""


def ran_out_of_memory(error: BaseException, before: BaseException | None = None) -> bool:
    """Return whether an error, or one that led to it, says that memory ran out.

    Parameters
    ----------
    error : BaseException
        What was raised.
    before : BaseException, optional
        What was being handled before (`sys.exception()`): it, and what led to it, does not count.

    Examples
    --------
    >>> ran_out_of_memory(RuntimeError("CUDA error: out of memory"))
    True
    >>> ran_out_of_memory(ValueError("the message ran out of memory"))
    False
    """
    return any(_says_so(each) for each in _chain(error, before))


def _chain(error: BaseException, before: BaseException | None = None) -> Iterator[BaseException]:
    """Yield an error, those that it was raised from or while handling, and those in a group."""
    todo, seen = [error], {id(before)}
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        led = each.__cause__ if each.__suppress_context__ else each.__context__
        todo += [led] if led is not None else []
        if isinstance(each, BaseExceptionGroup):
            todo += each.exceptions


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    types = type(error).__mro__
    for each in types:
        package = TYPES.get(each.__name__)
        if package is not None and _package(each).startswith(package):
            return True
    if isinstance(error, MISTAKES):
        return False
    if isinstance(error, RuntimeError) or SPEAKING.intersection(map(_package, types)):
        with suppress(Exception):  # a text that cannot be made says nothing
            text = str(error).lower()
            return any(each in text for each in TEXTS)
    return False


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]


def forget_frames(error: BaseException, before: BaseException | None = None) -> None:
    """Drop the variables of the calls that an error came through, its causes' as well.

    They hold what the function had in memory when it failed. Where it failed can still be read.
    Parameters as in `ran_out_of_memory`.
    """
    for each in _chain(error, before):
        traceback.clear_frames(each.__traceback__)


def free_memory() -> None:
    """Give back what nobody uses any more: unreachable objects, and what libraries keep of memory.

    To be called where no error is being handled, which would hold its frames. Never fails.
    """
    gc.collect()
    for name, free in CACHES.items():
        library = sys.modules.get(name)
        if library is not None:
            with suppress(Exception):
                free(library)
    return_free_memory()


def _free_torch(torch: Any) -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if hasattr(torch, "xpu") and torch.xpu.is_initialized():
        torch.xpu.empty_cache()


def _free_cupy(cupy: Any) -> None:
    with suppress(Exception):  # plans of Fourier transforms hold their workspace
        cupy.fft.config.get_plan_cache().clear()
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


CACHES: dict[str, Callable[[Any], None]] = {"torch": _free_torch, "cupy": _free_cupy}
"""How libraries give back memory they keep. TensorFlow and JAX keep theirs until the process ends,
and use it again; there is no call that empties it without harm to a model."""
