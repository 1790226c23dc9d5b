"""Settings and checked row values for the readers of all formats.

A reader is a pure function that raises `UnusableError` with a reason for a row that it cannot use:

    def choice(row: PreferenceRow, settings: ReadSettings) -> Group:
        responses = read_responses(row.get("responses"))
        best = read_integer(row.get("best"), range(len(responses)), reason="bad_choice")
        return Group(read_prompt(row), responses, choice_edges(best, len(responses)))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from rm.conversations import (
    Conversation,
    UnusableError,
    from_messages,
    from_prompt,
    from_response,
    open_turns,
    to_messages,
    turns_in,
    with_tools,
)
from rm.messages import load_json, parse_json, text_of
from rm.preferences.edges import GapUse, apply_gap
from rm.preferences.groups import Edge

PreferenceRow = Mapping[str, Any]

PROMPTS = ("prompt", "instruction", "question", "query", "input", "context_messages")
"""Columns that may hold the prompt, the first of which is used; beside `instruction`, `input` belongs to it (Alpaca)."""
RESPONSES = ("response", "completion", "output", "answer")


class PreferenceError(Exception):
    """Preferences that cannot be read; the message names the value, what was expected, and the remedy.

    `settings` are the settings to choose from, if there is a choice.
    """

    def __init__(self, message: str, settings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.settings = list(settings)


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """Settings of reading preferences; `pipelines.config.train.PreferencesConfig` documents the fields and holds the defaults."""

    split: str | None  # of the files, if their names contain one
    format: str
    origin: str | None
    columns: Mapping[str, str]
    sides: tuple[str, str] | None  # the columns of two responses, if `columns.responses` names two
    winner: Mapping[str, Sequence[object]] | None  # values of a verdict that mean `first`, `second` and `tie`
    vote_smoothing: float
    min_gap: float
    gap_use: GapUse
    gap_scale: float
    repeated_prompt: Literal["cut", "keep"] | None

    def apply_gap(self, edge: Edge, gap: float) -> Edge:
        """Return `edge` with its gap applied. Raises `UnusableError("below_min_gap")` for a gap that is not significant."""
        used = apply_gap(edge, gap, min_gap=self.min_gap, gap_use=self.gap_use, gap_scale=self.gap_scale)
        if used is None:
            raise UnusableError("below_min_gap")
        return used


def read_number(value: object, *, reason: str) -> float:
    """Return `value` as a finite float. Raises `UnusableError(reason)` for null, NaN, text and everything else."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise UnusableError(reason)
    return float(value)


def read_integer(value: object, among: Sequence[int], *, reason: str) -> int:
    """Return `value` as one of the integers `among` (2.0 is 2). Raises `UnusableError(reason)`."""
    number = read_number(value, reason=reason)
    if number not in among:
        raise UnusableError(reason)
    return int(number)


def read_list(value: object, *, reason: str = "wrong_type") -> Sequence[Any]:
    """Return `value` as a list that is not empty. Raises `UnusableError(reason)`."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not value:
        raise UnusableError(reason)
    return value


def read_records(value: object) -> list[Mapping[str, Any]]:
    """Return `value` as a list of mappings that is not empty. Raises `UnusableError("wrong_type")`."""
    records = [item for item in read_list(value) if isinstance(item, Mapping)]
    if len(records) != len(read_list(value)):
        raise UnusableError("wrong_type")
    return records


def read_responses(value: object, *, after: Conversation = ()) -> tuple[str, ...]:
    """Read a list of responses: texts, or lists of the assistant's messages, with results of tools between them.

    Raises `UnusableError` for the first unusable one.
    """
    return tuple(from_response(item, after=after, several=True) for item in read_list(value))


def read_prompt(row: PreferenceRow) -> Conversation:
    """Read the prompt of a row from the first column of `PROMPTS` that it has. Raises `UnusableError`."""
    name = next((name for name in PROMPTS if name in row), "prompt")
    value, extra = row.get(name), row.get("input")
    if name == "instruction" and isinstance(value, str) and isinstance(extra, str) and extra.strip():
        return from_prompt(f"{value}\n\n{extra}")
    return from_prompt((open_turns(value) if isinstance(value, str) else None) or value)


def extend_prompt(
    prompt: Conversation, *, system: object = None, history: object = None, context: object = None, tools: object = None
) -> Conversation:
    """Return a prompt with its parts from other columns: a system text, earlier turns, text after an empty line, and tools.

    A context that is a conversation is also read as earlier turns. Raises `UnusableError`.
    """
    if system is None and history is None and context is None:
        return with_tools(prompt, tools)
    messages = to_messages(prompt)
    if not isinstance(context, str):
        messages = _read_history(context) + messages
    elif context.strip():
        messages[-1] = {
            **messages[-1],
            "content": f"{text_of(messages[-1].get('content'), field='prompt')}\n\n{context}",
        }
    if isinstance(system, bytes) or not isinstance(system, str | None):
        raise UnusableError("bad_utf8" if isinstance(system, bytes) else "wrong_type")
    return with_tools(from_prompt(_read_history(history) + messages, system=system), tools)


def holds_tools(value: object) -> bool:
    """Return whether a value is a list of tools, or its JSON text."""
    tools = parse_json(value)
    return isinstance(tools, list) and bool(tools) and all(isinstance(parse_json(tool), Mapping) for tool in tools)


def _read_history(value: object) -> list[dict[str, Any]]:
    """Read earlier turns: messages, a transcript, [user, assistant] pairs (LLaMA-Factory), or texts in turn; also as JSON."""
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        value = turns_in(value) or read_json(value)
    turns = read_list(value, reason="bad_history")
    if all(isinstance(turn, Mapping) for turn in turns):
        return to_messages(from_messages(turns))
    pairs = [read_list(turn, reason="bad_history") for turn in turns if not isinstance(turn, str)]
    texts = [text for pair in pairs for text in pair] if len(pairs) == len(turns) else turns
    if len(texts) % 2 or not all(isinstance(text, str) for text in texts):
        raise UnusableError("bad_history")
    roles = ["user", "assistant"] * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def read_json(text: str) -> object:
    """Return the value of a JSON text. Raises `UnusableError("bad_history")`."""
    try:
        return load_json(text)
    except ValueError:
        raise UnusableError("bad_history") from None


def read_tag(value: object) -> str | None:
    """Return a source, subset or id as text; a list of them (Nectar's sources) joined with `+`; None without any."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "+".join(part for part in value if isinstance(part, str)) or None
    return None
