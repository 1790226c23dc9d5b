"""Reads rows of preferences one at a time, each as a prompt with its responses from best to worst by the row's judgement.

With it a corpus can be made of preferences: each response is scored, and its number in the row is its rank. The settings detected
from the first rows are one text, so that every process reads a row in the same way:

    settled = settle_ranking(first_rows, settings)
    prompt, responses, order = read_ranked(row, settled)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any

from rm.conversations import Conversation, UnusableError
from rm.preferences.detection import resolve_format
from rm.preferences.formats import FORMATS, Format
from rm.preferences.groups import Group
from rm.preferences.readers import votes
from rm.preferences.reading import collapsed, read_row, repeating_places
from rm.preferences.row_values import PreferenceError, PreferenceRow, ReadSettings
from rm.preferences.verdicts import Verdict

_OPTIONS = ("vote_smoothing", "min_gap", "gap_use", "gap_scale")


def settle_ranking(rows: Sequence[PreferenceRow], settings: ReadSettings) -> str:
    """Return the format and the settings of some first rows, as JSON.

    Raises `PreferenceError` if there is none, or its rows have one response each.
    """
    format = resolve_format(rows, settings)
    readings = [read_row(row, format, settings) for row in rows]
    groups = [reading for reading in readings if isinstance(reading, Group)]
    if groups and all(len(group.responses) < 2 for group in groups):
        raise PreferenceError(
            f"data has the format {format.name}, with one response per row; to score it as a corpus remove input.format, or "
            "group rows into lists of responses"
        )
    repeated = settings.repeated_prompt or ("cut" if repeating_places(groups, settings) else "keep")
    settled: dict[str, Any] = {"format": format.name, "columns": dict(settings.columns), "repeated_prompt": repeated}
    settled |= {name: getattr(settings, name) for name in _OPTIONS}
    if isinstance(format.read, partial):
        settled["verdict"] = asdict(format.read.keywords["columns"])
    return json.dumps(settled, sort_keys=True)


def read_ranked(row: PreferenceRow, settled: str) -> tuple[Conversation, list[str | None], list[int]]:
    """Return the prompt of a row and its distinct responses, the best first. Raises `UnusableError`, with `tied` if the first
    and the last are equally good."""
    format, settings = _reader(settled)
    group, _ = collapsed(read_row(row, format, settings), repeating_places((), settings))
    standing = _standing(group)
    order = sorted(range(len(standing)), key=lambda at: -standing[at])
    graded = [at for at in order if standing[at] > float("-inf")]
    if standing[graded[0]] == standing[graded[-1]]:
        raise UnusableError("tied")
    return group.prompt, [group.responses[at] if at in graded else None for at in order], order


def needed_columns(settled: str) -> frozenset[str]:
    """Return the columns that reading requires, under their names in the data."""
    format, settings = _reader(settled)
    columns = [need for need in format.needs if isinstance(need, str)]
    if isinstance(format.read, partial):
        verdict = format.read.keywords["columns"]
        columns += [*verdict.sides, *verdict.winner, *(verdict.names or ())]
    return frozenset([*(settings.columns.get(name, name) for name in columns), *settings.columns.values()])


def _standing(group: Group) -> list[float]:
    """Return a number for each response, higher for a better one: comparisons won, or grades."""
    if group.edges or not any(score is not None for score in group.scores):
        standing = [0.0] * len(group.responses)
        for edge in group.edges:
            standing[edge.preferred] += edge.probability
            standing[edge.other] += 1 - edge.probability
        return standing
    return [float("-inf") if score is None else score for score in group.scores]


@lru_cache(maxsize=64)
def _reader(settled: str) -> tuple[Format, ReadSettings]:
    known = json.loads(settled)
    options = {name: known[name] for name in (*_OPTIONS, "columns", "repeated_prompt")}
    settings = ReadSettings(split=None, format=known["format"], origin=None, sides=None, winner=None, **options)
    format = FORMATS[known["format"]]
    if (verdict := known.get("verdict")) is not None:
        pairs = {name: tuple(verdict[name]) for name in ("sides", "winner", "names") if verdict[name] is not None}
        format = replace(format, read=partial(votes.verdict, columns=Verdict(**{**verdict, **pairs})))
    return format, settings
