"""The machine at hand: its device, native types, peak speed, and the batch size that suits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# dense 16-bit tensor-core FLOP/s by the vendor's data sheets; the longest name that a device's contains counts
_PEAK_FLOPS = {
    "A100": 312e12,
    "A10": 125e12,
    "A10G": 70e12,
    "B200": 2250e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "T4": 65e12,
    "V100": 125e12,
}


_CPU_TOKENS_PER_BATCH = 4096
_GPU_TOKENS_PER_BATCH = 32768
_GPU_TRAINING_TOKENS_PER_BATCH = 16384


def default_device() -> str:
    """`cuda` where PyTorch finds a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_tokens_per_batch(device: str, *, training: bool) -> int:
    """The token budget of one forward on `device` where the configuration sets none.

    A GPU wants large batches, a CPU batches that fit into its cache. Training keeps activations for the backward pass,
    so a GPU's batches are smaller then. The help texts of `model.tokens_per_batch` and `train.tokens_per_batch` name
    these numbers.
    """
    if device == "cpu":
        return _CPU_TOKENS_PER_BATCH
    return _GPU_TRAINING_TOKENS_PER_BATCH if training else _GPU_TOKENS_PER_BATCH


def native_bfloat16(device: str) -> bool:
    """Tell whether the device computes in bfloat16 natively."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # older torch cannot tell
    return bool(capabilities().get("avx512_bf16"))


def peak_flops(device: str, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s of the device in this type; None where it is not known: a CPU, float32, another GPU."""
    if not device.startswith("cuda") or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    known = [model for model in _PEAK_FLOPS if model in name]
    return _PEAK_FLOPS[max(known, key=len)] if known else None


def to_device(values: Sequence[Any], device: torch.device | str, *, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """Make a tensor of integers on the device; through pinned memory to a GPU, so that the copy overlaps with its work."""
    tensor = torch.tensor(values, dtype=dtype)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an allocation failed: on a GPU, on the CPU (which has no error type for it), or in Python."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
