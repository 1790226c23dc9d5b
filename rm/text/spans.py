"""Finds prompt and response among the tokens of a rendered conversation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from rm.conversations import Conversation
from rm.messages import WHOLE, open_messages, texts_in

log = logging.getLogger(__name__)


class Spans(NamedTuple):
    """Half-open token ranges: the content of the prompt's last turn (or whole prompt), and of the response."""

    prompt_start: int
    prompt_end: int
    response_start: int
    response_end: int


def text_spans(encoding: Any, text: str, prompt: Conversation, place: tuple[int, int], *, length: int) -> Spans:
    """Locate the prompt's last turn in a rendered text, before the `place` of the response."""
    start, end = place
    last_turn = (text_in(prompt[-1][1]) if prompt else "").strip()
    prompt_at = text.rfind(last_turn, 0, start if start >= 0 else len(text))
    if not last_turn and prompt:  # a call without text
        prompt_at = -1
    prompt_span = _token_span(encoding, prompt_at, prompt_at + len(last_turn)) if prompt_at >= 0 else (0, 0)
    if start >= 0:
        return Spans(*prompt_span, *_token_span(encoding, start, end))
    _warn_rewritten()
    return Spans(*prompt_span, max(prompt_span[1], 1), length)


def find_response(text: str, response: str, *, after: int) -> tuple[int, int]:
    """Return the half-open range of characters of a response in a rendered text; (-1, -1) where it is not there."""
    if not response.startswith(WHOLE):
        at = text.rfind(response.strip())
        return at, at + len(response.strip()) if at >= 0 else -1
    start, end, before = -1, -1, len(text)
    for message in reversed(open_messages("assistant", response)):
        parts = [part.strip() for key, value in message.items() if key != "role" for part in texts_in(value)]
        places = [
            (at, at + len(part)) for part in parts if len(part) > 2 and (at := text.rfind(part, after, before)) >= 0
        ]
        if places:
            start = before = min(first for first, _ in places)
            end = max(end, *(last for _, last in places))
    return start, end


def text_in(content: str) -> str:
    """Return the text of a turn, without its message's other keys."""
    return content if not content.startswith(WHOLE) else open_messages("", content)[0].get("content") or ""


@lru_cache(maxsize=1)
def _warn_rewritten() -> None:
    log.warning(
        "the chat template drops or rewrites part of some responses: the scored text differs from the exported one"
    )


def pair_spans(encoding: Any) -> Spans:
    sequence: Sequence[int | None] = encoding.sequence_ids
    bounds: list[int] = []
    for part in (0, 1):
        count = sequence.count(part)
        start = sequence.index(part) if count else 0
        bounds += [start, start + count]
    return Spans(*bounds)


def _token_span(encoding: Any, start: int, end: int) -> tuple[int, int]:
    """Return the half-open range of tokens that cover the characters [start, end)."""
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    last = next((t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None), None)
    return (0, 0) if first is None or last is None else (first, last + 1)
