"""The time that each step of a selection takes, in the threads that do it, for `run.json`. No Beam.

A thread takes down its own times. Beam's counters belong to the thread of a bundle, so `ThreadedDoFn` counts the times there. A
step within a step counts for itself alone.

    with timing(3):          # in a call that `timed` makes
        rows = apply(rows)
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple


class _Thread(threading.local):
    def __init__(self) -> None:
        self.secs: Counter[int] = Counter()


_thread = _Thread()


class Timed(NamedTuple):
    """The result of a call, and the seconds of each step in it."""

    result: Any
    secs: Mapping[int, float]


@contextmanager
def timing(step: int) -> Iterator[None]:
    """Count the time of the body for the step of this number, less what is counted for other steps in it."""
    before, began = _thread.secs.total(), time.perf_counter()
    try:
        yield
    finally:
        within = _thread.secs.total() - before
        _thread.secs[step] += time.perf_counter() - began - within  # type: ignore[assignment]


def timed(call: Callable[..., Any], *arguments: Any) -> Timed:
    """Make a call, and take down the times of the steps in it."""
    _thread.secs = Counter()
    result = call(*arguments)
    return Timed(result, _thread.secs)
