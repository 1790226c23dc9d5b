"""Counters of the model's work and speed: Beam metrics on the workers, summed by the launcher in `run.json`.

`run.json` contains times and names the machine, so no result depends on it and no hash covers it.
"""

from __future__ import annotations

import copy
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from apache_beam.metrics import Metrics, MetricsFilter

from pipelines.runtime import progress
from pipelines.storage import canonical_json, publish

if TYPE_CHECKING:
    from rm.scorer import Work

log = logging.getLogger(__name__)

NAMESPACE = "bestkept"
COUNTERS = (
    "rows",
    "tokens_read",
    "tokens_computed",
    "tokens_padding",
    "megaflops",
    "peak_megaflops",
    "forward_microsecs",
)
_STEP = "select_{}_microsecs"
NO_MORE: Mapping[str, Any] = {}
# A global of the process, like Beam's own counters: workers without Beam report it, and no object can be passed to the forwards.
_local = dict.fromkeys(COUNTERS, 0)


def count_forward(work: Work) -> None:
    """Count one forward pass; called on the thread of its bundle, to which Beam's counters belong."""
    progress.add_batch(work.rows, work.read_tokens)
    values = (
        work.rows,
        work.read_tokens,
        work.computed_tokens,
        work.padding_tokens,
        work.flops / 1e6,
        work.peak_flops / 1e6,
        work.secs * 1e6,
    )
    for name, value in zip(COUNTERS, values, strict=True):
        Metrics.counter(NAMESPACE, name).inc(round(value))
        _local[name] += round(value)


def local_counters() -> dict[str, int]:
    """The counters of this process, including work outside a Beam job."""
    return dict(_local)


def count_steps(secs: Mapping[int, float]) -> None:
    """Count the seconds of steps of the selection, by their numbers; called on the thread of a bundle."""
    for step, taken in secs.items():
        Metrics.counter(NAMESPACE, _STEP.format(step)).inc(round(taken * 1e6))


def times_of(rules: Sequence[str], totals: Mapping[str, int]) -> list[dict[str, Any]]:
    """The seconds of each step, over all threads and workers; None if nothing was counted."""
    names = [_STEP.format(number) for number in range(len(rules))]
    secs = [totals[name] / 1e6 if name in totals else None for name in names]
    return [{"rule": rule, "secs": taken} for rule, taken in zip(rules, secs, strict=True)]


def count_fragment(*, input_bytes: int, responses: int, scored: int, found: bool) -> None:
    """Count a fragment that is done: scored and published, or found valid; called on the thread of its bundle."""
    progress.add_fragment(input_bytes=input_bytes, responses=responses, scored=scored, found=found)
    counts = {"fragments": 1, "input_bytes": input_bytes}
    counts |= {"found": 1, "found_bytes": input_bytes, "found_responses": responses} if found else {"published": scored}
    for name, value in counts.items():
        Metrics.counter(NAMESPACE, name).inc(value)


def read_counters(result: Any) -> dict[str, int]:
    """The job's counters by name, zero for those that never counted; {} if the runner does not report them."""
    try:
        return sum_metrics(current_metrics(result))
    except Exception as error:  # a service may refuse, or keep no counters; the output is complete anyway
        log.warning("the runner does not report its counters (%s): run.json has no throughput", type(error).__name__)
        return {}


def current_metrics(result: Any) -> Any:
    """Return the current metrics of a job.

    The result of a portable runner caches the first answer that it gets, that of Dataflow the first after the end. Copies of the
    result are queried instead, so that each query reaches the service.
    """
    return copy.copy(copy.copy(result).metrics())


def sum_metrics(metrics: Any, *, tentative: bool = False) -> dict[str, int]:
    """Sum Beam's metrics by name; `tentative` values are more recent while a job runs, but count repeated work twice."""
    totals = dict.fromkeys(COUNTERS, 0)
    for counter in metrics.query(MetricsFilter().with_namespace(NAMESPACE))["counters"]:
        first, second = (counter.attempted, counter.committed) if tentative else (counter.committed, counter.attempted)
        value = first if first is not None else second
        totals[counter.key.metric.name] = totals.get(counter.key.metric.name, 0) + int(value or 0)
    return totals


def add_counters(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """The sums of the counters of two parts of a run."""
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}


def rates(totals: Mapping[str, int]) -> dict[str, float | int | None]:
    """The throughput of the model from its counters; None if the divisor is zero or the peak is unknown.

    Rates are per second of forward passes, and therefore per device. `sharing_ratio` is the number of tokens read per computed
    token that is not padding: the saving by packing a group's common prompt. `model_flops_utilisation` is
    2 x parameters x computed tokens over the operations that the device could have done (Chowdhery et al. 2022, PaLM,
    appendix B, without attention and backward pass).
    """

    def per(above: str, below: float) -> float | None:
        return totals[above] / below if below else None

    if not totals:
        return {}
    secs = totals["forward_microsecs"] / 1e6
    return {
        "rows": totals["rows"],
        "tokens_read": totals["tokens_read"],
        "tokens_computed": totals["tokens_computed"],
        "forward_secs": secs,
        "rows_per_sec": per("rows", secs),
        "tokens_read_per_sec": per("tokens_read", secs),
        "tokens_computed_per_sec": per("tokens_computed", secs),
        "padding_ratio": per("tokens_padding", totals["tokens_computed"]),
        "sharing_ratio": per("tokens_read", totals["tokens_computed"] - totals["tokens_padding"]),
        "teraflops_per_sec": per("megaflops", secs * 1e6),
        "model_flops_utilisation": per("megaflops", totals["peak_megaflops"]),
    }


def run_record(
    *, command: str, secs: float, totals: Mapping[str, int], more: Mapping[str, Any] = NO_MORE
) -> dict[str, Any]:
    """The content of `run.json`: the launcher's clock and machine, the model's throughput over all workers, and the fields that a
    command adds: `steps` and `signals` of a selection."""
    return {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "secs": round(secs, 3),
        "throughput": rates(totals),
        **{name: value for name, value in more.items() if value},
        "launcher": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
        },
    }


def write_run_record(
    path: str, command: str, secs: float, totals: Mapping[str, int], *, more: Mapping[str, Any] = NO_MORE
) -> dict[str, Any]:
    """Write `run.json` to `path`, replacing an earlier run's, and return its content; counters of several models are summed."""
    content = run_record(command=command, secs=secs, totals=totals, more=more)
    publish.replace(path, canonical_json.to_json(content))
    return content
