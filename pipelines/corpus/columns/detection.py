"""Which columns of a corpus hold prompt and responses: told from names, and from the kinds of the first rows' values.

Pure. Where several readings fit, the first of these wins, as it always did, so that a corpus keeps its scores:

1. `messages`: a column of whole conversations. Columns beside it that hold parts of them (Magpie's `instruction` and
   `response`) are not needed. Conversations that never end with the assistant are prompts instead.
2. `responses_list`: a prompt and a list of responses.
3. `alpaca`: `instruction`, `input` and `output`; Dolly's `instruction`, `context` and `response`.
4. `prompt_response`: a prompt and one response.
5. `responses_list` from columns whose names say "one" and whose values are lists: `output: [...]`, an API's `choices`.
6. `hh`: transcripts, "Human: ... Assistant: ...".

For each role the usual names come before rarer ones (`layouts.ROLES`). Two columns that could have one role, and differ in
any of the first rows, are no tie to break: to pick one would be to guess, so `AmbiguousError` asks. So does a list of
responses beside a response that is not in it, or beside whole conversations and a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.config import Columns
from pipelines.corpus.columns.layouts import (
    LISTS,
    Reading,
    column_of,
    columns_for_role,
    find_readings,
    join_settings,
    roles_of_layout,
)
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.columns.undetected_hints import hint
from pipelines.corpus.columns.value_kinds import FirstRows, RowValues
from pipelines.errors import InputError

_BESIDE = ("system", "system_prompt", "context", "input", "history")
_WANTED = {
    "messages": "messages",
    "sharegpt": "messages",
    "prompt_response": "prompt and response",
    "responses_list": "prompt and responses",
    "alpaca": "prompt, input and response",
    "hh": "messages (transcripts)",
}


class UnreadColumn(NamedTuple):
    """A column with text that may belong to the prompt and is not read."""

    column: str
    setting: str | None  # the setting that would read it; None where there is no place for it


@dataclass(frozen=True)
class Detection:
    """What a corpus is taken for."""

    mapping: RowMapping
    reading: Reading
    alternatives: tuple[Reading, ...]  # readings that fit as well, and come later
    unread: tuple[UnreadColumn, ...]
    appended: str | None = (
        None  # a column that is read as part of the prompt, though nobody has said so and its name does not
    )

    @property
    def notes(self) -> list[str]:
        """What a user should know of it: columns that may have been meant, and are not read."""
        found = [
            f"the column {name} holds text and is not read"
            + (f"; to put it into the prompt: {setting}" if setting else "")
            for name, setting in self.unread
        ]
        if self.appended is not None:
            rest = {role: name for role, name in self.reading.columns.items() if role != "input"}
            alone = self.reading._replace(columns=rest).setting
            found.append(f"the column {self.appended} is read as part of the prompt; without it: {alone}")
        return found


class UndetectedError(InputError):
    """No reading fits; `why` is the cause and the remedy without the columns."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class AmbiguousError(InputError):
    """Several readings fit equally well; `readings` are those, with the settings that choose one."""

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
) -> Detection:
    """What a file with columns `names` and the first rows `rows` is taken for; explicit `columns` win over detection.

    Raises `InputError` where a named column is missing, or nothing fits, and `AmbiguousError` where too much does, with the
    `input.columns` to write.
    """
    table = FirstRows(names, rows)
    given = {key: value for key, value in columns.model_dump().items() if value is not None}
    named = [(f"input.columns.{key}", column_of(name, names)) for key, name in given.items()]
    named += [("input.carry", name) for name in carry] + [("input.group_by", name) for name in group_by]
    named += [("scores.column", reward)] if reward is not None else []
    for key, name in named:
        if name not in names:
            raise InputError(f"{key} is {name!r}, and {where} has no such column; name one of {', '.join(names)}")
    found = find_readings(table, format, given)
    if not found:
        wanted = _WANTED.get(format, "prompt and response (or responses, or messages)")
        told = hint(table, wanted, given)
        message = f"{where} has columns {', '.join(names)}; cannot tell which hold {wanted}{told}"
        raise UndetectedError(message, told.lstrip(":,; "))
    chosen = found[0]
    _refuse_rivals(table, chosen, found, given, where=where)
    places = {*chosen.columns, "system", "source", *(["input"] if "prompt" in chosen.columns else [])}
    unused = sorted(given.keys() - places)
    if unused:
        raise InputError(
            f"input.columns.{unused[0]} is {given[unused[0]]!r}, and the format {chosen.format} has no place for it; "
            "remove it, or set input.format"
        )
    mapping = _mapping(table, chosen, given, where=where, carry=carry, group_by=group_by, reward=reward)
    if mapping.field is not None:
        role = "responses" if mapping.responses else "response"
        column = mapping.responses or mapping.response
        chosen = chosen._replace(columns={**chosen.columns, role: f"{column}.{mapping.field}"})
    appended = mapping.input if mapping.input != "input" and "input" not in given else None
    return Detection(mapping, chosen, tuple(found[1:]), _unread_columns(table, chosen, mapping), appended)


