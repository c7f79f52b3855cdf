"""The GPUs this process may use, as the real nvidia-ml-py finds them in a fake NVML library."""

import sys
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchworks.errors import ClientError, MissingExtraError
from patchworks.execution.gpus import Gpu, visible_gpus
from tests.nvml import GIB, FakeCard, FakeInstance, FakeNvml, cards

A, B, C = "GPU-0a1b", "GPU-0a2c", "GPU-ff00"
MIG_A, MIG_B = "MIG-11aa", "MIG-22bb"


@pytest.fixture
def three(monkeypatch):
    return FakeNvml([FakeCard(A), FakeCard(B), FakeCard(C)]).install(monkeypatch)


def names() -> list[str]:
    return [gpu.name for gpu in visible_gpus()]


def test_without_a_choice_all_are_visible_with_their_memory(monkeypatch):
    FakeNvml([FakeCard(A, "NVIDIA L4", 24 * GIB, 23 * GIB), FakeCard(B)]).install(monkeypatch)
    first, second = visible_gpus()
    assert first == Gpu(
        name=A, product="NVIDIA L4", total_bytes=24 * GIB, free_bytes=23 * GIB, is_mig=False
    )
    assert second.name == B
    assert str(first) == f"NVIDIA L4 ({A}): 23.0 of 24.0 GiB free"


CHOICES = {
    "0": [A],
    "2,0": [C, A],
    " 1 , 2": [B, C],
    "0,1,2": [A, B, C],
    "0,3,1": [A],
    "0,-1,1": [A],
    "-1": [],
    "": [],
    "none": [],
    "NoDevFiles": [],
    "1,,2": [B],
    "1x,2": [B, C],
    "0,0": [],
    "99999999999999999999": [],
    C: [C],
    f"{C},{A}": [C, A],
    "GPU-ff": [C],
    "GPU-0a": [],
    "GPU-0a2,GPU-0a,0": [B],
    f"{A},0": [],
    "gpu-ff00": [],
    "GPU-": [],
}


@pytest.mark.parametrize("chosen", CHOICES, ids=repr)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(three, monkeypatch, chosen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    if CHOICES[chosen]:
        assert names() == CHOICES[chosen]
        return
    with pytest.raises(ClientError) as refused:
        visible_gpus()
    assert f"CUDA_VISIBLE_DEVICES={chosen!r}" in str(refused.value)
    assert C in str(refused.value)  # what there would be
    assert three.n_open == 0


@given(st.lists(st.sampled_from(["0", "1", "2", "3", "-1", A, B, C, "x", "", MIG_A]), max_size=5))
def test_what_is_visible_begins_the_list_and_comes_once(chosen):
    with pytest.MonkeyPatch.context() as patch:
        FakeNvml([FakeCard(A), FakeCard(B), FakeCard(C)]).install(patch)
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(chosen))
        by_name = {"0": A, "1": B, "2": C, A: A, B: B, C: C}
        meant = [by_name.get(entry) for entry in chosen]
        meant = meant[: meant.index(None)] if None in meant else meant
        if not meant or len(set(meant)) < len(meant):
            with pytest.raises(ClientError):
                visible_gpus()
        else:
            assert names() == meant


@pytest.fixture
def divided(monkeypatch):
    instances = [
        FakeInstance(MIG_A, free=9 * GIB, ids=(7, 0)),
        None,
        FakeInstance(MIG_B, free=4 * GIB, ids=(9, 0)),
    ]
    fake = FakeNvml([FakeCard(A, instances=instances), FakeCard(B), FakeCard(C, instances=[])])
    return fake.install(monkeypatch)


MIG_CHOICES = {
    None: [MIG_A, MIG_B, B],
    "0": [MIG_A, MIG_B],
    "1": [B],
    "2,1": [B],
    f"{MIG_B}": [MIG_B],
    "MIG-2": [MIG_B],
    f"{MIG_B},{MIG_A}": [MIG_B, MIG_A],
    f"MIG-{A}/9/0": [MIG_B],
    f"MIG-{A}/8/0,1": [],
    A: [MIG_A, MIG_B],
    f"0,{MIG_A}": [],
}


