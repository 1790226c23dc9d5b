"""Detection of the columns of prompt and responses, from their names and the kinds of the first rows' values.

Pure. If several readings fit, the first in this order wins; the order never changes, so that a corpus keeps its scores:

1. `messages`: a column of whole conversations. Other columns with parts of the conversations (Magpie's `instruction` and
   `response`) are not needed. Conversations that never end with the assistant are prompts instead.
2. `responses_list`: a prompt and a list of responses.
3. `alpaca`: `instruction`, `input` and `output`; Dolly's `instruction`, `context` and `response`.
4. `prompt_response`: a prompt and one response.
5. `responses_list` from columns with singular names and lists as values, such as `output: [...]`, and from an API's `choices`.
6. `hh`: whole transcripts, "Human: ... Assistant: ...". It also replaces 2, 4 and 5 if most prompts are open transcripts.

For each role, usual names have priority over rarer ones (`layouts.ROLES`). If two columns could have the same role and differ in
any of the first rows, `AmbiguousError` is raised, since any choice would be a guess. It is also raised for a list of responses
beside a response that is not in it, or beside whole conversations and a prompt.

>>> detect(["prompt", "answer"], format="auto", columns=Columns(), where="a.jsonl").mapping.response
'answer'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, NamedTuple

from pipelines.config import Columns
from pipelines.corpus.columns.layouts import (
    LISTS,
    WANTED,
    Reading,
    column_of,
    columns_for_role,
    find_readings,
    join_settings,
    roles_of_layout,
)
from pipelines.corpus.columns.preference_mapping import as_preferences
from pipelines.corpus.columns.row_mapping import RowMapping, parse_row, value_at
from pipelines.corpus.columns.trajectories import AFTER_LAST_USER, ResponseChoice, choose_response
from pipelines.corpus.columns.undetected_hints import hint
from pipelines.corpus.columns.value_kinds import FirstRows, RowValues
from pipelines.errors import InputError, join_names
from rm.conversations import REPEATED, are_repeated, begins_with_prompt

_MAYBE_IN_PROMPT = ("system", "system_prompt", "context", "input", "history", "functions")
_LISTED = ("texts", "messages", "records", "lists", "other")


class UnreadColumn(NamedTuple):
    """A column with text that may belong to the prompt but is not read."""

    column: str
    setting: str | None  # the one that appends it to the prompt; None if the layout has no place for it


@dataclass(frozen=True)
class Detection:
    """The reading chosen for a corpus, and the mapping that follows from it."""

    mapping: RowMapping
    reading: Reading
    alternatives: tuple[Reading, ...]  # other readings that fit, later in the order
    unread: tuple[UnreadColumn, ...]
    # column appended to the prompt although neither the configuration nor the name `input` asks for it
    appended: str | None = None
    prompt_notes: tuple[str, ...] = ()  # on prompts that are transcripts, or that responses repeat
    response: ResponseChoice | None = None  # None if the last turn is all that follows the last user turn
    message_keys: tuple[str, ...] = ()  # keys of messages that are not read

    @property
    def notes(self) -> list[str]:
        """Notes for the user on unread columns and message keys, an appended column, the choice of the response, and prompts."""
        notes = [
            f"the column {name} holds text and is not read"
            + (f"; to put it into the prompt: {setting}" if setting else "")
            for name, setting in self.unread
        ]
        if self.appended is not None:
            rest = {role: name for role, name in self.reading.columns.items() if role != "input"}
            alone = self.reading._replace(columns=rest).setting
            notes.append(f"the column {self.appended} is read as part of the prompt; without it: {alone}")
        if self.message_keys:
            notes.append(f"messages have {', '.join(self.message_keys)}, which no template gets and no output holds")
        if self.response is not None and self.response.note is not None:
            notes.append(self.response.note)
        return [*notes, *self.prompt_notes]


class UndetectedError(InputError):
    """No reading fits; `why` is the cause and the remedy, that is, the message without the list of columns."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class AmbiguousError(InputError):
    """Several readings fit equally well; they are in `readings`, each with the setting that selects it."""

    def __init__(self, message: str, readings: Sequence[Reading]) -> None:
        super().__init__(message)
        self.readings = tuple(readings)


