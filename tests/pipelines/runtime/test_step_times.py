"""Times of steps: each thread its own, and a step within a step for itself."""

from __future__ import annotations

import time

from pipelines.runtime.counters import times_of
from pipelines.runtime.step_times import timed, timing


def test_a_step_within_a_step_counts_for_itself(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 6.0, 10.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    def work() -> str:
        with timing(0), timing(1):  # from 0 to 6, and from 1 to 4
            pass
        with timing(1):  # from 10 to 12
            return "done"

    assert timed(work) == ("done", {0: 3.0, 1: 5.0})
    assert timed(len, "abc") == (3, {})


def test_a_step_that_nothing_counted_has_no_time():
    assert times_of(["where", "top"], {"select_1_microsecs": 2_500_000}) == [
        {"rule": "where", "secs": None},
        {"rule": "top", "secs": 2.5},
    ]
