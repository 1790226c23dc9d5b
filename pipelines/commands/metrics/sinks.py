"""The form of a sink: the calls when a command begins and ends, and how a missing package is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

from pipelines.commands.metrics.numbers import Ended, Metric
from pipelines.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """A command that has begun its work: what it reads, with which settings, and where it writes."""

    inputs: tuple[str, ...]  # directories of the input files, sorted
    output: str
    output_version: str | None  # with output.versions
    settings: Mapping[str, Any] = field(default_factory=dict)  # plain values by name

    @property
    def root(self) -> str:
        """The output by the name that it has through all its versions."""
        return (
            self.output if self.output_version is None else self.output.removesuffix(f"/versions/{self.output_version}")
        )


class Sink(Protocol):
    """A receiver of numbers or events. Whatever a method raises becomes one warning, and the sink hears no more."""

    name: str

    def begin(self, job: Job) -> None: ...

    def end(self, job: Job | None, ended: Ended, metrics: Sequence[Metric], error: str | None) -> None:
        """Take the numbers; `job` is None where the command failed before its work began, `error` is its message."""


def require_package(module: str, *, needed_by: str, install: str) -> None:
    """Raise `ConfigError` where a package is not installed."""
    if not is_installed(module):
        raise ConfigError(f"{needed_by} needs {module}, not installed; run: pip install {install}")


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False
