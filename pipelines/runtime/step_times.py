"""The time of each step of a selection, in the threads that execute it, for `run.json`. No Beam.

Each thread records its own times. Beam's counters belong to the thread of a bundle, so `ThreadedDoFn` counts the times there. The
time of a step within a step is counted only for the inner one.

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
    """Count the time of the body for the step with this number, minus the time that is counted for other steps in it."""
    before, began = _thread.secs.total(), time.perf_counter()
    try:
        yield
    finally:
        within = _thread.secs.total() - before
        _thread.secs[step] += time.perf_counter() - began - within  # type: ignore[assignment]


def timed(call: Callable[..., Any], *arguments: Any) -> Timed:
    """Make a call, and record the times of the steps in it."""
    _thread.secs = Counter()
    result = call(*arguments)
    return Timed(result, _thread.secs)
