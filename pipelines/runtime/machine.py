"""The cores and GPUs that this process may use, told without torch: who starts others for them needs no CUDA context."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipelines.errors import ConfigError

_DEVICES = Path("/dev")


def count_cores() -> int:
    return len(list_cores()) or os.cpu_count() or 1


def list_cores() -> list[int]:
    """Those that this process may run on; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def split_cores(parts: int) -> list[list[int]]:
    """The cores in so many parts of one size, side by side, for processes that are to stay on theirs; some may be left over."""
    there = list_cores()
    size = len(there) // max(1, parts)
    return [there[number * size : (number + 1) * size] for number in range(parts)]


def list_gpus() -> list[str]:
    """Their names for `CUDA_VISIBLE_DEVICES`, one each; empty where there is none, or none may be used."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        ends = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:ends]  # CUDA sees none after one that is not valid
    numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in _DEVICES.glob("nvidia*"))
    return [str(number) for number in sorted(int(match[1]) for match in numbers if match)]


def check_workers(count: int) -> None:
    """Raise `ConfigError` where this machine has not as many GPUs, or without any, cores."""
    gpus = len(list_gpus())
    if gpus and count > gpus:
        raise ConfigError(
            f"runner.workers is {count}, and each worker has a GPU of its own, of which this machine shows {gpus}; expected "
            f"{gpus} or fewer"
        )
    cores = count_cores()
    if not gpus and count > cores:
        raise ConfigError(
            f"runner.workers is {count}, and this machine gives {cores} cores and no GPU; expected {cores} or fewer"
        )