@pytest.mark.usefixtures("divided")
@pytest.mark.parametrize("chosen", MIG_CHOICES, ids=repr)
def test_a_card_in_mig_mode_offers_its_instances(monkeypatch, chosen):
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    if MIG_CHOICES[chosen]:
        assert names() == MIG_CHOICES[chosen]
    else:
        with pytest.raises(ClientError, match="no GPU is visible"):
            visible_gpus()


@pytest.mark.usefixtures("divided")
def test_an_instance_has_memory_of_its_own():
    found = {gpu.name: (gpu.free_bytes, gpu.total_bytes, gpu.is_mig) for gpu in visible_gpus()}
    assert found[MIG_B] == (4 * GIB, 10 * GIB, True)
    assert found[B] == (39 * GIB, 40 * GIB, False)


def test_a_card_in_mig_mode_without_instances_is_no_gpu(monkeypatch):
    FakeNvml([FakeCard(A, instances=[])]).install(monkeypatch)
    with pytest.raises(ClientError, match="in MIG mode, 0 instances"):
        visible_gpus()


def test_numbers_among_cards_of_several_kinds_are_cudas_and_promise_the_least(monkeypatch):
    fast, slow = FakeCard(A, "NVIDIA T400", free=3 * GIB), FakeCard(B, "NVIDIA H100", free=70 * GIB)
    FakeNvml([fast, slow]).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (gpu,) = visible_gpus()
    assert (gpu.name, gpu.free_bytes) == ("0", 3 * GIB)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    (gpu,) = visible_gpus()
    assert (gpu.name, gpu.free_bytes) == (A, 3 * GIB)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", B)
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    (gpu,) = visible_gpus()
    assert (gpu.name, gpu.free_bytes) == (B, 70 * GIB)


def test_a_card_that_may_not_be_used_is_not_counted(monkeypatch):
    lost = FakeCard(A, error=pynvml.NVML_ERROR_NO_PERMISSION)
    FakeNvml([lost, FakeCard(B)]).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert names() == [B]


def test_where_no_card_may_be_used_it_is_said_why(monkeypatch):
    FakeNvml([FakeCard(A, error=pynvml.NVML_ERROR_NO_PERMISSION)]).install(monkeypatch)
    with pytest.raises(ClientError, match=r"GPU 0 cannot be used \(NVML: Insufficient Permissions"):
        visible_gpus()


def test_a_device_without_memory_of_its_own_has_the_machines(monkeypatch):
    FakeNvml([FakeCard(A, memory_error=3, knows_mig=False)]).install(monkeypatch)
    (gpu,) = visible_gpus()
    assert 0 < gpu.free_bytes <= gpu.total_bytes


def test_memory_that_cannot_be_read_is_an_error_of_that_card_alone(monkeypatch):
    FakeNvml([FakeCard(A, memory_error=4), FakeCard(B)]).install(monkeypatch)
    with pytest.raises(ClientError, match="does not say how much memory"):
        visible_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert names() == [B]


UNANSWERED = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "not loaded",
    pynvml.NVML_ERROR_NO_PERMISSION: "may not ask",
    pynvml.NVML_ERROR_UNKNOWN: "does not answer",
}


@pytest.mark.parametrize("code", UNANSWERED)
def test_nvml_that_does_not_answer_says_why(monkeypatch, code):
    FakeNvml(cards(1), init_error=code).install(monkeypatch)
    with pytest.raises(ClientError, match=UNANSWERED[code]) as refused:
        visible_gpus("gpus: all")
    assert str(refused.value).startswith("gpus: all: ")


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver")
def test_a_machine_without_a_driver_says_so(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    with pytest.raises(ClientError, match="driver is not installed"):
        visible_gpus()


def test_no_gpu_at_all_is_an_error(monkeypatch):
    FakeNvml([]).install(monkeypatch)
    with pytest.raises(ClientError, match="no GPU that may be used"):
        visible_gpus()


def test_nvidia_ml_py_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'patchworks\[gpu\]'"):
        visible_gpus()


def test_nvml_is_left_as_often_as_it_is_entered(three):
    visible_gpus()
    assert three.n_open == 0
