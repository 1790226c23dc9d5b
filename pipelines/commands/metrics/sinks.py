"""The interface of a sink: the calls when a command begins and ends, and the error for a missing package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

from pipelines.commands.metrics.numbers import Ended, Metric
from pipelines.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """A command that has begun its work: its inputs, settings and output."""

    inputs: tuple[str, ...]  # directories of the input files, sorted
    output: str
    output_version: str | None  # with output.versions
    settings: Mapping[str, Any] = field(default_factory=dict)  # plain values by name

    @property
    def root(self) -> str:
        """The path of the output that all its versions have in common."""
        return (
            self.output if self.output_version is None else self.output.removesuffix(f"/versions/{self.output_version}")
        )


class Sink(Protocol):
    """A receiver of metrics or events. An error of a method becomes a warning, and the sink is not called again."""

    name: str

    def begin(self, job: Job) -> None: ...

    def end(self, job: Job | None, ended: Ended, metrics: Sequence[Metric], error: str | None) -> None:
        """Receive the metrics; `job` is None if the command failed before its work began, and `error` is its message."""


def require_package(module: str, *, needed_by: str, install: str) -> None:
    """Raise `ConfigError` if a package is not installed."""
    if not is_installed(module):
        raise ConfigError(f"{needed_by} needs {module}, not installed; run: pip install {install}")


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False
