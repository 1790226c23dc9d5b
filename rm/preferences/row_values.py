"""What every reader of preferences works with: how to read, and the values of a row, checked.

A reader is a pure function `(row, settings) -> Group`; what makes a row unusable is an `UnusableError` with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from rm.conversations import Conversation, UnusableError, from_prompt, from_response
from rm.preferences.edges import GapUse, apply_gap
from rm.preferences.groups import Edge

PreferenceRow = Mapping[str, Any]

PROMPTS = ("prompt", "instruction", "question", "query", "input", "context_messages")
"""Columns that may hold the prompt, the first that is there; beside `instruction`, `input` belongs to it (Alpaca)."""
RESPONSES = ("response", "completion", "output", "answer")


class PreferenceError(Exception):
    """Preferences that cannot be read; the message names the value, what was expected, and the remedy.

    `settings` are ways to read them among which somebody must choose, where there are such.
    """

    def __init__(self, message: str, settings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.settings = list(settings)


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How preferences are read; `pipelines.config.PreferencesConfig` documents the fields and holds the defaults."""

    format: str
    origin: str | None
    columns: Mapping[str, str]
    vote_smoothing: float
    min_gap: float
    gap_use: GapUse
    gap_scale: float

    def graded(self, edge: Edge, gap: float) -> Edge:
        """`edge` with its gap put to use. Raises `UnusableError("below_min_gap")` where the gap says nothing."""
        used = apply_gap(edge, gap, min_gap=self.min_gap, gap_use=self.gap_use, gap_scale=self.gap_scale)
        if used is None:
            raise UnusableError("below_min_gap")
        return used


def read_number(value: object, *, reason: str) -> float:
    """`value` as a finite float. Raises `UnusableError(reason)` for null, NaN, text and everything else."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise UnusableError(reason)
    return float(value)


def read_integer(value: object, among: Sequence[int], *, reason: str) -> int:
    """`value` as one of the integers `among` (2.0 is 2). Raises `UnusableError(reason)`."""
    found = read_number(value, reason=reason)
    if found not in among:
        raise UnusableError(reason)
    return int(found)


def read_list(value: object, *, reason: str = "wrong_type") -> Sequence[Any]:
    """`value` as a list that is not empty. Raises `UnusableError(reason)`."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not value:
        raise UnusableError(reason)
    return value


def read_records(value: object) -> list[Mapping[str, Any]]:
    """`value` as a list of mappings that is not empty. Raises `UnusableError("wrong_type")`."""
    found = [item for item in read_list(value) if isinstance(item, Mapping)]
    if len(found) != len(read_list(value)):
        raise UnusableError("wrong_type")
    return found


def read_responses(value: object) -> tuple[str, ...]:
    """A list of responses, each text or one assistant message. Raises `UnusableError` for the first unusable one."""
    return tuple(from_response(item) for item in read_list(value))


def read_prompt(row: PreferenceRow) -> Conversation:
    """The prompt of a row, from the first of `PROMPTS` that it has. Raises `UnusableError`."""
    name = next((name for name in PROMPTS if name in row), "prompt")
    value, extra = row.get(name), row.get("input")
    if name == "instruction" and isinstance(value, str) and isinstance(extra, str) and extra.strip():
        value = f"{value}\n\n{extra}"
    return from_prompt(value)


def read_tag(value: object) -> str | None:
    """A source, subset or id as text; a list of them (Nectar's sources) joined with `+`; None where there is none."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "+".join(part for part in value if isinstance(part, str)) or None
    return None
