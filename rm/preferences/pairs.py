"""Pairwise preferences → groups: one row says that `chosen` beats `rejected`.

Read: HH-RLHF strings, TRL explicit (`prompt`, `chosen`, `rejected`) and implicit (`chosen`, `rejected` as whole
conversations), each as text or messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rm.conversations import Conversation, UnusableError, from_hh, from_messages, from_prompt, from_response, split_last
from rm.preferences.groups import Edge, Group, Rejections
from rm.preferences.reading import PreferenceError

FORMATS = ("prompt_chosen_rejected", "chosen_rejected_messages", "hh")


def detect(row: Mapping[str, object]) -> str:
    """The format of a preference row, one of `FORMATS`. Raises `PreferenceError` for none of them."""
    missing = {"chosen", "rejected"} - row.keys()
    if missing:
        raise PreferenceError(
            f"data has columns {sorted(row)}, without {sorted(missing)}; expected chosen and rejected, with or without prompt"
        )
    if "prompt" in row:
        return "prompt_chosen_rejected"
    if isinstance(row["chosen"], str):
        return "hh"
    return "chosen_rejected_messages"


def read_pairs(rows: Iterable[Mapping[str, object]], *, format: str, origin: str) -> tuple[list[Group], Rejections]:
    """One group of two responses a row, and how many rows could not be used, by reason.

    Reasons: those of `rm.conversations`, `prompts_differ` and `equal_sides`. Raises `PreferenceError` on an unknown
    format.
    """
    if format not in FORMATS:
        raise PreferenceError(f"data.format is {format!r}; expected one of {', '.join(FORMATS)}")
    groups: list[Group] = []
    rejections = Rejections()
    for row in rows:
        try:
            (prompt, chosen), (other_prompt, rejected) = (_sample(row, side, format) for side in ("chosen", "rejected"))
            if prompt != other_prompt:
                raise UnusableError("prompts_differ")
            if chosen == rejected:
                raise UnusableError("equal_sides")
        except UnusableError as error:
            rejections[error.reason] += 1
            continue
        groups.append(Group(prompt, (chosen, rejected), (Edge(0, 1, 1.0),), origin))
    return groups, rejections


def _sample(row: Mapping[str, object], side: str, format: str) -> tuple[Conversation, str]:
    value = row.get(side)
    if format == "hh":
        return split_last(from_hh(value))
    if format == "chosen_rejected_messages":
        return split_last(from_messages(value))
    prompt = from_prompt(row.get("prompt"))
    if isinstance(value, list) and len(value) > 1:  # UltraFeedback binarized: whole conversations beside the prompt
        return split_last(from_messages(value))
    return prompt, from_response(value)
