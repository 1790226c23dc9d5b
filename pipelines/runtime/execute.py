"""Running a graph to its end, wherever it runs, and noting what it took."""

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

EVERY_SECS = 15.0  # between two looks at the counters of a job
_ENDED_BY_SOMEBODY = {"CANCELLED": "was cancelled", "DRAINED": "was drained", "UPDATED": "was replaced by another"}
_GOES_ON = "what is scored stays, and the same command again goes on from there"
__all__ = ["EVERY_SECS", "wait"]

log = logging.getLogger(__name__)


def execute(
    runner: RunnerConfig, options: PipelineOptions, build_graph: Callable[[Any], None]
) -> dict[str, int] | None:
    """Build and run to the end, and return what the model's counters say, or None where the runner goes on alone; a
    `BestkeptError` of a worker is raised here.

    Raises `StorageError` for anything else, naming type and place but not the message, which may hold row text.
    """
    chosen = make_runner(runner)
    progress.set_stage("scoring")
    try:
        pipeline = beam.Pipeline(runner=chosen, options=options)
        build_graph(pipeline)
        result = pipeline.run()
        if hands_over(options):
            log.info("%s goes on alone: what it has made is complete when manifest.json is there", runner.name)
            return None
        return wait(result, counts_here=runner.name == "local")
    except BestkeptError:
        raise
    except Exception as error:
        raise error_to_report(error, "the pipeline") from error


def wait(result: Any, *, counts_here: bool) -> dict[str, int]:
    """Wait for the end of a job, and return its counters; they are shown meanwhile, unless it `counts_here`, in this process.

    Raises `StorageError` for a job of a service that somebody has ended, or that failed for a reason that is not ours; whatever
    else the runner raises is passed on.
    """
    stop, started = threading.Event(), time.monotonic()
    if not counts_here:
        threading.Thread(target=_follow, args=(result, stop), daemon=True).start()
    try:
        result.wait_until_finish()
    except Exception as error:
        ended = _ended(error)
        if ended is None:
            raise
        raise StorageError(ended) from error
    finally:
        stop.set()
    counted = counters.read_counters(result)
    if not counts_here:
        progress.raise_to_counters(counted, since=started)
    return counted


def _ended(error: Exception) -> str | None:
    """What to say of a job that an error of its service comes with; None for an error of ours, or of another kind."""
    job = getattr(error, "result", None)
    if job is None or not hasattr(job, "job_id") or from_text(str(error)) is not None:
        return None
    name, state = f"job {job.job_id()}", str(job.state)
    if state in _ENDED_BY_SOMEBODY:
        return f"{name} {_ENDED_BY_SOMEBODY[state]}; {_GOES_ON}"
    why = whereabouts(_JobFailed(str(error)))  # without the place in this process, where it was only waited for
    said = "" if why == _JobFailed.__name__ else f": {why}"
    todo = remedy(error) or "its page says why; mend that and run the same command again"
    return f"{name} failed{said}; what is scored stays; {todo}"


class _JobFailed(Exception):
    """What a service tells of a failure."""


def _follow(result: Any, stop: threading.Event) -> None:
    """Show what a job's counters say until `stop`; no failure of that is one of the run."""
    before = time.monotonic()
    while not stop.wait(EVERY_SECS):
        now = time.monotonic()
        try:  # of a copy: Beam's keeps the first answer that comes after the end, and that may be older than the last one
            counted = counters.sum_metrics(copy.copy(result.metrics()), tentative=True)
        except Exception as error:
            log.debug("the job's counters are not to be had (%s)", type(error).__name__)
            continue
        if not stop.is_set():
            progress.raise_to_counters(counted, since=before)
        before = now
