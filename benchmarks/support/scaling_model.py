"""A simulation of a run on many workers: units of work, slow machines, preemption, and the start of a worker.

It follows the pipeline: a worker takes one unit at a time and scores its fragments in order; each is durable once it is
scored. A preempted worker loses its current fragment; the unit returns to the queue with the remaining fragments, and another
machine replaces the worker.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Circumstances:
    """The machines that the workers run on."""

    start_secs: float = 240.0  # until a worker scores: machine, image with CUDA, weights
    # of the lognormal factor by which a worker is slower or faster, for as long as it lives
    slowness_sigma: float = 0.1
    preemptions_per_hour: float = 0.0  # of each worker, as spot machines are
    price_per_hour: float = 0.0  # of one worker


@dataclass(frozen=True)
class Forecast:
    """The simulated run on one number of workers."""

    workers: int
    secs: float
    efficiency: float  # work over what all workers were paid for, until the last is done
    preempted: int
    cost: float


def units_of(
    measured_secs: np.ndarray, *, fragments: int, per_unit: int, mean_secs: float, seed: int = 0
) -> list[np.ndarray]:
    """Divide `fragments` fragments into units; their times are drawn from measured ones and scaled to a mean."""
    rng = np.random.default_rng(seed)
    secs = rng.choice(measured_secs, fragments) * (mean_secs / measured_secs.mean())
    return [secs[first : first + per_unit] for first in range(0, fragments, per_unit)]


def simulate(units: list[np.ndarray], workers: int, machines: Circumstances, *, seed: int = 0) -> Forecast:
    """Simulate the run of all units on `workers` workers."""
    rng = np.random.default_rng(seed)
    waiting = deque(units)
    free: list[tuple[float, int]] = []  # when a worker is free, and its number
    slowness: list[float] = []
    ends_at: list[float] = []

    def start(at: float) -> None:
        heapq.heappush(free, (at + machines.start_secs, len(slowness)))
        slowness.append(float(rng.lognormal(0.0, machines.slowness_sigma)))
        rate = machines.preemptions_per_hour / 3600
        ends_at.append(at + machines.start_secs + (float(rng.exponential(1 / rate)) if rate else float("inf")))

    for _ in range(workers):
        start(0.0)
    done_at, preempted = 0.0, 0
    while waiting:
        now, worker = heapq.heappop(free)
        unit = waiting.popleft()
        ends = now + np.cumsum(unit * slowness[worker])
        scored = int(np.searchsorted(ends, ends_at[worker], side="right"))
        if scored < len(unit):
            preempted += 1
            waiting.append(unit[scored:])
            done_at = max(done_at, float(ends[scored - 1]) if scored else 0.0)
            start(ends_at[worker])
        else:
            done_at = max(done_at, float(ends[-1]))
            heapq.heappush(free, (float(ends[-1]), worker))
    machine_secs = workers * done_at
    work = float(sum(unit.sum() for unit in units))
    return Forecast(workers, done_at, work / machine_secs, preempted, machines.price_per_hour * machine_secs / 3600)


def mean(forecasts: list[Forecast]) -> Forecast:
    """The mean of forecasts from several draws."""
    count = len(forecasts)
    return Forecast(
        forecasts[0].workers,
        sum(one.secs for one in forecasts) / count,
        sum(one.efficiency for one in forecasts) / count,
        round(sum(one.preempted for one in forecasts) / count),
        sum(one.cost for one in forecasts) / count,
    )