def detect(
    names: Sequence[str],
    *,
    format: str,
    columns: Columns,
    where: str,
    rows: Sequence[RowValues] = (),
    carry: Sequence[str] = (),
    group_by: Sequence[str] = (),
    reward: str | None = None,
    response: str | None = None,
    repeated_prompt: str | None = None,
) -> Detection:
    """Detect the layout of a file with columns `names` that begins with `rows`; the other arguments, which are settings, win.

    `where` names the file in errors. Raises `InputError` if a named column is missing, `UndetectedError` if no reading fits,
    and `AmbiguousError` if several do, with the `input.columns` to write.
    """
    table = FirstRows(names, rows)
    user_columns = {key: value for key, value in columns.model_dump().items() if value is not None}
    named = [(f"input.columns.{key}", name) for key, name in user_columns.items()]
    named += [("input.carry", name) for name in carry] + [("input.group_by", name) for name in group_by]
    named += [("scores.column", reward)] if reward is not None else []
    paths = _paths(table, named, where=where)
    base = RowMapping(format, carry=tuple(carry), group_by=tuple(group_by), reward=reward, paths=paths)
    table = FirstRows([*names, *paths], [base.with_paths(row) for row in rows])
    if format == "preferences":
        mapping, chosen = as_preferences(table, base, user_columns, where=where, repeated_prompt=repeated_prompt)
        return Detection(mapping, chosen, (), ())
    readings = find_readings(table, format, user_columns)
    if not readings:
        wanted = WANTED.get(format, "prompt and response (or responses, or messages)")
        reason = hint(table, wanted, user_columns)
        message = f"{where} has columns {join_names(names)}; cannot tell which hold {wanted}{reason}"
        raise UndetectedError(message, reason.lstrip(":,; "))
    chosen = readings[0]
    _refuse_rivals(table, chosen, readings, user_columns, where=where)
    places = {*chosen.columns, "system", "source", "tools", *(["input"] if "prompt" in chosen.columns else [])}
    unused = sorted(user_columns.keys() - places)
    if unused:
        raise InputError(
            f"input.columns.{unused[0]} is {user_columns[unused[0]]!r}, and the format {chosen.format} has no place for it; "
            "remove it, or set input.format"
        )
    mapping = _mapping(table, chosen, user_columns, where=where, base=base)
    _refuse_no_rewards(table, mapping, where)
    if mapping.field is not None:
        role = "responses" if mapping.responses else "response"
        column = mapping.responses or mapping.response
        chosen = chosen._replace(columns={**chosen.columns, role: f"{column}.{mapping.field}"})
    choice = choose_response(table, mapping, response)
    mapping = replace(mapping, after_last_user=choice is not None and choice.taken == AFTER_LAST_USER)
    appended = mapping.input if mapping.input != "input" and "input" not in user_columns else None
    unread = _unread_columns(table, chosen, mapping)
    cut, repeat_note = _choose_cut(table, mapping, repeated_prompt)
    mapping = replace(mapping, cut_prompt=cut)
    notes = tuple(filter(None, (_transcript_note(table, chosen, format), repeat_note)))
    return Detection(
        mapping, chosen, tuple(readings[1:]), unread, appended, notes, choice, _unread_keys(table, mapping)
    )


def _paths(table: FirstRows, named: Sequence[tuple[str, str]], *, where: str) -> tuple[str, ...]:
    """Return the names in settings (setting, name) that are fields of records, except fields of responses, which belong to the
    layout. Raises `InputError` if a name is neither a column nor a field.
    """
    paths = []
    for setting, name in named:
        column = column_of(name, table.names)
        if column not in table.names:
            raise InputError(
                f"{setting} is {name!r}, and {where} has no such column; name one of {join_names(table.names)}"
            )
        if column != name:
            refuse_missing_field(table, setting, name, where)
            if setting not in ("input.columns.response", "input.columns.responses"):
                paths.append(name)
    return tuple(dict.fromkeys(paths))


