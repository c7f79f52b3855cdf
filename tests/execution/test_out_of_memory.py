"""Which errors say that memory ran out; nothing of the call is left; caches of what is imported."""

import errno
import gc
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from patchworks.execution import out_of_memory
from patchworks.execution.out_of_memory import forget_frames, free_memory, ran_out_of_memory


def raised_as(name: str, module: str, text: str = "no", base: type = Exception) -> BaseException:
    """An error of a library's type, which need not be installed."""
    return type(name, (base,), {"__module__": module})(text)


OOM = {
    "python": MemoryError(),
    "numpy": np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("u1")),
    "system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "torch": raised_as("OutOfMemoryError", "torch", base=RuntimeError),
    "older torch": raised_as("OutOfMemoryError", "torch.cuda", base=RuntimeError),
    "CUDA": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 9.03 GB, ...)"),
    "torch on the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "cupy": raised_as("OutOfMemoryError", "cupy.cuda.memory"),
    "cupy's runtime": raised_as(
        "CUDARuntimeError", "cupy_backends.cuda.api.runtime", "cudaErrorMemoryAllocation: out of "
        "memory", RuntimeError,
    ),
    "TensorFlow": raised_as("ResourceExhaustedError", "tensorflow.python.framework.errors_impl"),
    "TensorFlow, copying": raised_as(
        "InternalError",
        "tensorflow.python.framework.errors_impl",
        "Failed copying input tensor from CPU:0 to GPU:0: Dst tensor is not initialized.",
    ),
    "jax": raised_as(
        "XlaRuntimeError", "jaxlib.xla_extension", "RESOURCE_EXHAUSTED: Out of memory while "
        "trying to allocate 17179869184 bytes.", RuntimeError,
    ),
    "ONNX Runtime": raised_as(
        "RuntimeException",
        "onnxruntime.capi.onnxruntime_pybind11_state",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : ... Failed to allocate memory for requested "
        "buffer of size 1073741824",
    ),
    "numba": raised_as(
        "CudaAPIError", "numba.cuda.cudadrv.driver", "[2] Call to cuMemAlloc results in "
        "CUDA_ERROR_OUT_OF_MEMORY",
    ),
    "OpenCL": RuntimeError("clEnqueueNDRangeKernel failed: CL_MEM_OBJECT_ALLOCATION_FAILURE (-4)"),
    "a group": ExceptionGroup("two workers", [ValueError("no"), MemoryError()]),
}  # fmt: skip

OTHERS = {
    "a mistake that speaks of it": ValueError("ran out of memory"),
    "a mistake of the kind that is a RuntimeError": NotImplementedError("out of memory"),
    "another RuntimeError": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "another shape": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    "a quota": raised_as("ResourceExhaustedError", "grpc", "RESOURCE_EXHAUSTED: quota"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "somebody's own": raised_as("MyError", "mine", "out of memory"),
}


@pytest.mark.parametrize("name", OOM)
def test_it_is_known_whatever_the_library(name):
    assert ran_out_of_memory(OOM[name])


@pytest.mark.parametrize("name", OTHERS)
def test_other_errors_are_not_taken_for_it(name):
    assert not ran_out_of_memory(OTHERS[name])


def caught(fails) -> BaseException:
    try:
        fails()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError


def runs_out():
    raise MemoryError("no")


def test_what_led_to_an_error_counts_unless_it_was_put_aside():
    def said_from_it():
        try:
            runs_out()
        except MemoryError as error:
            raise ValueError("no labels") from error

    def failed_on_it():
        try:
            runs_out()
        except MemoryError:
            raise ValueError("no labels")  # noqa: B904

    def put_it_aside():
        try:
            runs_out()
        except MemoryError:
            raise ValueError("no labels") from None

    assert ran_out_of_memory(caught(said_from_it))
    assert ran_out_of_memory(caught(failed_on_it))
    assert not ran_out_of_memory(caught(put_it_aside))


def test_what_was_being_handled_before_the_call_does_not_count():
    try:
        runs_out()
    except MemoryError:
        before = sys.exception()
        error = caught(lambda: [][0])
    assert ran_out_of_memory(error)
    assert not ran_out_of_memory(error, before)


def test_an_error_whose_text_cannot_be_made_is_another_one():
    class Silent(RuntimeError):
        def __str__(self):
            raise KeyError

    assert not ran_out_of_memory(Silent())


class Tensor:
    """Something that a library holds memory for."""


def test_forgetting_lets_go_of_what_the_calls_held():
    held = []

    def fails():
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        runs_out()

    def fails_again():
        other = Tensor()
        held.append(weakref.ref(other))
        try:
            fails()
        except MemoryError as error:
            raise ValueError from error

    error = caught(fails_again)
    gc.collect()
    assert [bool(ref()) for ref in held] == [True, True]
    forget_frames(error)
    assert [ref() for ref in held] == [None, None]
    assert error.__cause__.__traceback__.tb_next is not None, "it still says where"


def fake_torch(called, *, is_initialized=True):
    no = SimpleNamespace(is_available=lambda: False)
    cuda = SimpleNamespace(
        is_initialized=lambda: is_initialized, empty_cache=lambda: called.append("torch")
    )
    return SimpleNamespace(cuda=cuda, backends=SimpleNamespace(mps=no))


def fake_cupy(called):
    def pool(name):
        return lambda: SimpleNamespace(free_all_blocks=lambda: called.append(name))

    return SimpleNamespace(
        get_default_memory_pool=pool("cupy"), get_default_pinned_memory_pool=pool("pinned")
    )


def test_caches_are_emptied_of_what_is_imported(monkeypatch):
    called: list[str] = []
    monkeypatch.setitem(sys.modules, "torch", fake_torch(called))
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(called))
    free_memory()
    assert called == ["torch", "cupy", "pinned"]


def test_no_context_is_made_on_a_gpu_that_the_function_does_not_use(monkeypatch):
    called: list[str] = []
    monkeypatch.setitem(sys.modules, "torch", fake_torch(called, is_initialized=False))
    free_memory()
    assert called == []


def test_freeing_never_fails_and_imports_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())  # half imported
    free_memory()
    monkeypatch.undo()
    libraries = sorted(out_of_memory.SPEAKING)
    script = (
        "import sys\n"
        "from patchworks.execution.out_of_memory import free_memory, ran_out_of_memory\n"
        "free_memory(), ran_out_of_memory(RuntimeError('CUDA out of memory'))\n"
        f"print([name for name in {libraries} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_real_errors_of_torch():
    torch = pytest.importorskip("torch")
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert ran_out_of_memory(caught(lambda: torch.empty(2**50, dtype=torch.uint8)))
    assert not ran_out_of_memory(caught(lambda: torch.zeros(3) + torch.zeros(4)))
