"""Runs a graph to its end, on this machine or on a service, and shows the counters of its job meanwhile."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.config import RunnerConfig
from pipelines.errors import BestkeptError, StorageError, error_to_report, from_text, remedy, whereabouts
from pipelines.runtime import counters, progress
from pipelines.runtime.beam_options import hands_over, make_runner

EVERY_SECS = 15.0  # between two readings of the counters of a job
_ENDED_FROM_OUTSIDE = {"CANCELLED": "was cancelled", "DRAINED": "was drained", "UPDATED": "was replaced by another"}
_RESUMES = "what is scored stays, and the same command again resumes from there"

log = logging.getLogger(__name__)


def execute(
    runner: RunnerConfig, options: PipelineOptions, build_graph: Callable[[Any], None]
) -> dict[str, int] | None:
    """Build a graph and run it to its end; return the job's counters, or None where the job continues without the launcher.

    Raises the `BestkeptError` of a worker, and `StorageError` for any other error: it names type and place but not the message,
    which may hold row text.
    """
    chosen = make_runner(runner)
    progress.set_stage("scoring")
    try:
        pipeline = beam.Pipeline(runner=chosen, options=options)
        build_graph(pipeline)
        result = pipeline.run()
        if hands_over(options):
            log.info("%s goes on alone; the same command again says whether it is complete", runner.name)
            return None
        return wait(result, counts_here=runner.name == "local")
    except BestkeptError:
        raise
    except Exception as error:
        raise error_to_report(error, "the pipeline") from error


def wait(result: Any, *, counts_here: bool) -> dict[str, int]:
    """Wait for the end of a job, show its counters meanwhile, and return them.

    A job that `counts_here`, in this process, shows them itself. Raises `StorageError` for a job of a service that was cancelled,
    drained or replaced, or that failed without a `BestkeptError`; passes on any other error of the runner.
    """
    stop, started = threading.Event(), time.monotonic()
    if not counts_here:
        threading.Thread(target=_follow, args=(result, stop), daemon=True).start()
    try:
        result.wait_until_finish()
    except Exception as error:
        message = _describe_end(error)
        if message is None:
            raise
        raise StorageError(message) from error
    finally:
        stop.set()
    job_counters = counters.read_counters(result)
    if not counts_here:
        progress.raise_to_counters(job_counters, since=started)
    return job_counters


def _describe_end(error: Exception) -> str | None:
    """The message for a job whose service has raised `error`; None for an error of ours, or of another kind."""
    job = getattr(error, "result", None)
    if job is None or not hasattr(job, "job_id") or from_text(str(error)) is not None:
        return None
    name, state = f"job {job.job_id()}", str(job.state)
    if state in _ENDED_FROM_OUTSIDE:
        return f"{name} {_ENDED_FROM_OUTSIDE[state]}; {_RESUMES}"
    why = whereabouts(_JobFailed(str(error)))  # without the place in this process, which only waited for the job
    cause = "" if why == _JobFailed.__name__ else f": {why}"
    todo = remedy(error) or "its page says why; fix that and run the same command again"
    return f"{name} failed{cause}; what is scored stays; {todo}"


class _JobFailed(Exception):
    """The failure of a job as its service describes it."""


def _follow(result: Any, stop: threading.Event) -> None:
    """Show a job's counters until `stop` is set; a failure to read them does not end the run."""
    before = time.monotonic()
    while not stop.wait(EVERY_SECS):
        now = time.monotonic()
        try:  # from a copy: Beam's object keeps the first answer after the end, which may be older than the last one
            job_counters = counters.sum_metrics(copy.copy(result.metrics()), tentative=True)
        except Exception as error:
            log.debug("cannot read the job's counters (%s)", type(error).__name__)
            continue
        if not stop.is_set():
            progress.raise_to_counters(job_counters, since=before)
        before = now
