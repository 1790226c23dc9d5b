"""This machine's device, native types, peak speed, and suitable batch size."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rm.identity import ModelError

log = logging.getLogger(__name__)

# dense 16-bit tensor-core FLOP/s by the vendor's data sheets; the longest key within a device's name counts
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
_NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
_BROKEN = getattr(torch, "AcceleratorError", ())
_BROKEN_TEXTS = ("CUDA error", "HIP error", "device-side assert")  # all that torch before 2.8 says
_NO_KERNEL = "no kernel image is available"
_CPU_TOKENS_PER_BATCH = 4096
_GPU_TOKENS_PER_BATCH = 32768
_GPU_TRAINING_TOKENS_PER_BATCH = 16384


def default_device() -> str:
    """`cuda` where PyTorch finds a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(requested: str) -> str:
    """Return the device for a `model.device`: auto, cuda, cpu or mps. Raises `ModelError` if it is not available.

    `auto` chooses a GPU that this torch can use, and warns if it cannot use the GPU of this machine.
    """
    if requested == "mps" and not torch.backends.mps.is_available():
        raise ModelError(
            "model.device is mps, and this machine has no Apple GPU that torch can use; set it to auto or cpu"
        )
    if requested in ("cpu", "mps"):
        return requested
    obstacle = _gpu_obstacle()
    if obstacle is None:
        return "cuda"
    if requested == "cuda":
        raise ModelError(
            f"a GPU was requested (model.device: cuda, or runner.accelerator), and {obstacle}; choose a machine with one, "
            "install compatible versions of torch and the driver, or set model.device to cpu"
        )
    if nvidia_driver() is not None:
        log.warning("the model runs on the CPU: %s", obstacle)
    return "cpu"


def _gpu_obstacle() -> str | None:
    """Return why no GPU can be used, with the versions that must match; None if one can."""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    versions = f"torch {torch.__version__} is built for {built}, and {nvidia_driver() or 'there is no NVIDIA driver'}"
    if not torch.cuda.is_available():
        return f"torch finds none: {versions}"
    (major, minor), kernels = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if torch.version.hip or not kernels or any(_runs_on(kernel, major, minor) for kernel in kernels):
        return None
    return f"torch has kernels for {' '.join(kernels)}, and none for {describe_gpu('cuda')}: {versions}"


def describe_devices() -> str:
    """Return the build of torch and the devices that it can compute on, for a bug report."""
    obstacle = _gpu_obstacle()
    if obstacle is None:
        names = [describe_gpu(f"cuda:{number}") for number in range(torch.cuda.device_count())]
        return (
            f"{', '.join(names)}; {nvidia_driver() or 'no NVIDIA driver'}; torch is built for CUDA {torch.version.cuda}"
        )
    return "mps, cpu" if torch.backends.mps.is_available() else f"cpu; {obstacle}"


def describe_gpu(device: torch.device | str) -> str:
    """Return the name and compute capability of an NVIDIA GPU; the kind of any other device."""
    if torch.device(device).type != "cuda":
        return torch.device(device).type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"


def _runs_on(kernel: str, major: int, minor: int) -> bool:
    """Return whether kernels such as sm_80, or compute_90, which the driver compiles, run on this compute capability."""
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", kernel)
    if match is None:
        return True  # an unknown form: the trial at load decides
    built = (int(match[2]), int(match[3]))
    return built <= (major, minor) if match[1] == "compute" else built[0] == major and built[1] <= minor


def nvidia_driver(version_file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Return the driver's version and the newest CUDA that it supports, if known; None without a driver."""
    parts = []
    with contextlib.suppress(OSError):
        version = re.search(
            r"Kernel Module.*?\s(\d+\.[\d.]+)", version_file.read_text(encoding="utf-8", errors="replace")
        )
        parts.append(f"the NVIDIA driver is {version[1] if version else 'of an unknown version'}")
    with contextlib.suppress(OSError, AttributeError):
        number = ctypes.c_int(0)
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value:
            cuda = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
            parts.append(f"supports {cuda}" if parts else f"the NVIDIA driver supports {cuda}")
    return " and ".join(parts) or None


def default_tokens_per_batch(device: str, *, training: bool) -> int:
    """The token budget of one forward on `device` if the configuration sets none.

    A GPU wants large batches, a CPU batches that fit into its cache. Training keeps activations for the backward pass,
    so a GPU's batches are smaller then. The help texts of `model.tokens_per_batch` and `train.tokens_per_batch` name
    these numbers.
    """
    if device == "cpu":
        return _CPU_TOKENS_PER_BATCH
    return _GPU_TRAINING_TOKENS_PER_BATCH if training else _GPU_TOKENS_PER_BATCH


def native_bfloat16(device: str) -> bool:
    """Return whether the device computes in bfloat16 natively."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # older torch cannot tell
    return bool(capabilities().get("avx512_bf16"))


def peak_flops(device: str, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s of the device in this type; None if it is not known: a CPU, float32, another GPU."""
    if not device.startswith("cuda") or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    known = [model for model in _PEAK_FLOPS if model in name]
    return _PEAK_FLOPS[max(known, key=len)] if known else None


def works_apart(device: torch.device | str) -> bool:
    """Return whether the device computes asynchronously, with concurrent copies from pinned memory."""
    return torch.device(device).type == "cuda"


def to_device(
    values: Sequence[Any] | np.ndarray, device: torch.device | str, *, dtype: torch.dtype = torch.long
) -> torch.Tensor:
    """Make a tensor of integers on the device; see `host_tensor`."""
    return host_tensor(values, device, dtype=dtype).to(device, non_blocking=True)


def host_tensor(
    values: Sequence[Any] | np.ndarray, device: torch.device | str, *, dtype: torch.dtype = torch.long
) -> torch.Tensor:
    """Make a tensor of integers in the machine's memory; pinned for a GPU, so that a copy to it overlaps with its work."""
    # through NumPy, which takes a tenth of torch's time for a list
    tensor = torch.tensor(np.asarray(values, dtype=np.int64), dtype=dtype)
    return tensor.pin_memory() if works_apart(device) else tensor


def begin_copy(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Start copying a tensor to the machine's memory; the returned function waits for the copy, and for nothing started later."""
    if not works_apart(tensor.device):
        return tensor.cpu().numpy
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(tensor.device))

    def read() -> np.ndarray:
        done.synchronize()
        return copy.numpy()

    return read


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed: on a GPU, on the CPU (which has no error type for it), or in Python."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in _NO_MEMORY)


class DeviceError(RuntimeError):
    """A device that fails on any input. It stays broken for this process, which must end; no row is the cause."""


def device_error(error: Exception) -> DeviceError | None:
    """Return the error as a `DeviceError` if it reports a broken device; None for all other errors.

    Its message is the first line of the driver's, which has no text from rows. Running out of memory breaks nothing.
    """
    if isinstance(error, DeviceError):
        return error
    texts = _BROKEN_TEXTS if isinstance(error, RuntimeError) else ()
    if not (isinstance(error, _BROKEN) or any(text in str(error)[:100] for text in texts)) or is_out_of_memory(error):
        return None
    message = str(error).strip().splitlines()
    return DeviceError(f"{type(error).__name__}: {message[0][:200]}" if message else type(error).__name__)


def refuse_broken(error: Exception, *, trial: bool = False) -> None:
    """Raise `DeviceError` if an error reports a broken device; in a trial, a missing kernel is not such an error."""
    broken = device_error(error)
    if broken is not None and not (trial and _NO_KERNEL in str(error)):
        raise broken from error
