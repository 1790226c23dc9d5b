"""Following a job that runs elsewhere: its counters go into the progress display, and how it ended is told. No Beam.

A local run is over when it has been started, and counts in this process.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from typing import Any

from pipelines import progress, throughput
from pipelines.errors import StorageError, from_text, remedy, whereabouts

log = logging.getLogger(__name__)

EVERY_SECS = 15.0  # between two looks at the counters of a job
_ENDED_BY_SOMEBODY = {"CANCELLED": "was cancelled", "DRAINED": "was drained", "UPDATED": "was replaced by another"}
_GOES_ON = "what is scored stays, and the same command again goes on from there"


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
    counted = throughput.counters(result)
    if not counts_here:
        progress.reported(counted, since=started)
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
            counted = throughput.counted(copy.copy(result.metrics()), tentative=True)
        except Exception as error:
            log.debug("the job's counters are not to be had (%s)", type(error).__name__)
            continue
        if not stop.is_set():
            progress.reported(counted, since=before)
        before = now


__all__ = ["EVERY_SECS", "wait"]
