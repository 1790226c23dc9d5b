"""Reads rows of preferences into groups, with a format's reader, and merges them."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol

from rm.conversations import UnusableError, after_prompt, are_repeated, last_turn, text_of
from rm.preferences.detection import add_roles, resolve_format
from rm.preferences.edges import score_edges
from rm.preferences.formats import BESIDE, Format
from rm.preferences.groups import EQUAL_RESPONSES, Group, Rejections, collapse, merge
from rm.preferences.notes import prompt_notes, unread_columns, unread_fields
from rm.preferences.row_values import (
    PreferenceError,
    PreferenceRow,
    ReadSettings,
    extend_prompt,
    holds_tools,
    read_tag,
)

log = logging.getLogger(__name__)

_DETECTION_ROWS = 100  # first rows, from which the format is detected


class RowReader(Protocol):
    """A function that reads the rows of the files at `path`, only those of `settings.split`.

    For a row that cannot be read it yields the reason. Its errors name the settings of `section`, such as `data.path`.
    """

    def __call__(self, path: str, settings: ReadSettings, *, section: str) -> Iterable[PreferenceRow | str]: ...


def read_preferences(
    path: str,
    settings: ReadSettings,
    *,
    read_rows: RowReader,
    section: str = "data",
    notes: list[str] | None = None,
) -> tuple[list[Group], Rejections]:
    """Read the groups of all files that `read_rows` finds at `path`; see `read_preference_rows`.

    Logs `reading_notes` as warnings, and adds them to `notes`. Raises `PreferenceError`, and the errors of `read_rows`.
    """
    rows = iter(read_rows(path, settings, section=section))
    first_rows = _take_first(rows)
    if not first_rows:
        raise PreferenceError(f"{section}.path {path!r} has no rows; expected at least one comparison")
    readable = _readable(first_rows)
    if not readable:
        reasons = dict(Counter(row for row in first_rows if isinstance(row, str)))
        raise PreferenceError(f"{section}.path {path!r} has no row that can be read; rejected: {reasons}")
    try:
        for note in reading_notes(readable, resolve_format(readable, settings), settings):
            log.warning("%s.path %s: %s", section, path, note)
            if notes is not None:
                notes.append(f"{path}: {note}")
        return read_preference_rows(chain(first_rows, rows), settings)
    except PreferenceError as error:
        raise PreferenceError(f"{section}.path {path!r}: {error}") from error


def read_preference_rows(rows: Iterable[PreferenceRow | str], settings: ReadSettings) -> tuple[list[Group], Rejections]:
    """Read groups (merged by prompt, origin, source, subset and item), and count the unused rows, by reason.

    A text in place of a row is the reason why it cannot be read. Rows read = rows used + rows rejected; `EQUAL_RESPONSES`
    counts comparisons inside rows that were used. Scores become edges after the merge, so that responses to one prompt are
    compared even if each has its own row. Raises `PreferenceError` if the format cannot be detected or does not fit the
    settings.
    """
    rows = iter(rows)
    first_rows = _take_first(rows)
    format = resolve_format(_readable(first_rows), settings)
    groups, rejections = read_unmerged(chain(first_rows, rows), format, settings)
    merged = merge(groups)
    if format.edges_from_scores:
        options: dict[str, Any] = {name: getattr(settings, name) for name in ("min_gap", "gap_use", "gap_scale")}
        merged = [replace(group, edges=score_edges(group.scores, **options)) for group in merged]
    return merged, rejections


def _take_first(rows: Iterator[PreferenceRow | str]) -> list[PreferenceRow | str]:
    """Take the rows from which the format is detected, and those before them."""
    taken: list[PreferenceRow | str] = []
    readable = 0
    while readable < _DETECTION_ROWS and (row := next(rows, None)) is not None:
        taken.append(row)
        readable += not isinstance(row, str)
    return taken


def _readable(rows: Iterable[PreferenceRow | str]) -> list[PreferenceRow]:
    return [row for row in rows if not isinstance(row, str)]


def read_unmerged(
    rows: Iterable[PreferenceRow | str], format: Format, settings: ReadSettings
) -> tuple[list[Group], Rejections]:
    """Read one group from every usable row, without merging, and count the unused rows, by reason.

    If the responses of the first rows repeat their prompts, these are removed in all rows; a response that is a transcript of
    the prompt and one more turn is read as that turn in any row.
    """
    groups: list[Group] = []
    rejections = Rejections()
    rows = iter(rows)
    first = [read_row(row, format, settings) for row in _take_first(rows)]
    readings = (read_row(row, format, settings) for row in rows)
    places = repeating_places([reading for reading in first if isinstance(reading, Group)], settings)
    for reading in chain(first, readings):
        try:
            group, dropped = collapsed(reading, places)
        except UnusableError as error:
            rejections[error.reason] += 1
            continue
        groups.append(group)
        if dropped:
            rejections[EQUAL_RESPONSES] += dropped
    return groups, rejections


def reading_notes(rows: Sequence[PreferenceRow], format: Format, settings: ReadSettings) -> list[str]:
    """Return notes on the parts of these first rows that are ignored or converted, with remedies."""
    readings = [read_row(row, format, settings) for row in rows]
    groups = [reading for reading in readings if isinstance(reading, Group)]
    unread = [*unread_columns(rows, format, settings), *unread_fields(rows, format)]
    return unread + prompt_notes(groups, repeating_places(groups, settings), settings)


def read_row(row: PreferenceRow | str, format: Format, settings: ReadSettings) -> Group | UnusableError:
    """Read a row without removing prompts; the error has the reason why it cannot be used."""
    if isinstance(row, str):
        return UnusableError(row)
    view = add_roles(row, settings.columns)
    try:
        group = format.read(view, settings)
        beside = {role: row.get(settings.columns[role]) for role in BESIDE if role in settings.columns}
        if "tools" not in beside and holds_tools(row.get("tools")):
            beside["tools"] = row["tools"]
        prompt = extend_prompt(group.prompt, **beside)
    except UnusableError as error:
        return error
    item = read_tag(view.get("item", view.get(format.item))) if format.item else None
    subset = read_tag(view.get("subset", view.get(format.subset)))
    origin = settings.origin or format.origin
    return replace(group, prompt=prompt, origin=origin, source=read_tag(view.get("source")), subset=subset, item=item)


def repeating_places(groups: Sequence[Group], settings: ReadSettings) -> Collection[int] | None:
    """Return the positions of the responses from which prompts are removed; None if all are kept."""
    if settings.repeated_prompt is not None:
        return range(sys.maxsize) if settings.repeated_prompt == "cut" else None
    count = max((len(group.responses) for group in groups), default=0)
    samples = [
        [(group.prompt, group.responses[place]) for group in groups if len(group.responses) > place]
        for place in range(count)
    ]
    return frozenset(place for place in range(count) if are_repeated(samples[place]))


def _cut_prompt(group: Group, places: Collection[int] | None) -> Group:
    """Return a group whose responses do not repeat the prompt. Raises `UnusableError` if nothing follows it."""
    if places is None:
        return group
    responses = []
    for place, response in enumerate(group.responses):
        rest = (after_prompt if place in places else last_turn)(group.prompt, response)
        responses.append(response if rest is None else text_of(rest, field="response"))
    return group if tuple(responses) == group.responses else replace(group, responses=tuple(responses))


def collapsed(reading: Group | UnusableError, places: Collection[int] | None) -> tuple[Group, int]:
    """Return a group with equal responses merged and prompts removed at these positions, and the number of dropped comparisons.

    Raises `UnusableError`, also where a pair has equal sides.
    """
    if isinstance(reading, UnusableError):
        raise reading
    group, dropped = collapse(_cut_prompt(reading, places))
    if reading.edges and not group.edges:
        raise UnusableError("equal_sides")
    return group, dropped
