"""What has been published so far, counted in this process; the launcher of a local run shows it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """Totals since `reset`."""

    input_bytes: int = 0
    responses: int = 0
    scored: int = 0  # of those, scored by this run
    tokens: int = 0  # of those that this run scored
    fragments: int = 0
    found: int = 0  # fragments that were scored before
    stage: str = "planning"


_lock = threading.Lock()
_now = Progress()


def reset() -> None:
    global _now
    with _lock:
        _now = Progress()


def current() -> Progress:
    with _lock:
        return _now


def stage(name: str) -> None:
    global _now
    with _lock:
        _now = replace(_now, stage=name)


def fragment(*, input_bytes: int, responses: int, tokens: int, found: bool) -> None:
    """One fragment is done: scored and published by this process, or found valid."""
    global _now
    with _lock:
        _now = replace(
            _now,
            input_bytes=_now.input_bytes + input_bytes,
            responses=_now.responses + responses,
            scored=_now.scored + (0 if found else responses),
            tokens=_now.tokens + (0 if found else tokens),
            fragments=_now.fragments + 1,
            found=_now.found + int(found),
            stage="scoring",
        )
