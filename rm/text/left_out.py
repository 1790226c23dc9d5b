"""Detects the parts of a conversation that a chat template leaves out of the rendered text, and reports their shares."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rm.conversations import Conversation, tools_in
from rm.messages import MESSAGE_KEYS, TOOLS, WHOLE, open_messages, texts_in

log = logging.getLogger(__name__)


def find_left_out(prompt: Conversation, response: str, text: str) -> set[str]:
    """Return the keys of messages, and `tools`, whose values are missing from a rendered text.

    Prompt and response are checked separately: a template may omit reasoning in earlier turns only.
    """
    left_out = set() if (tools := tools_in(prompt)) is None or _shows(map(_name_of, tools), text) else {TOOLS}
    whole = [open_messages(role, content) for role, content in prompt if role != TOOLS and content.startswith(WHOLE)]
    if whole:
        left_out |= _missing_keys([message for messages in whole for message in messages], text)
    if response.startswith(WHOLE):
        left_out |= _missing_keys(open_messages("assistant", response), text)
    return left_out


def _missing_keys(messages: Sequence[Mapping[str, Any]], text: str) -> set[str]:
    missing = set()
    for key in MESSAGE_KEYS:
        values = [part for message in messages if key in message for part in texts_in(message[key]) if part.strip()]
        if values and not _shows(values, text):
            missing.add(key)
    return missing


def _shows(values: Iterable[str], text: str) -> bool:
    return any(value.strip() in text for value in values)


def _name_of(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    return str((function if isinstance(function, Mapping) else tool).get("name", ""))


@dataclass
class LeftOut:
    """Counts the responses that a template has rendered, and by key those in which it leaves something out."""

    responses: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    next_warning: float = 1  # responses

    def add(self, keys: set[str]) -> None:
        """Count one response."""
        self.responses += 1
        self.counts.update(keys)

    def mute(self) -> None:
        """Log no warnings: the caller reports the counts."""
        self.next_warning = math.inf

    def warn(self) -> None:
        """Log the shares when something is first left out, and again after ten times as many responses."""
        if self.counts and self.responses >= self.next_warning:
            self.next_warning = 10 * self.responses
            log.warning("%s", describe_left_out(self.counts, self.responses, "responses read so far"))


def describe_left_out(counts: Mapping[str, int], responses: int, of: str) -> str:
    """Return a warning for users: the keys that the template leaves out, with counts."""
    parts = [f"{key} of {count:,} of {responses:,}" for key, count in sorted(counts.items())]
    return (  # part of manifest.json and of the card: other words would conflict with outputs that exist
        f"the chat template leaves out {', '.join(parts)} {of}: what is scored is not what is exported; take a model whose "
        "template renders it, or leave it out of the corpus"
    )
