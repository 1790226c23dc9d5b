"""The choice of a conversation's response from the first rows: the last turn, or all that follows the last user turn. Pure."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.columns.value_kinds import FirstRows, conversation
from rm.conversations import Conversation, UnusableError, keys_of, split_after_last_user

LAST_TURN, AFTER_LAST_USER = "last_turn", "after_last_user"
CHOICES = (LAST_TURN, AFTER_LAST_USER)


class ResponseChoice(NamedTuple):
    """The choice for `input.response`, and the reason for it."""

    taken: str
    why: str
    doubtful: bool = False  # the other choice is also plausible

    @property
    def note(self) -> str | None:
        """The question to the user, if both choices are plausible."""
        if not self.doubtful:
            return None
        return (
            f"{self.why}; is the response all that follows the last user turn? Then set input.response={AFTER_LAST_USER}, else "
            f"input.response={LAST_TURN}"
        )


def choose_response(table: FirstRows, mapping: RowMapping, setting: str | None) -> ResponseChoice | None:
    """Return the choice for a corpus with these first rows; None if both choices are equal, as for plain text."""
    if mapping.format == "hh":
        return None
    if mapping.messages is None:
        name = mapping.responses or mapping.response
        values = [row.get(name or "") for row in table.rows]
        lists = [value if isinstance(value, list) else [] for value in values] if mapping.responses else [values]
        several = any(map(_is_several, itertools.chain.from_iterable(lists)))
        if setting is not None or not several:
            return None if setting is None else ResponseChoice(setting, f"input.response={setting}")
        return ResponseChoice(
            AFTER_LAST_USER, f"{name} holds several messages a response: calls and results of tools, and the answer"
        )
    if setting is not None:
        return ResponseChoice(setting, f"input.response={setting}")
    conversations = [turns for row in table.rows if (turns := conversation(row.get(mapping.messages)))]
    endings = [pair for turns in conversations if (pair := _split(turns)) is not None]
    if not endings:
        return None
    answers: dict[Conversation, set[str]] = {}
    for prompt, response in endings:
        answers.setdefault(prompt, set()).add(response)
    if any(len(responses) > 1 for responses in answers.values()):
        return ResponseChoice(
            AFTER_LAST_USER,
            "several conversations are the same up to the last user turn, and continue with different calls of tools",
        )
    why = (
        f"{len(endings)} of the first {len(table.rows)} conversations call tools after the last user turn, and the response is "
        "the last turn alone"
    )
    return ResponseChoice(LAST_TURN, why, doubtful=True)


def _split(turns: Conversation) -> tuple[Conversation, str] | None:
    """The prompt and the trajectory of a conversation that calls tools after the last user turn; None for others."""
    try:
        prompt, response = split_after_last_user(turns)
    except UnusableError:
        return None
    tail = turns[len(prompt) :]
    calls = any(role == "tool" for role, _ in tail) or keys_of(tail) & {"tool_calls", "function_call"}
    return (prompt, response) if len(tail) > 1 and calls else None


def _is_several(value: object) -> bool:
    """Return whether a response is a list of several messages, not counting a prompt that it repeats."""
    turns = conversation(value)
    if not turns:
        return False
    start = max((number for number, (role, _) in enumerate(turns) if role == "user"), default=-1) + 1
    return len(turns) - start > 1
