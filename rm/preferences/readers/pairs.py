"""Readers of two responses of which one is preferred: `chosen` over `rejected`, or A and B with a label."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rm.conversations import (
    Conversation,
    UnusableError,
    from_hh,
    from_messages,
    from_prompt,
    from_response,
    messages_in_json,
    pack_response,
    split_last,
)
from rm.preferences.groups import Edge, Group
from rm.preferences.row_values import PROMPTS, PreferenceRow, ReadSettings, read_integer, read_number, read_prompt
from rm.transcripts import turns_in

Side = tuple[Conversation, str]
"""(prompt, response) of one side of a pair."""

_HH_START = re.compile(r"\s*(Human|Assistant):")


def is_hh(value: object) -> bool:
    """Return whether a value is text that starts like HH-RLHF's transcripts, possibly after a system turn."""
    if not isinstance(value, str) or _HH_START.match(value) is not None:
        return isinstance(value, str)
    turns = turns_in(value)
    return turns is not None and turns[-1]["role"] == "assistant"


def hh(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read HH-RLHF (Bai et al. 2022): whole transcripts in `chosen` and `rejected`."""
    return _pair_group(row, split_last(from_hh(row.get("chosen"))), split_last(from_hh(row.get("rejected"))))


def implicit_messages(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read whole conversations in `chosen` and `rejected` (TRL's implicit prompt; OpenRLHF with a chat template)."""
    return _pair_group(row, *split_pair(from_messages(row.get("chosen")), from_messages(row.get("rejected"))))


def implicit_text(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read whole texts in `chosen` and `rejected` (TRL's implicit prompt): the prompt is their common beginning.

    The cut is at white space, so that no word is split (TRL cuts at the first character that differs).
    """
    sides = [row.get("chosen"), row.get("rejected")]
    chosen, rejected = (from_response(side) for side in sides)
    if chosen == rejected:
        raise UnusableError("equal_sides")
    shared = next(
        (k for k, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    context = from_prompt(chosen[:shared].rstrip())
    return _pair_group(row, (context, from_response(chosen[shared:])), (context, from_response(rejected[shared:])))


def explicit(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read `prompt`, `chosen`, `rejected`, each text or messages (TRL's explicit prompt; OpenRLHF jsonl with its `margin`).

    RewardBench (Lambert et al. 2024) has this shape. Lists of messages may repeat the prompt at the front.
    """
    context = read_prompt(row)
    return _pair_group(row, *read_sides(context, row.get("chosen"), row.get("rejected")))


def scored(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read a pair of any shape above with `score_chosen` and `score_rejected` (UltraFeedback binarized, Tunstall et al. 2023).

    A pair whose chosen side has no higher score was ordered by chance: `below_min_gap`.
    """
    if any(name in row for name in PROMPTS):
        read = explicit
    elif not isinstance(row.get("chosen"), str):
        read = implicit_messages
    else:
        read = hh if is_hh(row.get("chosen")) else implicit_text
    group = read(row, settings)
    high, low = (read_number(row.get(name), reason="bad_score") for name in ("score_chosen", "score_rejected"))
    return Group(group.prompt, group.responses, (settings.apply_gap(group.edges[0], high - low),), scores=(high, low))


def shp(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read SHP (Ethayarajh et al. 2022): two comments on a post, `labels` 1 where A is preferred; scores are net upvotes."""
    sides = from_response(row.get("human_ref_A")), from_response(row.get("human_ref_B"))
    scores = read_number(row.get("score_A"), reason="bad_score"), read_number(row.get("score_B"), reason="bad_score")
    first = read_integer(row.get("labels"), (0, 1), reason="bad_label") == 1
    context = from_prompt(row.get("history"))
    if sides[0] == sides[1]:
        raise UnusableError("equal_sides")
    edge = Edge(0, 1) if first else Edge(1, 0)
    gap = scores[edge.preferred] - scores[edge.other]
    return Group(context, sides, (settings.apply_gap(edge, gap),), scores=scores)


def _pair_group(row: PreferenceRow, chosen: Side, rejected: Side) -> Group:
    if chosen[0] != rejected[0]:
        raise UnusableError("prompts_differ")
    if chosen[1] == rejected[1]:
        raise UnusableError("equal_sides")
    margin = read_number(row["margin"], reason="bad_margin") if row.get("margin") is not None else 0.0
    return Group(chosen[0], (chosen[1], rejected[1]), (Edge(0, 1, margin=margin),))


def read_sides(context: Conversation, first: object, second: object) -> tuple[Side, Side]:
    """Read both sides beside an explicit prompt, each a response, a whole conversation, or the turns that follow the prompt."""
    return split_pair(_read_side(context, first), _read_side(context, second))


def _read_side(context: Conversation, value: object) -> Conversation:
    if isinstance(value, str):
        value = messages_in_json(value) or value
    if isinstance(value, str) or not isinstance(value, Sequence):
        if not context:
            raise UnusableError("null_prompt")
        return (*context, ("assistant", from_response(value)))
    turns = from_messages(value)
    if turns[: len(context)] != context and turns[:1] and turns[0][0] == "assistant":
        return (*context, *turns)
    return turns


def split_pair(first: Conversation, second: Conversation) -> tuple[Side, Side]:
    """Split two conversations at their first difference: the turns of assistant and tools from there on are the responses.

    If a turn of the user follows, the responses are the last turns. Raises `UnusableError`.
    """
    both = zip(first, second, strict=False)
    shared = next((number for number, (a, b) in enumerate(both) if a != b), min(len(first), len(second)))
    shared = min(shared, len(first) - 1, len(second) - 1)
    while shared > 0 and not first[shared][0] == second[shared][0] == "assistant":
        shared -= 1
    rest = first[max(0, shared) :] + second[max(0, shared) :]
    if shared <= 0 or len(rest) == 2 or any(role not in ("assistant", "tool") for role, _ in rest):
        return split_last(first), split_last(second)
    return (first[:shared], pack_response(first[shared:])), (second[:shared], pack_response(second[shared:]))