def _refuse_no_rewards(table: FirstRows, mapping: RowMapping, where: str) -> None:
    """Raise `InputError` if the first rows have values in the column of rewards, but no numbers."""
    values = [] if mapping.reward is None else [row.get(mapping.reward) for row in table.rows]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value]) if item is not None]
    if flat and not any(isinstance(item, int | float | Decimal) and not isinstance(item, bool) for item in flat):
        raise InputError(
            f"scores.column is {mapping.reward!r}, and in the first rows of {where} {mapping.reward!r} holds "
            f"{table.kinds[mapping.reward or '']}, and the reward is numbers, or lists of numbers; name a column, or a field of "
            "records (completions.overall_score), that holds rewards"
        )


def _mapping(
    table: FirstRows,
    reading: Reading,
    user_columns: Mapping[str, str],
    *,
    where: str,
    base: RowMapping,
) -> RowMapping:
    columns: dict[str, str | None] = dict(reading.columns)
    columns.update({key: user_columns[key] for key in ("input", "system", "source", "tools") if key in user_columns})
    if "tools" not in columns and "tools" not in columns.values() and table.may_hold_tools("tools"):
        columns["tools"] = "tools"
    if "source" not in columns and "source" in table.names:
        columns["source"] = "source"
    role = "responses" if "responses" in columns else "response"
    if name := columns.get(role):
        columns[role] = column = column_of(name, table.names)
        columns["field"] = name.removeprefix(f"{column}.") if name != column else _field(table, reading, role, where)
    named: dict[str, Any] = columns
    return replace(base, format=reading.format, **named)


def refuse_missing_field(table: FirstRows, setting: str, name: str, where: str) -> None:
    """Raise `InputError` if the first rows have records in the column of a field, but none of them has this field."""
    column, _, field = name.partition(".")
    keys = table.keys(column)
    if keys and field not in keys and not any(_has_value(value_at(row, name)) for row in table.rows):
        raise InputError(
            f"{setting} is {name!r}, and no record in the column {column!r} of {where} has a field {field!r}; name one of "
            f"{', '.join(keys[:20])}"
        )


def _has_value(value: object) -> bool:
    return any(map(_has_value, value)) if isinstance(value, list) else value is not None


def _field(table: FirstRows, reading: Reading, role: str, where: str) -> str | None:
    """The field with text, if responses are records. Raises `AmbiguousError` if no field or several have text."""
    name = reading.columns[role]
    if table.kinds[name] not in (("records", "messages") if role == "responses" else ("record",)):
        return None
    fields = table.fields(name)
    if len(fields) == 1:
        return fields[0]
    paths = [f"{name}.{field}" for field in fields or ["FIELD"]]
    choices = [Reading(reading.format, {**reading.columns, role: path}, "") for path in paths]
    problem = f"several of its fields hold text ({', '.join(fields)})" if fields else "none of its fields is known"
    raise AmbiguousError(
        f"{where} has {role} in {name}, which holds records, and {problem}; name the field: {join_settings(choices)}",
        choices,
    )


def _refuse_rivals(
    table: FirstRows, chosen: Reading, readings: Sequence[Reading], user_columns: Mapping[str, str], *, where: str
) -> None:
    """Raise `AmbiguousError` if only the order of names decides between the chosen reading and another one."""
    rivals: list[Reading] = []
    for role, name in chosen.columns.items():
        fixed = role in user_columns or role == "input" or (chosen.format == "alpaca" and role == "prompt")
        fixed = fixed or (chosen.format == "hh" and role == "messages")
        for other in [] if fixed else columns_for_role(role, table, {}):
            if other not in chosen.columns.values() and not table.same(name, other):
                rivals.append(chosen._replace(columns={**chosen.columns, role: other}))
    if not roles_of_layout(user_columns):
        rivals += [other for other in readings[1:] if _contradicts(table, chosen, other)]
    if rivals:
        choices = [chosen, *rivals]
        raise AmbiguousError(
            f"{where} has columns {join_names(table.names)}, which can be read in {len(choices)} ways that differ; say which is "
            f"meant: {join_settings(choices)}",
            choices,
        )


