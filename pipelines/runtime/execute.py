"""Runs a graph to its end, on this machine or on a service, and shows the counters of its job."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

from pipelines.config import RunnerConfig
from pipelines.errors import BestkeptError, StorageError, error_to_report, from_text, remedy, whereabouts
from pipelines.runtime import counters, progress
from pipelines.runtime.beam_options import hands_over, make_runner

EVERY_SECS = 15.0  # between two readings of the counters of a job
_ENDED_FROM_OUTSIDE = {"CANCELLED": "was cancelled", "DRAINED": "was drained", "UPDATED": "was replaced by another"}
_INTERRUPTED = re.compile(r"^KeyboardInterrupt\b", re.MULTILINE)  # Ctrl-C in Beam's worker, as Beam reports it
_RESUMES = "finished scores are kept; run the same command again to resume"

log = logging.getLogger(__name__)


def execute(
    runner: RunnerConfig, options: PipelineOptions, build_graph: Callable[[Any], None]
) -> dict[str, int] | None:
    """Build a graph and run it to its end; return the job's counters, or None if the job continues without the launcher.

    Raises the `BestkeptError` of a worker, and `StorageError` for any other error. That error quotes a portable engine's message
    about itself and its workers; otherwise it has type and place, but not the message, which may contain row text.
    """
    chosen = make_runner(runner)
    progress.set_stage("scoring")
    try:
        pipeline = beam.Pipeline(runner=chosen, options=options)
        build_graph(pipeline)
        result = pipeline.run()
        if hands_over(options):
            log.info("%s continues alone; the same command later reports whether it is complete", runner.name)
            return None
        return wait(result, counts_here=runner.name == "local")
    except BestkeptError:
        raise
    except Exception as error:
        if _INTERRUPTED.search(str(error)):  # when called from Python; on a signal, the command ends at once
            raise KeyboardInterrupt from None
        endpoint = options.view_as(PortableOptions).job_endpoint
        raise engine_error(error, endpoint) or error_to_report(error, "the pipeline") from error


def engine_error(error: Exception, endpoint: str | None) -> StorageError | None:
    """The error to report if a portable engine is unreachable, has stopped or failed a job; None for errors of our own code."""
    engine, text = f"the engine at {endpoint}" if endpoint else "the engine", str(error)
    if isinstance(error, grpc.FutureTimeoutError):
        return StorageError(
            f"{engine} does not answer; start it, or correct job_endpoint, and run the same command again"
        )
    if from_text(text) is not None or "Traceback (most recent call last)" in text:
        return None
    if isinstance(error, grpc.RpcError):
        details = _sentence(error.details() or "") if isinstance(error, grpc.Call) else ""
        why = f" ({details})" if details else ""
        return StorageError(
            f"{engine} no longer answers{why}; finished scores are kept; start it again and run the same command again"
        )
    match = _FAILED_JOB.search(text)
    if match is None:
        return None
    name, state = f"job {match['job']}", match["state"]
    if state in _ENDED_FROM_OUTSIDE:
        return StorageError(f"{name} {_ENDED_FROM_OUTSIDE[state]}; {_RESUMES}")
    said = _sentence(match["message"])
    for kind, (cause, todo) in _CAUSES.items():
        if re.search(kind, said, re.IGNORECASE):
            return StorageError(f"{name} {cause}; {engine} says: {said}; {todo}")
    return StorageError(f"{name} failed; {engine} says: {said}; {_RESUMES}, once the cause is gone")


_FAILED_JOB = re.compile(r"Pipeline (?P<job>\S+) failed in state (?P<state>\w+): (?P<message>.*)", re.DOTALL)
_CAUSES = {  # pattern of an engine's message → meaning, and remedy
    "control connection|(start|launch)\\w* .*(worker|environment)|(worker|environment).* (start|launch)": (
        "got no worker",
        "the log of the worker pool (environment_config) says why; correct that and run the same command again",
    ),
    "disconnected|worker.* (died|exited|lost|gone)|lost .*worker": (
        "lost a worker",
        "finished scores are kept; give workers more memory if that ran out (see the kernel's log); the same command resumes",
    ),
}
_MOST_SAID = 300  # characters of an engine's sentence


def _sentence(message: str) -> str:
    """Return the first line of an engine's message, without the leading error types and gRPC prefixes."""
    line = next(iter(message.strip().splitlines()), "nothing")
    line = re.sub(r"rpc error: code = \w+ desc = |\b(?:[\w$]+\.)*[A-Z]\w*(?:Error|Exception): ", "", line)
    return line if len(line) <= _MOST_SAID else f"{line[:_MOST_SAID]} [...]"


def wait(result: Any, *, counts_here: bool) -> dict[str, int]:
    """Wait for the end of a job while showing its counters, and return them.

    A job that `counts_here`, in this process, shows its own counters. Raises `StorageError` if a service's job was cancelled,
    drained or replaced, or failed without a `BestkeptError`; any other error of the runner is passed on.
    """
    stop, started = threading.Event(), time.monotonic()
    if not counts_here:
        if hasattr(result, "_message_stream"):
            result._message_stream = _until_broken(result._message_stream)
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
    """The message for a job whose service raised `error`; None for an error of our own, or of another kind."""
    job = getattr(error, "result", None)
    if job is None or not hasattr(job, "job_id") or from_text(str(error)) is not None:
        return None
    name, state = f"job {job.job_id()}", str(job.state)
    if state in _ENDED_FROM_OUTSIDE:
        return f"{name} {_ENDED_FROM_OUTSIDE[state]}; {_RESUMES}"
    why = whereabouts(_JobFailed(str(error)))  # without the place in this process, which only waited for the job
    cause = "" if why == _JobFailed.__name__ else f": {why}"
    todo = remedy(error) or "its page says why; fix that and run the same command again"
    return f"{name} failed{cause}; finished scores are kept; {todo}"


class _JobFailed(Exception):
    """The failure of a job, as described by its service."""


def _until_broken(stream: Iterable[Any]) -> Iterator[Any]:
    """Yield a job's messages until the engine stops. The stream of states raises that error as well; here, a thread of Beam would
    only print it."""
    with suppress(grpc.RpcError):
        yield from stream


def _follow(result: Any, stop: threading.Event) -> None:
    """Show a job's counters until `stop` is set; a failure to read them does not end the run."""
    before = time.monotonic()
    while not stop.wait(EVERY_SECS):
        now = time.monotonic()
        try:
            job_counters = counters.sum_metrics(counters.current_metrics(result), tentative=True)
        except Exception as error:
            log.debug("cannot read the job's counters (%s)", type(error).__name__)
            continue
        if not stop.is_set():
            progress.raise_to_counters(job_counters, since=before)
        before = now
