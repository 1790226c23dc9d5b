"""What has been done so far, counted in this process; the launcher of a local run shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """Totals since `reset`."""

    stage: str = "planning"
    total_bytes: int = 0  # of the corpus; 0 until it is planned
    input_bytes: int = 0  # of all fragments that are done
    fragments: int = 0
    found: int = 0  # fragments that were scored before
    found_bytes: int = 0
    found_responses: int = 0
    published: int = 0  # responses scored by this run, in fragments that are done
    scored: int = 0  # rows through the model, the fragment in work included; duplicates once
    tokens: int = 0
    scored_bytes: float = 0.0  # input bytes that this run has scored, the fragment in work included
    since: float | None = None  # monotonic seconds at which the first fragment began, the model loaded
    settled: bool = (
        False  # workers have scored all there is, and are counted: what is found from now on is what they made
    )


_COUNTED = {  # the field, and the counter of `throughput` that holds it
    "input_bytes": "input_bytes",
    "fragments": "fragments",
    "found": "found",
    "found_bytes": "found_bytes",
    "found_responses": "found_responses",
    "published": "published",
    "scored": "rows",
    "tokens": "tokens_read",
}
_lock = threading.Lock()
_now = Progress()
_bytes_per_response = 0.0  # in the fragment in work


def _update(**changes: object) -> None:
    global _now
    _now = replace(_now, **changes)  # type: ignore[arg-type]


def reset() -> None:
    global _now
    with _lock:
        _now = Progress()


def current() -> Progress:
    with _lock:
        return _now


def set_stage(name: str) -> None:
    with _lock:
        _update(stage=name)


def set_total_bytes(total_bytes: int) -> None:
    """The corpus is listed."""
    with _lock:
        _update(total_bytes=total_bytes)


def begin_fragment(*, input_bytes: int, responses: int) -> None:
    """A fragment goes to the model."""
    global _bytes_per_response
    with _lock:
        _bytes_per_response = input_bytes / max(1, responses)
        if _now.since is None:
            _update(since=time.monotonic())


def add_batch(rows: int, tokens: int) -> None:
    """The model has scored one batch."""
    with _lock:
        _update(
            scored=_now.scored + rows,
            tokens=_now.tokens + tokens,
            scored_bytes=_now.scored_bytes + rows * _bytes_per_response,
        )


def add_fragment(*, input_bytes: int, responses: int, scored: int, found: bool) -> None:
    """One fragment is done: scored and published by this process, or found valid."""
    with _lock:
        if found and _now.settled:
            return
        _update(
            input_bytes=_now.input_bytes + input_bytes,
            fragments=_now.fragments + 1,
            found=_now.found + int(found),
            published=_now.published + (not found) * scored,
            found_bytes=_now.found_bytes + found * input_bytes,
            found_responses=_now.found_responses + found * responses,
        )


def raise_to_counters(counts: Mapping[str, int], *, since: float) -> None:
    """What the workers of a job elsewhere have counted so far (`throughput.counters`); nothing becomes less. `since` is when
    nothing was scored yet, in monotonic seconds."""
    with _lock:
        known = {name: max(getattr(_now, name), counts.get(counter, 0)) for name, counter in _COUNTED.items()}
        _update(**known, scored_bytes=float(known["input_bytes"] - known["found_bytes"]))
        if _now.since is None and _now.scored:
            _update(since=since)


COUNTS = (
    "input_bytes",
    "fragments",
    "found",
    "found_bytes",
    "found_responses",
    "published",
    "scored",
    "tokens",
    "scored_bytes",
)


def set_from_workers(parts: Iterable[Progress]) -> None:
    """What workers of this machine have done, together, instead of what this process has."""
    parts = list(parts)
    sums = {name: sum(getattr(part, name) for part in parts) for name in COUNTS}
    with _lock:
        _update(**sums, since=min((part.since for part in parts if part.since is not None), default=None))


def count_dead_worker(last: Progress, before: Progress) -> Progress:
    """What counts of a worker that died in the middle of a piece of work, `before` which it had done so much: all that it has
    scored; whoever does the piece again finds what is published of it, and counts that as found."""
    again = (last.fragments - last.found) - (before.fragments - before.found)
    return replace(
        last,
        fragments=before.fragments,
        input_bytes=before.input_bytes,
        found=before.found - again,
        found_bytes=before.found_bytes,
        found_responses=before.found_responses - (last.published - before.published),
    )


def settle() -> None:
    """The workers are done."""
    with _lock:
        _update(settled=True)
