"""Metrics in a file in Prometheus' text format, for the textfile collector of node_exporter.

The format is described in https://prometheus.io/docs/instrumenting/exposition_formats/. The collector reads files that end in
`.prom`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from pipelines.commands.metrics.numbers import PREFIX, Ended, Metric
from pipelines.commands.metrics.sinks import Job
from pipelines.errors import BestkeptError, ConfigError
from pipelines.storage import publish
from pipelines.storage.files import absolute, check_writable, read_bytes

_LAST_SUCCESS = re.compile(rf"^{PREFIX}last_success_timestamp_seconds(?:{{.*}})? ([0-9.e+]+)$", re.MULTILINE)


class Textfile:
    """A file of metrics, replaced as a whole when a command ends. Raises `ConfigError` if it cannot be written."""

    def __init__(self, path: str, labels: Mapping[str, str]) -> None:
        self.name, self._path, self._labels = f"--metrics {path}", path, labels
        if "://" in path or os.path.isdir(path):
            raise ConfigError(f"--metrics {path}: expected a file on this machine, such as bestkept.prom")
        try:
            check_writable(os.path.dirname(absolute(path)), named=f"--metrics {path}", remedy="name another file")
        except BestkeptError as error:
            raise ConfigError(error.message) from error

    def last_success(self) -> float | None:
        """Return the time of the last success that the file records."""
        match = _LAST_SUCCESS.search((read_bytes(self._path) or b"").decode(errors="replace"))
        return None if match is None else float(match[1])

    def begin(self, job: Job) -> None: ...

    def end(self, job: Job | None, ended: Ended, metrics: Sequence[Metric], error: str | None) -> None:
        os.makedirs(os.path.dirname(absolute(self._path)), exist_ok=True)
        publish.replace(self._path, text_of(metrics, self._labels).encode())


def text_of(metrics: Sequence[Metric], labels: Mapping[str, str]) -> str:
    """Return metrics as text, those with the same name together; `labels` are added to each."""
    lines = []
    for name, group in groupby(metrics, key=lambda metric: metric.full_name):
        members = list(group)
        lines += [f"# HELP {name} {members[0].help}", f"# TYPE {name} gauge"]
        for metric in members:
            words = ",".join(f'{key}="{_escape(value)}"' for key, value in {**labels, **metric.labels}.items())
            lines.append(f"{name}{{{words}}} {metric.number!r}")
    return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    text = value.encode(errors="replace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