def _contradicts(table: FirstRows, chosen: Reading, other: Reading) -> bool:
    """Return whether a list of responses contradicts a single response that is not in it, or whole conversations."""
    if chosen.format == "messages":
        return other.format == "responses_list" and other.columns["responses"] in LISTS
    if "responses" not in chosen.columns or "response" not in other.columns:
        return False
    lists, single = chosen.columns["responses"], other.columns["response"]
    return not table.rows or not all(row.get(single) in (row.get(lists) or [None]) for row in table.rows)


def _transcript_note(table: FirstRows, chosen: Reading, format: str) -> str | None:
    """A note if prompts were detected as transcripts, or if some are transcripts but are read as plain text."""
    prompt = chosen.columns.get("prompt")
    count = 0 if prompt is None else table.transcripts_in(prompt)
    if not count:
        return None
    layout = "responses_list" if "responses" in chosen.columns else "prompt_response"
    if chosen.format == "hh":
        plain = f"input.format={layout} {chosen._replace(format=layout).setting}"
        return (
            None
            if format == "hh"
            else f"the prompts in {prompt} are transcripts, read as turns; as plain text: {plain}"
        )
    turns = Reading("hh", {role: name for role, name in chosen.columns.items() if role != "input"}, "").setting
    return f"{count:,} of the first {len(table.rows):,} prompts in {prompt} are transcripts, and read as text; as turns: {turns}"


def _choose_cut(table: FirstRows, mapping: RowMapping, setting: str | None) -> tuple[bool, str | None]:
    """Return whether to remove prompts that responses repeat, and a note if the first rows decide."""
    if setting == "cut" and mapping.messages is not None:
        return (
            False,
            "input.repeated_prompt=cut is for prompts in a column of their own, and does nothing for conversations",
        )
    if setting is not None or mapping.messages is not None:
        return setting == "cut", None
    rows = [parse_row(row, mapping) for row in table.rows]
    samples = [(row.prompt, text) for row in rows if row.prompt for text in row.responses if text is not None]
    if are_repeated(samples):
        return True, REPEATED.format("input")
    count = sum(begins_with_prompt(prompt, text) for prompt, text in samples)
    if 10 * count < len(samples) or not samples:
        return False, None
    return False, (
        f"{count:,} of the first {len(samples):,} responses begin with their whole prompt, and are read as they are; to take it "
        "off: input.repeated_prompt=cut"
    )


def _unread_keys(table: FirstRows, mapping: RowMapping) -> tuple[str, ...]:
    names = (mapping.messages, mapping.prompt, mapping.response, mapping.responses)
    return tuple(sorted({key for name in names if name is not None for key in table.unread_keys(name)}))


def _unread_columns(table: FirstRows, chosen: Reading, mapping: RowMapping) -> tuple[UnreadColumn, ...]:
    """Columns with text in the first rows that may belong to the prompt, but are not read."""
    unread = []
    for name in _MAYBE_IN_PROMPT:
        has_text = name in table.names and (table.texts_in(name) or table.kinds[name] in _LISTED)
        if has_text and name not in mapping.columns():
            role = "tools" if name == "functions" else "system" if name.startswith("system") else "input"
            has_place = name != "history" and table.kinds[name] == "text" and role not in chosen.columns
            has_place = has_place and (role == "system" or mapping.messages is None)
            has_place = mapping.tools is None and table.may_hold_tools(name) if role == "tools" else has_place
            setting = chosen._replace(columns={**chosen.columns, role: name}).setting if has_place else None
            unread.append(UnreadColumn(name, setting))
    return tuple(unread)
