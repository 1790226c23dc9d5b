from __future__ import annotations

import pytest
import torch

from pipelines.config.model import ModelConfig
from pipelines.config.train import TrainOptions
from rm.engine import device
from rm.engine.device import default_tokens_per_batch, is_out_of_memory, native_bfloat16, peak_flops, to_device


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
    ],
)
def test_failed_allocations_are_told_from_other_errors(error, memory):
    assert is_out_of_memory(error) == memory


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


def test_integers_go_through_pinned_memory_to_a_gpu(monkeypatch):
    assert to_device([[1, 2]], "cpu").tolist() == [[1, 2]]
    assert to_device([1], torch.device("cpu"), dtype=torch.int32).dtype == torch.int32
    calls = []

    class Host(torch.Tensor):
        def pin_memory(self):
            calls.append("pinned")
            return self

        def to(self, target, non_blocking=False):
            calls.append((target, non_blocking))
            return self

    monkeypatch.setattr(device.torch, "tensor", lambda values, dtype: torch.zeros(1).as_subclass(Host))
    to_device([1], "cuda:1")
    assert calls == ["pinned", ("cuda:1", True)]


@pytest.mark.parametrize(("options", "training"), [(ModelConfig, False), (TrainOptions, True)])
def test_the_configuration_names_the_default_batch_sizes(options, training):
    help_text = options.model_fields["tokens_per_batch"].description
    assert f"{default_tokens_per_batch('cuda', training=training)} on a GPU" in help_text
    assert f"{default_tokens_per_batch('cuda:1', training=training)} on a GPU" in help_text
    assert f"{default_tokens_per_batch('cpu', training=training)} on a CPU" in help_text
