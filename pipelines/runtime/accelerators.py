"""GPUs of Dataflow's workers: the machine types that have them, their support by torch's wheels, and their number types.

A GPU or a machine type that is not in these tables is not checked. Pure; no Beam. Sources: Compute Engine's pages on GPU machine
types, Dataflow's on GPUs, and torch's matrix of CUDA versions and compute capabilities (pytorch/pytorch, RELEASE.md and
issue 172352).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

DRIVER = "install-nvidia-driver:latest"
"""The option that installs a driver. torch's CUDA needs version 580 or later, and the service's default may be older."""
_TORCH_CUDA, _LEAST_CAPABILITY = "13.0", "7.5"  # of the wheels on PyPI of the torch in constraints.txt


class Accelerator(NamedTuple):
    """The parts of `runner.accelerator` that the checks read."""

    type: str
    gpus: int
    machine_type: str | None

    @classmethod
    def of(cls, text: str) -> Accelerator:
        """Parse a validated `runner.accelerator`."""
        parts = dict(part.partition(":")[::2] for part in text.split(";"))
        return cls(parts["type"], int(parts["count"]), parts.get("machine_type"))


@dataclass(frozen=True)
class _Gpu:
    families: tuple[str, ...]  # prefixes of the machine types that have it
    gpus: Mapping[str, int] = field(default_factory=dict)  # on each known machine type, the usual one first
    attached: tuple[int, ...] = ()  # the counts that can be attached to a machine of another family
    too_old: str | None = None  # its compute capability, if torch's wheels have no kernels for it
    bfloat16: bool = True  # False if it is only emulated

    def example(self, gpus: int) -> str:
        """Return a machine type with this many GPUs, if one is known."""
        fitting = [machine for machine, count in self.gpus.items() if count == gpus]
        return fitting[0] if fitting else f"{self.families[0]}..."


def _by_suffix(family: str, *counts: int) -> dict[str, int]:
    return {f"{family}{count}g": count for count in counts}


_G2 = {"g2-standard-8": 1, "g2-standard-4": 1, "g2-standard-12": 1, "g2-standard-16": 1, "g2-standard-32": 1}
_G2 |= {"g2-standard-24": 2, "g2-standard-48": 4, "g2-standard-96": 8}
_G4 = {"g4-standard-48": 1, "g4-standard-96": 2, "g4-standard-192": 4, "g4-standard-384": 8}
_N1 = {"n1-standard-8": 1, "n1-standard-16": 2, "n1-standard-32": 4}  # examples: the GPUs are attached
_GPUS = {
    "nvidia-l4": _Gpu(("g2-",), _G2),
    "nvidia-rtx-pro-6000": _Gpu(("g4-",), _G4),
    "nvidia-tesla-t4": _Gpu(("n1-",), _N1, attached=(1, 2, 4), bfloat16=False),
    "nvidia-tesla-v100": _Gpu(("n1-",), _N1, attached=(1, 2, 4, 8), too_old="7.0", bfloat16=False),
    "nvidia-tesla-p100": _Gpu(("n1-",), _N1, attached=(1, 2, 4), too_old="6.0", bfloat16=False),
    "nvidia-tesla-p4": _Gpu(("n1-",), _N1, attached=(1, 2, 4), too_old="6.1", bfloat16=False),
    "nvidia-tesla-a100": _Gpu(
        ("a2-highgpu-", "a2-megagpu-"), _by_suffix("a2-highgpu-", 1, 2, 4, 8) | _by_suffix("a2-megagpu-", 16)
    ),
    "nvidia-a100-80gb": _Gpu(("a2-ultragpu-",), _by_suffix("a2-ultragpu-", 1, 2, 4, 8)),
    "nvidia-h100-80gb": _Gpu(
        ("a3-highgpu-", "a3-edgegpu-"), _by_suffix("a3-highgpu-", 1, 2, 4, 8) | _by_suffix("a3-edgegpu-", 8)
    ),
    "nvidia-h100-mega-80gb": _Gpu(("a3-megagpu-",), _by_suffix("a3-megagpu-", 8)),
    "nvidia-h200-141gb": _Gpu(("a3-ultragpu-",), _by_suffix("a3-ultragpu-", 8)),
    "nvidia-b200": _Gpu(("a4-highgpu-",), _by_suffix("a4-highgpu-", 8)),
}


def why_too_old(gpu: str) -> str | None:
    """Return why the torch of this project has no kernels for a GPU; None if it has, or if that is unknown."""
    known = _GPUS.get(gpu)
    if known is None or known.too_old is None:
        return None
    return (
        f"torch is built for CUDA {_TORCH_CUDA}, which needs compute capability {_LEAST_CAPABILITY} or more, and {gpu} has "
        f"{known.too_old}"
    )


def dtype_for(gpu: str) -> str:
    """Return the recommended `model.dtype` for a GPU, in words."""
    if gpu in _GPUS and not _GPUS[gpu].bfloat16:
        return "float16, or float32 for a model that overflows in it"
    return "bfloat16"


def dtype_mistake(dtype: str, gpu: str) -> str | None:
    """Return the error of a `model.dtype` on a GPU; None if there is none, or if the GPU is refused anyway."""
    if why_too_old(gpu) is not None:
        return None
    if dtype == "auto":
        return f"is 'auto', which is resolved by the launcher, and that has no {gpu}; expected {dtype_for(gpu)}"
    if dtype in ("bfloat16", "int8") and gpu in _GPUS and not _GPUS[gpu].bfloat16:  # int8 computes in bfloat16
        return f"is {dtype!r}, and {gpu} only emulates bfloat16; expected {dtype_for(gpu)}"
    return None


def machine_mistakes(accelerator: Accelerator, machine_type: str | None, *, option: str) -> Iterator[str]:
    """Yield the errors of a GPU and its machine; `machine_type` is that of all workers, as set by `option`."""
    too_old = why_too_old(accelerator.type)
    if too_old is not None:
        yield f"runner.accelerator has type:{accelerator.type}; {too_old}; expected nvidia-tesla-t4, nvidia-l4 or a newer one"
        return
    machine, known = accelerator.machine_type or machine_type, _GPUS.get(accelerator.type, _Gpu(("MACHINE-",)))
    setting = "runner.accelerator has machine_type:" if accelerator.machine_type else f"{option} is "
    if machine is None:
        example = known.example(accelerator.gpus)
        yield (
            f"{option} is missing, and {accelerator.type} needs one that has it: {option}={example}, or machine_type:{example} "
            "in runner.accelerator for the scoring workers alone"
        )
    elif accelerator.type in _GPUS and not machine.startswith(known.families):
        families = " or ".join(f"{family}..." for family in known.families)
        yield f"{setting}{machine}, which has no {accelerator.type}; expected {families}"
    elif known.attached and accelerator.gpus not in known.attached:
        numbers = ", ".join(map(str, known.attached))
        yield f"runner.accelerator has count:{accelerator.gpus}; expected {numbers}: so many {accelerator.type} a machine takes"
    elif not known.attached and known.gpus.get(machine, accelerator.gpus) != accelerator.gpus:
        has, other = known.gpus[machine], known.example(accelerator.gpus)
        or_other = f", or {other}" if other in known.gpus else ""
        yield (
            f"{setting}{machine}, which has {has} {accelerator.type}, and runner.accelerator has count:{accelerator.gpus}; "
            f"expected count:{has}{or_other}"
        )
