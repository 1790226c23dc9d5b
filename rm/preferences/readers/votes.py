"""Readers of graded verdicts and several annotators' votes on two responses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm.conversations import Conversation, UnusableError, from_prompt, from_response
from rm.messages import parse_json
from rm.preferences.edges import vote_probability
from rm.preferences.groups import Edge, Group
from rm.preferences.readers.pairs import read_sides
from rm.preferences.row_values import (
    PROMPTS,
    PreferenceError,
    PreferenceRow,
    ReadSettings,
    read_integer,
    read_list,
    read_prompt,
    read_records,
)
from rm.preferences.verdicts import FIRST, SECOND, TIE, Verdict, settle

_ANNOTATOR = re.compile(r"annotator\d+")
_STRENGTHS = range(-3, 4)
_HELPSTEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def annotators(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read PandaLM (Wang et al. 2023): `annotator1..N` say 1 (first response), 2 (second) or 0 (tie); null did not vote."""
    names = [name for name in row if _ANNOTATOR.fullmatch(name) and row[name] is not None]
    verdicts = [read_integer(row[name], (0, 1, 2), reason="bad_vote") for name in names]
    sides = _read_sides(row, "response1", "response2")
    counts = [verdicts.count(verdict) for verdict in (1, 2, 0)]
    return Group(read_prompt(row), sides, (_vote_edge(counts, settings),))


def helpsteer2(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read HelpSteer2-Preference (Wang et al. 2024): `preference_strength` from -3 (response 1 much better) to 3; 0 a tie."""
    strength = read_integer(row.get("preference_strength"), _STRENGTHS, reason="bad_preference")
    edge = Edge(0, 1) if strength < 0 else Edge(1, 0)
    edge = Edge(0, 1, 0.5) if strength == 0 else settings.apply_gap(edge, abs(strength))
    return Group(_read_helpsteer_prompt(row.get("prompt")), _read_sides(row, "response_1", "response_2"), (edge,))


def helpsteer3(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read HelpSteer3-Preference (Wang et al. 2025): up to three annotators' scores from -3 to 3, and their overall.

    The scores' signs are votes; without individual scores the overall one is the only vote. Its size is the gap.
    """
    overall = read_integer(row.get("overall_preference"), _STRENGTHS, reason="bad_preference")
    if row.get("individual_preference"):
        records = read_records(row["individual_preference"])
        scores = [read_integer(record.get("score"), _STRENGTHS, reason="bad_preference") for record in records]
    else:
        scores = [overall]
    counts = [sum(score < 0 for score in scores), sum(score > 0 for score in scores), scores.count(0)]
    edge = _vote_edge(counts, settings)
    if edge.probability != 0.5 and overall != 0:  # a tie has no gap to keep
        edge = settings.apply_gap(edge, abs(overall))
    context = from_prompt(read_list(row.get("context")))
    return Group(context, _read_sides(row, "response1", "response2"), (edge,))


def verdict(row: PreferenceRow, settings: ReadSettings, columns: Verdict | None = None) -> Group:
    """Read two responses, each text, a conversation or the turns after the prompt, and a verdict on them; a tie is p = 1/2.

    Several verdicts in a row are votes. `columns` are their columns; without these, they are found from this row alone.
    """
    if columns is None:
        try:
            columns = settle([row], settings)
        except PreferenceError:
            raise UnusableError("bad_verdict") from None
    prompt = next((name for name in PROMPTS if name in row), None)
    values = [row.get(name) for name in columns.sides]
    context: Conversation = ()
    if (conversations := _turns_in_json(row.get(prompt or ""), values)) is not None:
        values = [*conversations]
    elif prompt is not None:
        context = read_prompt(row)
    sides = read_sides(context, *values)
    if sides[0][0] != sides[1][0]:
        raise UnusableError("prompts_differ")
    if sides[0][1] == sides[1][1]:
        raise UnusableError("equal_sides")
    votes = columns.votes(row)
    if None in votes:
        raise UnusableError("bad_verdict")
    if len(votes) == 1:
        edge = {FIRST: Edge(0, 1), SECOND: Edge(1, 0), TIE: Edge(0, 1, 0.5)}[votes[0] or FIRST]
    else:
        edge = _vote_edge([votes.count(side) for side in (FIRST, SECOND, TIE)], settings)
    return Group(sides[0][0], (sides[0][1], sides[1][1]), (edge,))


def _turns_in_json(prompts: object, sides: Sequence[object]) -> list[list[dict[str, Any]]] | None:
    """Return the conversations of prompts and answers that are lists of texts as JSON, a text a turn (Arena 55k); else None."""
    if not all(isinstance(value, str) for value in (prompts, *sides)):
        return None
    lists = [parse_json(value) for value in (prompts, *sides)]
    turns = [
        value for value in lists if isinstance(value, list) and not any(isinstance(text, Mapping) for text in value)
    ]
    if len(turns) < len(lists) or any(len(texts) != len(turns[0]) for texts in turns):
        return None
    return [
        [
            {"role": role, "content": text}
            for question, answer in zip(turns[0], answers, strict=True)
            for role, text in (("user", question), ("assistant", answer))
        ]
        for answers in turns[1:]
    ]


def _vote_edge(counts: Sequence[int], settings: ReadSettings) -> Edge:
    """Return the edge of votes for the first, the second and neither, from the side with more of them."""
    first, second, ties = counts
    if not sum(counts):
        raise UnusableError("no_votes")
    if second > first:
        return Edge(1, 0, vote_probability(second, first, ties, smoothing=settings.vote_smoothing))
    return Edge(0, 1, vote_probability(first, second, ties, smoothing=settings.vote_smoothing))


def _read_sides(row: PreferenceRow, first: str, second: str) -> tuple[str, str]:
    sides = from_response(row.get(first)), from_response(row.get(second))
    if sides[0] == sides[1]:
        raise UnusableError("equal_sides")
    return sides


def _read_helpsteer_prompt(value: object) -> Conversation:
    """Split HelpSteer2's prompt, which has later turns behind `<extra_id_1>User` and `<extra_id_1>Assistant`."""
    if not isinstance(value, str) or not _HELPSTEER_TURN.search(value):
        return from_prompt(value)
    first, *rest = _HELPSTEER_TURN.split(value)
    turns = [("User", first)] if first.strip() else []
    turns += zip(rest[::2], rest[1::2], strict=True)
    return from_prompt([{"role": role.lower(), "content": content} for role, content in turns])
