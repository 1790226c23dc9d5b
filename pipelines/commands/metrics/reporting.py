"""Reporting of a command to all configured sinks: when its work begins, and when it has succeeded or failed."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pipelines.commands.metrics.lineage import find_lineage
from pipelines.commands.metrics.numbers import Ended, metrics_of
from pipelines.commands.metrics.otlp import find_otlp
from pipelines.commands.metrics.sinks import Job, Sink
from pipelines.commands.metrics.textfile import Textfile
from pipelines.commands.metrics.trackers import find_trackers
from pipelines.errors import BestkeptError, Exit, hide_credentials, whereabouts
from pipelines.runtime.machine import tool_version
from pipelines.storage.files import join, read_bytes

if TYPE_CHECKING:
    from pipelines.commands.run import Outcome
    from pipelines.config import RunConfig
    from pipelines.plan import Plan

log = logging.getLogger(__name__)

_MOST_INPUTS = 100  # the most directories that an event names


class Reporting:
    """The sinks of one command, set up before any work: a wrong file or a missing package raises `ConfigError`."""

    def __init__(self, command: str, config_path: str, textfile: str | None) -> None:
        self._started, self._documents = time.monotonic(), dict[str, Any]()
        self._job: Job | None = None
        labels = {"command": command, "config": config_path}
        silent = (
            command == "train" and not is_first_process()
        )  # the other processes of `torchrun` have the same numbers
        self._textfile = None if textfile is None or silent else Textfile(textfile, labels)
        self._otlp, self._command = None if silent else find_otlp(labels), command
        self._sinks: list[Sink] = [sink for sink in (self._textfile, self._otlp) if sink is not None]

    def configure(self, config: RunConfig) -> None:
        """Add the sinks of runs: OpenLineage, and the trackers that the configuration names."""
        lineage = find_lineage(self._command)
        self._sinks += [*find_trackers(config.report.report_to), *([] if lineage is None else [lineage])]
        self._settings = _settings(config)

    def begin(self, plan: Plan, output: str, output_version: str | None) -> None:
        """Report that the work begins: the plan is frozen, and the output is claimed."""
        directories = sorted({file.path.rpartition("/")[0] for file in plan.files})[:_MOST_INPUTS]
        job = self._job = Job(tuple(directories), output, output_version, self._settings)
        self._tell(lambda sink: sink.begin(job))

    def succeed(self, outcome: Outcome) -> None:
        """Record the outcome of a `run`, `score` or `select`."""
        from pipelines.runtime import progress

        self._documents = _documents_of(outcome)
        if not outcome.handed_over:
            self._documents["scored_by_run"] = 0 if outcome.already_complete else progress.current().published

    def trained(self, result: Any) -> None:
        """Record the result of a training."""
        self._documents = {"training": result}

    def end(self, exit_code: int, error: str | None = None, counts: Any = None) -> None:
        """Report to all sinks that the command has ended."""
        finished = time.time()
        documents = self._documents
        if error is not None:
            documents = {**self._left_behind(), **({"counts": counts} if counts else {})}
        handed_over = error is None and documents.get("handed_over")
        last_success: float | None = finished
        if error is not None or handed_over:
            last_success = None if self._textfile is None else self._textfile.last_success()
        documents.pop("handed_over", None)
        secs = time.monotonic() - self._started
        ended = Ended(exit_code, secs, finished, tool_version(), last_success, **documents)
        metrics = metrics_of(ended)
        self._tell(lambda sink: sink.end(self._job, ended, metrics, error))

    def _left_behind(self) -> dict[str, Any]:
        """Return the documents that a failed run left in its output: the manifest, if it failed after that, and the drift."""
        if self._job is None:
            return {}
        with suppress(BestkeptError, ValueError, KeyError):
            manifest = json.loads(read_bytes(join(self._job.output, "manifest.json")) or b"{}")
            drift = json.loads(read_bytes(join(self._job.output, "drift.json")) or b"{}")
            return {"manifest": manifest, "counts": _counts_of(manifest), "drift": drift}
        return {}

    def _tell(self, call: Callable[[Sink], None]) -> None:
        """Call each sink; one that fails is named in a warning, and not called again."""
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                why = error.message if isinstance(error, BestkeptError) else whereabouts(error)
                log.warning("the metrics of this command did not reach %s: %s", hide_credentials(sink.name), why)


@contextmanager
def reporting(command: str, config_path: str, textfile: str | None) -> Iterator[Reporting]:
    """Report the outcome of the body, including its failure."""
    report = Reporting(command, config_path, textfile)
    try:
        yield report
    except Exception as error:
        known = isinstance(error, BestkeptError)
        message = error.message if isinstance(error, BestkeptError) else f"unexpected {whereabouts(error)}"
        code = error.exit_code if isinstance(error, BestkeptError) else Exit.STORAGE
        report.end(int(code), message, error.counts if known else None)  # type: ignore[attr-defined]
        raise
    report.end(0)


def is_first_process() -> bool:
    """Return whether this process is the one that reports in a training on several devices."""
    return os.environ.get("RANK", "0") == "0"


def _documents_of(outcome: Outcome) -> dict[str, Any]:
    if outcome.handed_over:
        return {"handed_over": True}
    documents: dict[str, Any] = {"members": outcome.members, "counts": outcome.totals, "run": outcome.record or {}}
    if outcome.manifest is not None:
        documents |= {"manifest": outcome.manifest, "counts": _counts_of(outcome.manifest)}
    if outcome.version_run is not None:
        documents["drift"] = json.loads(read_bytes(join(outcome.version_run.path, "drift.json")) or b"{}")
    return documents


def _counts_of(manifest: Any) -> dict[str, Any]:
    return {**manifest["counts"], "rejected": manifest["rejected"]} if manifest else {}


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that differ from their defaults, by dotted name; a list is one value. Options of runners, which may
    contain secrets, are omitted."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, part in value.items():
                yield from walk(part, f"{path}.{name}" if path else name)
        else:
            yield path, value

    return dict(walk(config.model_dump(mode="json", exclude_defaults=True, exclude={"runner": {"options"}}), ""))
