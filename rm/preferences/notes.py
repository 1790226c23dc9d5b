"""Notes on the reading of a file of preferences: unread columns, transcripts, prompts removed from responses."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from rm.conversations import REPEATED, begins_with_prompt, is_message
from rm.preferences.detection import add_roles, columns_setting
from rm.preferences.formats import Format
from rm.preferences.groups import Group
from rm.preferences.row_values import PreferenceRow, ReadSettings, holds_tools
from rm.preferences.verdicts import words_of

_WORDS = {
    "system": {"system", "sys"},
    "history": {"history"},
    "context": {"context", "input", "passage", "document", "documents", "background"},
}
"""Words in the names of columns that may belong to the prompt, by the role that reads them."""
_USE = {
    "system": "to put it before the prompt",
    "history": "to put it before the prompt",
    "context": "to append it to the prompt",
}
_IS_ID = re.compile(r"(^|[_ -])(id|ids|uuid|hash|url|model|sha256)$", re.IGNORECASE)
_MARK = re.compile(r"\n\n(Human|Assistant):")


def unread_columns(rows: Sequence[PreferenceRow], format: Format, settings: ReadSettings) -> list[str]:
    """Return notes on the columns of `rows` that hold text or lists and are not read.

    A column that may belong to the prompt has a separate note, with the remedy; the others share a note.
    """
    read = {*settings.columns.values(), *(settings.sides or ()), "source", "subset", "item", format.subset, format.item}
    views = [add_roles(row, settings.columns) for row in rows]
    names = dict.fromkeys(name for row in rows for name in row)
    for need in format.needs:
        options = [need] if isinstance(need, str) else [*need]
        read |= {*[name for name in options if any(name in view for view in views)][:1]}
    read |= {"input"} if "instruction" in read else set()
    read |= {"tools"} if any(holds_tools(row.get("tools")) for row in rows) else set()
    read |= {"margin"} if "margin" in format.roles else set()
    notes, others = [], []
    for name in names:
        if name in read or not any(_holds_text(row.get(name)) for row in rows):
            continue
        role = next((role for role, words in _WORDS.items() if words & {*words_of(name)}), None)
        if role is None or _IS_ID.search(name):
            others.append(name)
            continue
        remedy = (
            "" if role in settings.columns else f"; {_USE[role]}: {columns_setting({**settings.columns, role: name})}"
        )
        notes.append(f"the column {name} holds text and is not read{remedy}")
    if others:
        notes.append(f"columns with text or lists that are not read: {', '.join(others)}")
    return notes


def unread_fields(rows: Sequence[PreferenceRow], format: Format) -> list[str]:
    """Return notes on fields of records, such as UltraFeedback's completions, that may belong to the prompt and are not read."""
    fields = {
        f"{name}.{field}": None
        for row in rows
        for name in format.needs
        if isinstance(name, str) and isinstance(records := row.get(name), list)
        for record in records
        if isinstance(record, Mapping) and not is_message(record)
        for field, value in record.items()
        if _holds_text(value) and any(words & {*words_of(field)} for words in _WORDS.values())
    }
    return [f"the field {name} holds text and is not read" for name in fields]


def prompt_notes(groups: Sequence[Group], cut_places: Collection[int] | None, settings: ReadSettings) -> list[str]:
    """Return notes on prompts of `groups` that are transcripts read as text, and on responses that repeat the prompt.

    `cut_places` are the positions of the responses from which the prompt is removed; None if all are kept.
    """
    notes = []
    quoting = sum(any(role == "user" and _MARK.search(content) for role, content in group.prompt) for group in groups)
    if quoting:
        notes.append(
            f"{quoting:,} of the first {len(groups):,} prompts hold turns (Human: ... Assistant: ...) and are read as text"
        )
    if settings.repeated_prompt is not None:
        return notes
    if cut_places:
        notes.append(REPEATED.format("data"))
    elif repeating := sum(any(begins_with_prompt(group.prompt, text) for text in group.responses) for group in groups):
        notes.append(
            f"{repeating:,} of the first {len(groups):,} rows have a response that begins with the prompt; it is kept; to "
            "remove it: data.repeated_prompt=cut"
        )
    return notes


def _holds_text(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else isinstance(value, list) and bool(value)
