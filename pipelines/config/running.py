"""Where a run takes place."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import field_validator, model_validator

from pipelines.config.base import Strict
from pipelines.config.rules import refuse_unused

_ACCELERATOR = re.compile(
    r"type:[a-z0-9-]+;count:[1-9][0-9]*(;machine_type:[a-z0-9-]+)?;install-nvidia-driver(:[a-z0-9.]+)?"
)


class RunnerConfig(Strict):
    name: Literal["local", "DataflowRunner", "PortableRunner", "FlinkRunner", "SparkRunner"] = "local"
    """Where the run takes place: `local` is this process, in memory, with one worker; the others are Beam's."""
    options: dict[str, Any] = {}
    """Beam pipeline options by name; null is as if it were not there."""
    accelerator: str | None = None
    """The GPU of the workers that score, and of no others, on Dataflow: `type:nvidia-l4;count:1;install-nvidia-driver`, with
    `machine_type:g2-standard-8;` before the driver where the other workers have another machine type. `select` asks for none."""

    @field_validator("accelerator")
    @classmethod
    def _accelerator_is_known(cls, value: str | None) -> str | None:
        if value is not None and not _ACCELERATOR.fullmatch(value):
            raise ValueError(
                "expected type:GPU;count:N;install-nvidia-driver, with machine_type:MACHINE; before the driver if need be"
            )
        return value

    @model_validator(mode="after")
    def _accelerator_is_used(self) -> RunnerConfig:
        used = self.name == "DataflowRunner" or self.accelerator is None
        refuse_unused(self, {"accelerator"}, used=used, by="name: DataflowRunner")
        return self
