"""A check that a model's weights fit into memory before they are loaded: the system kills a process that runs out of memory.

Free memory is Linux's available memory (with page cache, without swap), and at most the rest within the limits of the
process's control groups, which apply in a container. Other systems are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rm.checkpoint.weight_files import tensor_shapes
from rm.identity import DTYPE_BYTES, ModelError

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def weights_bytes(directory: Path, dtype: str) -> int:
    """Return the bytes of a directory's weights in the type `dtype`, from the headers of its files. Raises `ModelError`.

    Beside int8 matrices, embeddings and vectors are bfloat16.
    """
    return sum(
        math.prod(shape) * (2 if dtype == "int8" and (len(shape) != 2 or "embed" in name) else DTYPE_BYTES[dtype])
        for name, shape in tensor_shapes(directory)
    )


def refuse_too_large(
    directory: Path, *, dtype: str, devices: Sequence[str], straight: bool = False, memory: int | None = None
) -> None:
    """Raise `ModelError` with the numbers where the weights do not fit into the memory of the machine or of its GPUs.

    Weights for a GPU pass through the machine's memory, and must fit into both, unless they are loaded `straight` to it.
    `memory` is the number of bytes of the machine's memory that this process may use, None for all.
    """
    needed = weights_bytes(directory, dtype)
    weights = f"the weights of model.path {str(directory)!r} take {needed:,} bytes in {dtype}"
    available = min((size for size in (available_bytes(), memory) if size is not None), default=None)
    passing = weights_bytes(directory, "bfloat16") if dtype == "int8" else needed  # made of 16-bit ones, in memory
    on_gpu = devices[0].startswith("cuda")
    through_memory = not (straight and on_gpu and dtype != "int8")
    if available is not None and passing > available and through_memory:
        share = " to each of runner.workers; lower that" if available == memory else ""
        loading = f" ({passing:,} in bfloat16 while they are loaded)" if passing > needed else ""
        raise ModelError(
            f"{weights}{loading}, and this machine has {available:,} bytes of memory available{share}; use a larger machine, "
            "free memory, or set a 16-bit model.dtype"
        )
    if on_gpu:
        free = sum(torch.cuda.mem_get_info(device)[0] for device in devices)
        if needed > free:
            names = " and ".join(torch.cuda.get_device_name(device) for device in devices)
            raise ModelError(
                f"{weights}, and {names} {'have' if len(devices) > 1 else 'has'} {free:,} bytes free; use a larger GPU, or more "
                "of them with model.devices, stop other programs there, or set a 16-bit model.dtype or model.dtype: int8"
            )


def free_bytes(device: str) -> int | None:
    """Return the bytes that this process may still allocate on a device; None if the system does not report them."""
    if device.startswith("cuda"):
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return available_bytes() if device.startswith("cpu") else None


def available_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Return the bytes that this process may still allocate; None if the system does not report them."""
    limits = [*_free_on_machine(proc), *_free_in_control_groups(proc, cgroups)]
    return max(0, min(limits)) if limits else None


def _free_on_machine(proc: Path) -> Iterator[int]:
    for name, value in _read_fields(proc / "meminfo"):
        if name == "MemAvailable:":
            yield value * 1024


def _free_in_control_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the bytes left by the limits of the process's control groups (version 1 or 2) and their parents.

    In a container the paths may be those of the host, and only the root exists.
    """
    for line in _read_lines(proc / "self" / "cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            names, root = ("memory.max", "memory.current", ""), cgroups
        elif "memory" in controllers.split(","):
            names, root = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), cgroups / "memory"
        else:
            continue
        group = root / path.lstrip("/")
        for place in dict.fromkeys([group, *(parent for parent in group.parents if parent.is_relative_to(root)), root]):
            yield from _free_in_group(place, *names)


def _free_in_group(group: Path, limit: str, usage: str, prefix: str) -> Iterator[int]:
    """Yield the limit less the used bytes, page cache not counted: it is reclaimed before the limit is met."""
    limit_bytes, used = ("".join(_read_lines(group / name)).strip() for name in (limit, usage))
    if not limit_bytes.isdecimal() or not used.isdecimal():  # `max`, or no such group
        return
    cached = {f"{prefix}inactive_file", f"{prefix}active_file"}
    yield (
        int(limit_bytes)
        - int(used)
        + sum(value for name, value in _read_fields(group / "memory.stat") if name in cached)
    )


def _read_fields(path: Path) -> Iterator[tuple[str, int]]:
    for line in _read_lines(path):
        name, _, rest = line.partition(" ")
        value = rest.split()[:1]
        if value and value[0].isdecimal():
            yield name, int(value[0])


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
