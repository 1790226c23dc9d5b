"""What the machine at hand computes with: device, native types, and what it could do at most."""

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


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def native_bfloat16(device: str) -> bool:
    """Whether the device computes in bfloat16 natively."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # older torch cannot tell
    return bool(capabilities().get("avx512_bf16"))


def peak_flops(device: str, dtype: torch.dtype) -> float | None:
    """FLOP/s that the device could do in this type; None where that is not known: a CPU, float32, another GPU."""
    if not device.startswith("cuda") or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    known = [model for model in _PEAK_FLOPS if model in name]
    return _PEAK_FLOPS[max(known, key=len)] if known else None


def to_device(values: Sequence[Any], device: torch.device | str, *, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """Integers as a tensor on the device; to a GPU through pinned memory, so that the copy runs beside its work."""
    tensor = torch.tensor(values, dtype=dtype)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: on a GPU, on the CPU (which has no type of its own for that), or Python's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
