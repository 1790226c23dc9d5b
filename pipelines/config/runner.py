"""The runner: this machine, or one of Beam's."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.config.base import Strict, refuse_unused

_ACCELERATOR = re.compile(  # Dataflow's own form; its optional parts come in any order, each at most once
    r"(?!.*;(?P<part>machine_type|install-nvidia-driver|provisioning_model)\b.*;(?P=part)\b)(?=.*;install-nvidia-driver)"
    r"type:[a-z0-9-]+;count:[1-9][0-9]*"
    r"(;machine_type:[a-z0-9-]+|;install-nvidia-driver(:[a-z0-9.]+)?|;provisioning_model:(STANDARD|FLEX_START))+"
)
_REFUSED = {
    "DaskRunner": "it loses data without an error: additional outputs of a step, and elements emitted at the end of a bundle",
    "DirectRunner": "it hands over to a binary that it downloads, and its parallel modes lose data",
}


class RunnerConfig(Strict):
    name: Literal["local", "DataflowRunner", "PortableRunner", "FlinkRunner", "SparkRunner"] = "local"
    """The runner: `local` is this machine; the others are Beam's."""
    workers: int = Field(default=1, ge=1, le=1024)
    """Number of scoring processes of a local run, each with its own model, on its own GPU if there are any, otherwise on its
    share of the cores. A worker that dies is replaced once. The score files are the same except for the last bits, which
    depend on the number of threads."""
    options: dict[str, Any] = {}
    """Beam pipeline options by name; null means unset."""
    accelerator: str | None = None
    """The GPU of the scoring workers, and of no others, on Dataflow: `type:nvidia-l4;count:1;install-nvidia-driver:latest`.
    `;machine_type:g2-standard-8` after the count sets their machine type, `;provisioning_model:FLEX_START` at the end waits
    for a GPU if a zone has none left. `select` requests none."""

    @field_validator("name", mode="before")
    @classmethod
    def _does_not_lose_data(cls, value: Any) -> Any:
        if isinstance(value, str) and value in _REFUSED:
            raise ValueError(f"{_REFUSED[value]}; use local with runner.workers, or one of Beam's other runners")
        return value

    @field_validator("accelerator")
    @classmethod
    def _accelerator_is_known(cls, value: str | None) -> str | None:
        if value is not None and not _ACCELERATOR.fullmatch(value):
            raise ValueError(
                "expected type:GPU;count:N;install-nvidia-driver:latest, optionally with ;machine_type:MACHINE and "
                ";provisioning_model:FLEX_START"
            )
        return value

    @model_validator(mode="after")
    def _accelerator_is_used(self) -> RunnerConfig:
        used = self.name == "DataflowRunner" or self.accelerator is None
        refuse_unused(self, {"accelerator"}, used=used, by="name: DataflowRunner")
        return self

    @model_validator(mode="after")
    def _workers_are_used(self) -> RunnerConfig:
        used = self.name == "local" or self.workers == 1  # the value of the printed example changes nothing
        refuse_unused(self, {"workers"}, used=used, by="name: local")
        return self
