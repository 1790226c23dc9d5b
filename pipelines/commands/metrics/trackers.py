"""Metrics and settings of a curation run in the experiment trackers of `report.report_to`: MLflow and Trackio.

Each is configured by its own environment variables (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, `TRACKIO_SPACE_ID`, ...).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.commands.metrics.numbers import Ended, Metric
from pipelines.commands.metrics.sinks import Job, Sink, require_package

_MOST_TEXT = 500  # characters of a value, as MLflow allows


class Mlflow:
    """A run of MLflow, created when a command ends."""

    name = "mlflow"

    def begin(self, job: Job) -> None:
        # by default MLflow retries for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

    def end(self, job: Job | None, ended: Ended, metrics: Sequence[Metric], error: str | None) -> None:
        if job is None:
            return
        import mlflow

        status = "FAILED"  # also of a partly logged run, which MLflow would otherwise mark FINISHED at exit
        with contextlib.redirect_stdout(io.StringIO()):  # which has the path of the output, and nothing else
            mlflow.start_run(run_name=run_name(job))
            try:
                mlflow.log_params(_texts(job.settings))
                mlflow.set_tags({"bestkept.version": ended.version, "bestkept.output": job.output})
                mlflow.log_metrics(flat(metrics))
                status = "FINISHED" if ended.exit_code == 0 else "FAILED"
            finally:
                mlflow.end_run(status)


class Trackio:
    """A run of Trackio, created when a command ends."""

    name = "trackio"

    def begin(self, job: Job) -> None: ...

    def end(self, job: Job | None, ended: Ended, metrics: Sequence[Metric], error: str | None) -> None:
        if job is None:
            return
        import trackio

        config = {**_texts(job.settings), "bestkept.version": ended.version, "bestkept.output": job.output}
        project = os.environ.get("TRACKIO_PROJECT", "bestkept")
        with contextlib.redirect_stdout(io.StringIO()):  # which has the path of the output, and nothing else
            trackio.init(project, name=run_name(job), config=config, resume="allow", embed=False)
            trackio.log(flat(metrics))
            trackio.finish()


def find_trackers(names: Sequence[str]) -> list[Sink]:
    """Return the trackers of these names. Raises `ConfigError` for a missing package."""
    for name in names:
        require_package(name, needed_by=f"report.report_to: [{name}]", install=name)
    kinds: dict[str, type[Mlflow] | type[Trackio]] = {"mlflow": Mlflow, "trackio": Trackio}
    return [kinds[name]() for name in dict.fromkeys(names)]


def flat(metrics: Sequence[Metric]) -> dict[str, float]:
    """Return metrics by name, followed by slashes and the values of their labels: `responses_rejected/empty_response`."""
    return {"/".join([one.name, *map(_key, one.labels.values())]): one.number for one in metrics}


def run_name(job: Job) -> str:
    """Return the last part of the output's path, with its version."""
    name = job.root.rstrip("/").rpartition("/")[2]
    return name if job.output_version is None else f"{name} {job.output_version[:8]}"


def _key(value: str) -> str:
    return "".join(character if character.isalnum() or character in "_-. " else "_" for character in value)


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:_MOST_TEXT] for name, value in settings.items()}
