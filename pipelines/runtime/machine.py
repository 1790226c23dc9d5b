"""The cores and GPUs that this process may use, and the version of this program, found without torch and without Beam.

This small module is separate because the launcher of workers must not open a CUDA context, which torch would do, and because
threads, Beam options and workers need the same numbers.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipelines.errors import ConfigError

_DEVICES = Path("/dev")
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8  # parameters of mallopt(3)


def tool_version() -> str:
    """The version of bestkept; `unknown` if it runs from a folder that is not installed."""
    try:
        return version("bestkept")
    except PackageNotFoundError:
        return "unknown"


def count_cores() -> int:
    """The number of cores, at least 1."""
    return len(list_cores()) or os.cpu_count() or 1


def list_cores() -> list[int]:
    """The numbers of the cores that this process may run on; empty if the system does not report them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@cache
def reuse_freed_memory() -> None:
    """Let glibc reuse freed memory for later arrays; this has no effect with another C library.

    By default each large array gets new pages, which the system has to clear first. Clearing took a fifth of the time of a
    selection from 10 million rows. The change applies until the process ends: freed memory below a block in use, and 128 MB at
    the top of the heap, are not returned to the system.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    # older versions refuse more than 32 MB; the other parameters alone would fix the threshold at 128 kB
    if mallopt is not None and (mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 1 << 25)):
        mallopt(_TRIM_THRESHOLD, 1 << 27)
        mallopt(_ARENA_MAX, 1)


def split_cores(parts: int) -> list[list[int]]:
    """Split the cores into adjacent parts of equal size, one for each process; some cores may remain unused."""
    cores = list_cores()
    size = len(cores) // max(1, parts)
    return [cores[number * size : (number + 1) * size] for number in range(parts)]


def list_gpus() -> list[str]:
    """The GPUs as `CUDA_VISIBLE_DEVICES` names them; empty if there are none, or none may be used."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        ends = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:ends]  # CUDA ignores all names after an invalid one
    numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in _DEVICES.glob("nvidia*"))
    return [str(number) for number in sorted(int(match[1]) for match in numbers if match)]


def share_gpus(count: int, wanted: Sequence[int | str]) -> list[str]:
    """The GPUs of each of `count` workers as `CUDA_VISIBLE_DEVICES` names them; empty if there are none.

    `wanted` are the `model.devices` of the models; with `auto`, a model may use an equal share of all GPUs.
    """
    gpus = list_gpus()
    size = max(1, len(gpus) // count) if "auto" in wanted else max(map(int, wanted))
    return [",".join(gpus[number * size : (number + 1) * size]) for number in range(count)] if gpus else []


def check_workers(count: int, *, on_cpu: bool = False, devices: int = 1) -> None:
    """Raise `ConfigError` if this machine has fewer GPUs than `count` workers need, or, without GPUs or `on_cpu`, fewer cores.

    `devices` is the number of GPUs that a worker's model is spread over.
    """
    gpus = 0 if on_cpu else len(list_gpus())
    if gpus and count * devices > gpus:
        needs = "a GPU of its own" if devices == 1 else f"{devices} GPUs of its own (model.devices)"
        raise ConfigError(
            f"runner.workers is {count}, and each worker has {needs}, of which this machine shows {gpus}; expected "
            + (f"{gpus // devices} or fewer" if gpus >= devices else f"model.devices={gpus} or fewer")
        )
    cores, lacking = count_cores(), "model.device: cpu" if on_cpu else "no GPU"
    if not gpus and count > cores:
        raise ConfigError(
            f"runner.workers is {count}, and this machine gives {cores} cores and {lacking}; expected {cores} or fewer"
        )
