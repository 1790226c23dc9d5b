"""The progress of a run, counted in this process and shown by its launcher."""

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
    input_bytes: int = 0  # of all finished fragments
    fragments: int = 0
    found: int = 0  # fragments that had been scored before
    found_bytes: int = 0
    found_responses: int = 0
    published: int = 0  # responses scored by this run, in finished fragments
    scored: int = 0  # rows scored by the model, including the current fragment; duplicates once
    tokens: int = 0
    scored_bytes: float = 0.0  # input bytes that this run has scored, including the current fragment
    since: float | None = None  # monotonic seconds at which the first fragment began, after the model was loaded
    to_export: int = 0  # kept responses; 0 until they are counted
    exported: int = 0  # of these, rows written
    export_since: float | None = None  # monotonic seconds
    # workers have scored everything and are counted: fragments found from now on are those of workers
    settled: bool = False


_COUNTER_OF = {  # field → its counter in `counters`
    "input_bytes": "input_bytes",
    "fragments": "fragments",
    "found": "found",
    "found_bytes": "found_bytes",
    "found_responses": "found_responses",
    "published": "published",
    "scored": "rows",
    "tokens": "tokens_read",
}
# A global of the process: DoFns and the model's forward passes count here from any thread, and since Beam copies DoFns by
# pickling, they share no object with the launcher.
_lock = threading.Lock()
_now = Progress()
_bytes_per_response = 0.0  # in the current fragment


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
    """Set the size of the corpus, after it is listed."""
    with _lock:
        _update(total_bytes=total_bytes)


def begin_fragment(*, input_bytes: int, responses: int) -> None:
    """Record that the model begins a fragment."""
    global _bytes_per_response
    with _lock:
        _bytes_per_response = input_bytes / max(1, responses)
        if _now.since is None:
            _update(since=time.monotonic())


def add_batch(rows: int, tokens: int) -> None:
    """Count a batch that the model has scored."""
    with _lock:
        _update(
            scored=_now.scored + rows,
            tokens=_now.tokens + tokens,
            scored_bytes=_now.scored_bytes + rows * _bytes_per_response,
        )


def add_fragment(*, input_bytes: int, responses: int, scored: int, found: bool) -> None:
    """Count a finished fragment: scored and published by this process, or found valid."""
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
    """Raise the progress to the counters of a remote job (`counters.sum_metrics`); no value decreases.

    `since`, in monotonic seconds, is a time before anything was scored.
    """
    with _lock:
        known = {name: max(getattr(_now, name), counts.get(counter, 0)) for name, counter in _COUNTER_OF.items()}
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
    """Replace the progress of this process by the sum over the workers of this machine."""
    parts = list(parts)
    sums = {name: sum(getattr(part, name) for part in parts) for name in COUNTS}
    with _lock:
        _update(**sums, since=min((part.since for part in parts if part.since is not None), default=None))


def count_dead_worker(last: Progress, before: Progress) -> Progress:
    """The progress to count for a worker that died during a piece, at whose start its progress was `before`.

    All rows that it scored count. Fragments of the piece that it published do not count as finished: the next worker on the piece
    finds them, and counts them as found.
    """
    again = (last.fragments - last.found) - (before.fragments - before.found)
    return replace(
        last,
        fragments=before.fragments,
        input_bytes=before.input_bytes,
        found=before.found - again,
        found_bytes=before.found_bytes,
        found_responses=before.found_responses - (last.published - before.published),
    )


def begin_export(rows: int) -> None:
    """Record that all responses are selected, and that `rows` of them are to be written."""
    with _lock:
        _update(stage="exporting", to_export=rows, exported=0, export_since=time.monotonic())


def add_exported(rows: int) -> None:
    """Count written rows."""
    with _lock:
        _update(exported=_now.exported + rows)


def settle() -> None:
    """Record that the workers have finished."""
    with _lock:
        _update(settled=True)