def _mapping(
    table: FirstRows,
    reading: Reading,
    given: Mapping[str, str],
    *,
    where: str,
    carry: Sequence[str],
    group_by: Sequence[str],
    reward: str | None,
) -> RowMapping:
    found: dict[str, str | None] = dict(reading.columns)
    found.update({key: given[key] for key in ("input", "system", "source") if key in given})
    if "source" not in found and "source" in table.names:
        found["source"] = "source"
    role = "responses" if "responses" in found else "response"
    if name := found.get(role):
        found[role] = column = column_of(name, table.names)
        found["field"] = name.removeprefix(f"{column}.") if name != column else _field(table, reading, role, where)
    return RowMapping(reading.format, **found, carry=tuple(carry), group_by=tuple(group_by), reward=reward)


def _field(table: FirstRows, reading: Reading, role: str, where: str) -> str | None:
    """Where responses are records: their field with text. Raises where there is none, or several."""
    name = reading.columns[role]
    if table.kinds[name] not in (("records", "messages") if role == "responses" else ("record",)):
        return None
    fields = table.fields(name)
    if len(fields) == 1:
        return fields[0]
    ways = [Reading(reading.format, {**reading.columns, role: f"{name}.{field}"}, "") for field in fields or ["FIELD"]]
    problem = f"several of its fields hold text ({', '.join(fields)})" if fields else "none of its fields is known"
    raise AmbiguousError(
        f"{where} has {role} in {name}, which holds records, and {problem}; name the field: {join_settings(ways)}", ways
    )


def _refuse_rivals(
    table: FirstRows, chosen: Reading, found: Sequence[Reading], given: Mapping[str, str], *, where: str
) -> None:
    """Raise `AmbiguousError` where another reading fits as well and nothing but the order of names speaks against it."""
    rivals: list[Reading] = []
    for role, name in chosen.columns.items():
        fixed = role in given or role == "input" or (chosen.format == "alpaca" and role == "prompt")
        for other in [] if fixed or chosen.format == "hh" else columns_for_role(role, table, {}):
            if other not in chosen.columns.values() and not table.same(name, other):
                rivals.append(chosen._replace(columns={**chosen.columns, role: other}))
    if not roles_of_layout(given):
        rivals += [other for other in found[1:] if _contradicts(table, chosen, other)]
    if rivals:
        ways = [chosen, *rivals]
        raise AmbiguousError(
            f"{where} has columns {', '.join(table.names)}, which can be read in {len(ways)} ways that differ; say which is "
            f"meant: {join_settings(ways)}",
            ways,
        )


def _contradicts(table: FirstRows, chosen: Reading, other: Reading) -> bool:
    """Whether a list of responses stands against one response that is not among them, or against whole conversations."""
    if chosen.format == "messages":
        return other.format == "responses_list" and other.columns["responses"] in LISTS
    if chosen.format != "responses_list" or other.format not in ("prompt_response", "alpaca"):
        return False
    lists, single = chosen.columns["responses"], other.columns["response"]
    return not table.rows or not all(row.get(single) in (row.get(lists) or [None]) for row in table.rows)


def _unread_columns(table: FirstRows, chosen: Reading, mapping: RowMapping) -> tuple[UnreadColumn, ...]:
    """Columns that hold text in the first rows, may belong to the prompt, and are not read."""
    found = []
    for name in _BESIDE:
        if name in table.names and name not in mapping.columns() and table.texts_in(name):
            role = "system" if name.startswith("system") else "input"
            place = name != "history" and (role == "system" or mapping.messages is None) and role not in chosen.columns
            setting = chosen._replace(columns={**chosen.columns, role: name}).setting if place else None
            found.append(UnreadColumn(name, setting))
    return tuple(found)
