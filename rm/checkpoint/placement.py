"""Places a model on one device, or spreads its layers, in order, over several GPUs of a machine.

A batch passes through the GPUs one after the other, by the hooks of accelerate. So several GPUs have room for more weights, and
are not faster.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_module
from torch import nn

from rm.checkpoint.memory_check import free_bytes, weights_bytes
from rm.identity import ModelError

AUTO = "auto"
_ROOM = 1.2  # times the weights: what `auto` wants free, for batches


def choose_devices(directory: Path, device: str, requested: int | str, *, dtype: str) -> tuple[str, ...]:
    """Return the devices for `model.devices`: a number, or `auto` for the fewest GPUs with room for the weights and batches.

    `device` is the result of `resolve_device`. Raises `ModelError` if there are not enough.
    """
    if not device.startswith("cuda"):
        if requested not in (1, AUTO):
            raise ModelError(
                f"model.devices is {requested}, and the model runs on {device}, which is one device; expected 1 or {AUTO}, or a "
                f"machine with {requested} GPUs"
            )
        return (device,)
    if requested == 1:
        return (device,)
    count = torch.cuda.device_count()
    if requested != AUTO:
        if int(requested) > count:
            gpus = ", ".join(f"{number}: {torch.cuda.get_device_name(number)}" for number in range(count))
            raise ModelError(
                f"model.devices is {requested}, and this process sees {count} GPUs ({gpus}); expected {count} or fewer, or {AUTO}"
            )
        return tuple(f"cuda:{number}" for number in range(int(requested)))
    free = [torch.cuda.mem_get_info(number)[0] for number in range(count)]
    needed = _ROOM * weights_bytes(directory, dtype)
    fewest = next((number for number in range(1, count + 1) if sum(free[:number]) >= needed), count)
    return (device,) if fewest == 1 else tuple(f"cuda:{number}" for number in range(fewest))


def plan_placement(model: Any, devices: Sequence[str], *, itemsize: int | None) -> dict[str, str]:
    """Return the device of each part of a model, as accelerate takes it: its layers in order, none divided.

    Every device gets a part of the weights proportional to its free bytes, up to a layer. `itemsize` is the number of bytes
    of a loaded weight, None for those it has. Raises `ModelError` if a part does not fit.
    """
    free = [sys.maxsize if bytes_free is None else bytes_free for bytes_free in map(free_bytes, devices)]
    parts = dict(_parts(model, "", set(model._no_split_modules or ())))
    sizes = {name: _bytes_of(module, itemsize) for name, module in parts.items()}
    total, at, held = sum(sizes.values()), 0, [0] * len(devices)
    ends = [sum(free[: number + 1]) / max(1, sum(free)) for number in range(len(devices))]
    placement, number = {}, 0
    for name, size in sizes.items():
        middle = (at + size / 2) / max(1, total)
        if size:
            number = next((n for n, end in enumerate(ends) if middle <= end), len(devices) - 1)
        first = not size and any(True for _ in parts[name].buffers())  # positions, which all layers read
        placement[name] = devices[0 if first else number]
        held[number] += size
        at += size
    for device, bytes_held, bytes_free in zip(devices, held, free, strict=True):
        if bytes_held > bytes_free:
            raise ModelError(
                f"{device} would hold {bytes_held:,} of the weights' {total:,} bytes, and has {bytes_free:,} free; set a larger "
                "model.devices, stop other programs on these GPUs, or set a 16-bit model.dtype or model.dtype: int8"
            )
    return placement


def spread(model: Any, placement: dict[str, str]) -> None:
    """Make batches pass through the parts of a model, each on its device; weights elsewhere are moved there."""
    hooked = [module for module in model.modules() if hasattr(module, "_hf_hook")]  # by transformers, as it loads
    remove_hook_from_module(model, recurse=True)
    for module in hooked:
        del module.forward  # accelerate leaves that of the class that the module had, and the head has another
    dispatch_model(
        model,
        device_map=placement,
        main_device=next(iter(placement.values())),
        skip_keys=model._skip_keys_device_placement,
        force_hooks=True,
    )


def devices_of(model: nn.Module) -> list[str]:
    """Return the devices that hold a model's weights, in their order."""
    return list(dict.fromkeys(str(weight.device) for weight in model.parameters()))


def _parts(module: nn.Module, name: str, whole: set[str], *, listed: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a model that must not be divided: members of lists of layers, and modules with their own weights."""
    direct = any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
    children = dict(module.named_children())
    layer = listed and not isinstance(module, nn.ModuleList)
    if name and (direct or layer or not children or type(module).__name__ in whole):
        yield name, module
        return
    for child, part in children.items():
        yield from _parts(part, f"{name}.{child}" if name else child, whole, listed=isinstance(module, nn.ModuleList))


def _bytes_of(module: nn.Module, itemsize: int | None) -> int:
    tensors = [*module.parameters(), *(buffer for buffer in module.buffers() if itemsize is None)]
    return sum(math.prod(tensor.shape) * (itemsize or tensor.itemsize) for tensor in tensors)
