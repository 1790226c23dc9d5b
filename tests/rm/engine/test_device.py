from __future__ import annotations

import pytest
import torch

from pipelines.config.model import ModelConfig
from pipelines.config.train import TrainOptions
from rm.engine import device
from rm.engine.device import (
    DeviceError,
    default_tokens_per_batch,
    device_error,
    host_tensor,
    is_out_of_memory,
    native_bfloat16,
    nvidia_driver,
    peak_flops,
    refuse_broken,
    resolve_device,
)
from rm.identity import ModelError


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_of_a_gpu_goes_by_the_longest_name_that_fits(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops("cuda:0", torch.bfloat16) == peak
    assert peak_flops("cuda", torch.float32) is None  # tensor cores' peak is not float32's
    assert peak_flops("cpu", torch.bfloat16) is None


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (torch.AcceleratorError("CUDA error: out of memory\nCompile with ..."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    ],
)
def test_failed_allocations_are_told_from_other_errors(error, memory):
    assert is_out_of_memory(error) == memory


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nFor debugging ..."), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("cuda runtime error (710): device-side assert triggered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), True),
        (DeviceError("told before"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
        (KeyError("CUDA error: quoted"), False),
    ],
)
def test_a_broken_device_is_told_from_other_errors(error, broken):
    known = device_error(error)
    assert (known is not None) == broken
    if broken:
        assert "\n" not in str(known)
        with pytest.raises(DeviceError):
            refuse_broken(error)
    else:
        refuse_broken(error)


def test_a_kernel_that_a_trial_lacks_breaks_no_device():
    error = torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")
    refuse_broken(error, trial=True)
    with pytest.raises(DeviceError):
        refuse_broken(error)


def test_a_real_allocation_that_fails_on_the_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_native_bfloat16_asks_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not native_bfloat16("cuda")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert native_bfloat16("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert not native_bfloat16("cpu")


def test_integers_for_a_gpu_are_in_pinned_memory(monkeypatch):
    assert host_tensor([[1, 2]], "cpu").tolist() == [[1, 2]]
    assert host_tensor([1], torch.device("cpu"), dtype=torch.int32).dtype == torch.int32
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    host_tensor([1], "cpu")
    assert not pinned
    assert host_tensor([1], "cuda:1") is pinned[0]


@pytest.mark.parametrize(("options", "training"), [(ModelConfig, False), (TrainOptions, True)])
def test_the_configuration_names_the_default_batch_sizes(options, training):
    help_text = options.model_fields["tokens_per_batch"].description
    assert f"{default_tokens_per_batch('cuda', training=training)} on a GPU" in help_text
    assert f"{default_tokens_per_batch('cuda:1', training=training)} on a GPU" in help_text
    assert f"{default_tokens_per_batch('cpu', training=training)} on a CPU" in help_text


@pytest.fixture
def gpu(monkeypatch):
    """(available, built for, kernels, capability, driver) → a machine where torch says so."""

    def pretend(
        available, *, cuda="12.8", kernels=("sm_80", "sm_90"), capability=(9, 0), driver="the NVIDIA driver is 1"
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(kernels))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA Example")
        monkeypatch.setattr(device, "nvidia_driver", lambda: driver)

    return pretend


def test_a_gpu_that_is_promised_is_there_or_the_versions_are_named(gpu, caplog):
    gpu(True)
    assert (resolve_device("auto"), resolve_device("cuda"), resolve_device("cpu")) == ("cuda", "cuda", "cpu")
    gpu(False, driver="the NVIDIA driver is 470.82 and supports CUDA 11.4")
    with pytest.raises(
        ModelError, match=r"is built for CUDA 12\.8, and the NVIDIA driver is 470\.82 and supports CUDA 11\.4"
    ):
        resolve_device("cuda")
    assert resolve_device("auto") == "cpu"
    assert "the model runs on the CPU: torch finds none: torch" in caplog.text
    caplog.clear()
    gpu(False, cuda=None, driver=None)
    with pytest.raises(
        ModelError, match=r"is built for no CUDA, and there is no NVIDIA driver; choose a machine with one"
    ):
        resolve_device("cuda")
    assert resolve_device("auto") == "cpu"
    assert not caplog.text, "nothing was promised"


@pytest.mark.parametrize(
    ("kernels", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (8, 9), True),
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_90"], (7, 0), False),
        (["sm_80", "sm_90"], (10, 0), False),
        (["sm_80", "compute_90"], (12, 0), True),
        (["sm_90a"], (9, 0), True),
        (["sm_86"], (8, 0), False),
        ([], (7, 0), True),
    ],
)
def test_a_gpu_that_torch_has_no_kernels_for_is_not_used(gpu, caplog, kernels, capability, runs):
    gpu(True, kernels=kernels, capability=capability)
    assert resolve_device("auto") == ("cuda" if runs else "cpu")
    if not runs:
        assert f"none for NVIDIA Example (compute capability {capability[0]}.{capability[1]})" in caplog.text
        with pytest.raises(ModelError, match=r"kernels for .*compute capability"):
            resolve_device("cuda")


def test_the_driver_says_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError))
    assert nvidia_driver(tmp_path / "none") is None
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC")
    assert nvidia_driver(version) == "the NVIDIA driver is 535.104.05"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n")
    assert nvidia_driver(version) == "the NVIDIA driver is 570.86.10"


def test_mps_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"model\.device is mps"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == "mps"
