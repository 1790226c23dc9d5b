"""GPUs and prices for `bestkept plan`, from the dated tables beside this module or from a user's price file.

The runner's options name the machine of a run; a GPU without a machine has the price of the cheapest machine with that GPU.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from pipelines.config import load
from pipelines.config.base import Strict
from pipelines.errors import ConfigError

OLD_DAYS = 180
_FOLDER = Path(__file__).parent
PRICES = _FOLDER / "prices.yaml"

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Price = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Gpu(Strict):
    """A row of the table of GPUs."""

    peak_tflops: Positive
    """Peak of dense products in 16 bits."""
    float32_tflops: Positive
    memory_gib: Positive
    bfloat16: bool = True
    """False if the type is only emulated."""

    def peak_flops(self, dtype: str) -> float:
        return 1e12 * (self.float32_tflops if dtype == "float32" else self.peak_tflops)


class Utilisation(Strict):
    """The share of a GPU's peak that a forward pass reaches."""

    parameters: Positive
    """Largest size of the models to which it applies."""
    low: Annotated[float, Field(gt=0.0, le=1.0)]
    high: Annotated[float, Field(gt=0.0, le=1.0)]

    @model_validator(mode="after")
    def _ordered(self) -> Utilisation:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is more than high {self.high}; exchange them")
        return self


class Span(Strict):
    """A range of seconds."""

    low: Price
    high: Price


class Hardware(Strict):
    """The content of `hardware.yaml`."""

    date: datetime.date
    source: str
    gpus: dict[str, Gpu]
    utilisation: Annotated[list[Utilisation], Field(min_length=1)]
    start_secs: Span

    def utilisation_of(self, parameters: int) -> tuple[float, float]:
        """Return the range assumed for a model of this size."""
        fitting = [row for row in self.utilisation if parameters <= row.parameters] or self.utilisation[-1:]
        return fitting[0].low, fitting[0].high


class Machine(Strict):
    """A machine type with its price."""

    hour: Price
    """Price of an hour, GPUs included."""
    gpu: str | None = None
    gpus: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _together(self) -> Machine:
        if (self.gpu is None) != (self.gpus == 0):
            raise ValueError(f"gpu is {self.gpu!r} and gpus {self.gpus}; give both, or neither")
        return self


class Prices(Strict):
    """The content of `prices.yaml`, or of a file of the same form."""

    date: datetime.date
    currency: str
    region: str
    source: str
    shuffle_gib: Price = 0.0
    """Price of a shuffled GiB."""
    machines: Annotated[dict[str, Machine], Field(min_length=1)]

    def age_days(self, today: datetime.date) -> int:
        return (today - self.date).days

    def machine(self, name: str | None, gpu: str | None) -> tuple[str, Machine] | None:
        """Return the machine with that name, or the cheapest one with that GPU; None if there is none.

        A machine to which the GPU is attached is listed as MACHINE+GPU.
        """
        keys = sorted(self.machines, key=lambda key: self.machines[key].hour)
        if name is not None:
            keys = [key for key in (f"{name}+{gpu}", name) if key in self.machines]
        elif gpu is None:
            return None
        fitting = [key for key in keys if gpu is None or self.machines[key].gpu == gpu]
        return (fitting[0], self.machines[fitting[0]]) if fitting else None


@lru_cache(maxsize=1)
def hardware() -> Hardware:
    """Return the built-in table of GPUs."""
    return load(Hardware, str(_FOLDER / "hardware.yaml"))


def load_prices(path: str | None) -> Prices:
    """Return the prices in a file, or the built-in ones. Raises `ConfigError` with all mistakes at once."""
    prices = load(Prices, path or str(PRICES))
    known = hardware().gpus
    priced = {machine.gpu for machine in prices.machines.values() if machine.gpu is not None}
    if unknown := sorted(priced - known.keys()):
        raise ConfigError(f"{path}: machines names the GPU {unknown[0]!r}; expected one of {', '.join(known)}")
    return prices


def why_too_large(name: str, gpu: Gpu, memory: tuple[int, int], *, devices: int = 1) -> str | None:
    """Return why a model of (weights, other memory) in bytes cannot run on `devices` of this GPU; None if it can.

    Each GPU holds its part of the weights and, in its turn, a whole batch.
    """
    weights, room = (size / 2**30 for size in memory)
    if weights / devices + room <= gpu.memory_gib:
        return None
    one = f"{gpu.memory_gib:g} GiB of {name}" if devices == 1 else f"{gpu.memory_gib:g} GiB of each of {devices} {name}"
    return (
        f"{weights:,.1f} GiB of weights and {room:,.1f} GiB for activations{'' if devices == 1 else ' on each'} do not fit into "
        f"the {one}"
    )


def gpu_of(name: str, table: Mapping[str, Gpu]) -> Gpu:
    """Return the GPU with that name. Raises `ConfigError` for a name that is not in the table."""
    if name not in table:
        raise ConfigError(
            f"the GPU {name!r} is not in the table of `bestkept plan`; expected one of {', '.join(table)}"
        )
    return table[name]
