"""The mapping of columns to prompt and responses, and the parsing of rows. `detection` finds the mapping.

Pure. An unusable row yields reasons, never an exception, so that its neighbours are not affected.

>>> mapping = RowMapping("responses_list", prompt="q", responses="answers")
>>> parse_row({"q": "2+2?", "answers": ["4", None]}, mapping)
ParsedRow(prompt=(('user', '2+2?'),), responses=['4', None], reasons=[None, 'null_response'], cut=0, order=None)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from pipelines.corpus.columns.value_kinds import RowValues
from rm.conversations import (
    TOOLS,
    Conversation,
    UnusableError,
    after_prompt,
    from_hh,
    from_messages,
    from_prompt,
    from_response,
    open_turns,
    parse_json,
    split_after_last_user,
    split_last,
    text_of,
    turns_in,
    with_system,
    with_tools,
)

_LARGEST = 3.4028234663852886e38  # of float32


@dataclass(frozen=True)
class RowMapping:
    """Resolved column names; `format` decides which of them are set."""

    format: str
    messages: str | None = None
    prompt: str | None = None
    response: str | None = None
    responses: str | None = None
    input: str | None = None
    system: str | None = None
    source: str | None = None
    carry: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    reward: str | None = None  # the corpus's own column of rewards
    field: str | None = None  # of a response that is a record: `text`, or `message` of an API's choices
    tools: str | None = None  # the tools that a conversation may call
    after_last_user: bool = False  # the response is all that follows the last user turn
    cut_prompt: bool = False  # a prompt at the beginning of a response is removed
    paths: tuple[
        str, ...
    ] = ()  # the names above that are not columns but fields of records, such as `completions.overall_score`
    preferences: str | None = None  # how rows of preferences are read, see `rm.preferences.ranked`
    reads: tuple[str, ...] = ()  # the columns of rows of preferences

    def columns(self) -> list[str]:
        """The input columns that scoring reads."""
        named = [
            self.messages,
            self.prompt,
            self.response,
            self.responses,
            self.input,
            self.system,
            self.tools,
            self.source,
            self.reward,
        ]
        used = [name for name in named if name is not None] + [*self.carry, *self.group_by, *self.reads]
        return list(dict.fromkeys(self.column_of(name) for name in used))

    def optional(self) -> frozenset[str]:
        """The input columns that a file may lack: columns of preferences that neither the format nor a setting needs."""
        if self.preferences is None:
            return frozenset()
        from rm.preferences import needed_columns

        named = [name for name in (self.reward, *self.carry, *self.group_by) if name is not None]
        return frozenset(self.reads) - needed_columns(self.preferences) - {self.column_of(name) for name in named}

    def needed_columns(self) -> list[str]:
        """The input columns that every file must have."""
        optional = self.optional()
        return [name for name in self.columns() if name not in optional]

    def column_of(self, name: str) -> str:
        """The input column from which a name is read."""
        return name.partition(".")[0] if name in self.paths else name

    def with_paths(self, row: RowValues) -> RowValues:
        """The row with the values at `paths` added."""
        return {**row, **{path: value_at(row, path) for path in self.paths}} if self.paths else row

    def to_json(self) -> dict[str, Any]:
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        for name in ("reward", "field", "tools", "after_last_user", "cut_prompt", "paths", "preferences", "reads"):
            if not fields[name]:
                del fields[name]  # fingerprints must stay as they were before these fields existed
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> RowMapping:
        listed = {key: tuple(fields[key]) for key in ("carry", "group_by", "paths", "reads") if key in fields}
        return cls(**{**fields, **listed})


def value_at(value: Any, path: str) -> Any:
    """The value at a path of keys joined by dots; for a list of records, the list of their values. None if it is missing."""
    if isinstance(value, list):
        return [value_at(item, path) for item in value]
    if not isinstance(value, Mapping):
        return None
    key, _, rest = path.partition(".")
    return value[path] if path in value else value_at(value.get(key), rest) if rest else None


class ParsedRow(NamedTuple):
    """A row as the rest of the pipeline sees it: a prompt and its responses, or the reasons why they are unusable.

    `responses[k]` is None if and only if `reasons[k]` is set. A row without a usable prompt has `prompt` None and one reason for
    each response that it would have had (at least one), so that every row is counted.
    """

    prompt: Conversation | None
    responses: list[str | None]
    reasons: list[str | None]
    cut: int = 0  # number of responses from which a repeated prompt was removed
    order: tuple[int, ...] | None = None  # each response's number in the row, if the order differs

    @classmethod
    def rejected(cls, reason: str, *, responses: int = 1) -> ParsedRow:
        """A row whose responses are all rejected for one reason."""
        return cls(None, [None] * responses, [reason] * responses)


def parse_row(row: RowValues | str, mapping: RowMapping) -> ParsedRow:
    """Parse a row (column → value); for a row that could not be read, `row` is the reason. No value of a row raises."""
    if isinstance(row, str):
        return ParsedRow.rejected(row)
    row = mapping.with_paths(row)
    if mapping.preferences is not None:
        return _parse_preference(row, mapping.preferences)
    values = list(_responses(row, mapping))
    try:
        if mapping.messages is not None:
            return _parse_conversation(row, mapping)
        prompt = _prompt(row, mapping)
    except UnusableError as error:
        return ParsedRow.rejected(error.reason, responses=len(values))
    responses: list[str | None] = []
    reasons: list[str | None] = []
    cut = 0
    for value in values:
        try:
            text = from_response(value, after=prompt, several=mapping.after_last_user)
            rest = after_prompt(prompt, text) if mapping.cut_prompt else None
            responses.append(text if rest is None else text_of(rest, field="response"))
            reasons.append(None)
            cut += rest is not None
        except UnusableError as error:
            responses.append(None)
            reasons.append(error.reason)
    return ParsedRow(prompt, responses, reasons, cut)


def _parse_preference(row: RowValues, settled: str) -> ParsedRow:
    """A row of preferences, with responses from best to worst by the row's judgement; an unusable row counts two responses."""
    from rm.preferences import read_ranked

    try:
        prompt, ranked, order = read_ranked(row, settled)
    except UnusableError as error:
        return ParsedRow.rejected(error.reason, responses=2)
    reasons = ["no_grade" if response is None else None for response in ranked]
    return ParsedRow(prompt, ranked, reasons, order=tuple(order))


def rewards_of(
    row: RowValues, mapping: RowMapping, count: int, order: Sequence[int] | None = None
) -> list[float | None]:
    """The rewards in the row's column for its `count` responses; None for each without a finite number. `order` is that of
    `ParsedRow`."""
    value = mapping.with_paths(row).get(mapping.reward or "")
    values = value if isinstance(value, list) else [value]
    if len(values) != count:
        return [None] * count
    return [_number(values[at]) for at in (range(count) if order is None else order)]


def _number(value: object) -> float | None:
    value = float(value) if isinstance(value, Decimal) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if abs(value) <= _LARGEST else None  # the comparison is false for NaN
    except OverflowError:
        return None


def _responses(row: RowValues, mapping: RowMapping) -> Sequence[Any]:
    if mapping.responses is None:
        values = [None if mapping.response is None else row.get(mapping.response)]
    else:
        value = row.get(mapping.responses)
        values = value if isinstance(value, list) and value else [value if isinstance(value, str) else None]
    return [_inner(value, mapping.field) for value in values]


def _inner(value: Any, field: str | None) -> Any:
    """The value that `from_response` reads: the field of a record, and a list of one for a single message."""
    if field is not None and isinstance(value, Mapping):
        value = value_at(value, field)
    return [value] if isinstance(value, Mapping) and ("role" in value or "from" in value) else value


def _parse_conversation(row: RowValues, mapping: RowMapping) -> ParsedRow:
    """Split a whole conversation into prompt and response. Raises `UnusableError`."""
    system, value = _optional_text(row, mapping.system), row.get(mapping.messages or "")
    if mapping.format == "hh":
        prompt, response = split_last(from_hh(value))
    else:
        split = split_after_last_user if mapping.after_last_user else split_last
        prompt, response = split(from_messages(value))
    return ParsedRow(with_tools(with_system(prompt, system), _tools(row, mapping)), [response], [None])


def _prompt(row: RowValues, mapping: RowMapping) -> Conversation:
    system, extra = (_optional_text(row, name) for name in (mapping.system, mapping.input))
    value = row.get(mapping.prompt or "")
    if isinstance(value, str) and extra is not None and extra.strip():
        value = f"{value}\n\n{extra}"
    if mapping.format == "hh" and isinstance(value, str):
        value = open_turns(value) or turns_in(value) or value
    return with_tools(from_prompt(value, system=system), _tools(row, mapping))


def _tools(row: RowValues, mapping: RowMapping) -> object:
    """The tools of a row. Raises `UnusableError` if the row has tools but the first rows had none, so they are not read."""
    value = row.get(mapping.tools or TOOLS)
    if mapping.tools is not None:
        return value
    values = parse_json(value)
    if isinstance(values, list) and values and isinstance(values[0], Mapping):
        raise UnusableError("tools_not_read")
    return None


def _optional_text(row: RowValues, name: str | None) -> str | None:
    """The text in a column that may be absent or null. Raises `UnusableError` for any other type: no value is
    dropped silently."""
    value = None if name is None else row.get(name)
    if isinstance(value, bytes):
        raise UnusableError("bad_utf8")
    if value is not None and not isinstance(value, str):
        raise UnusableError("wrong_type")
    return value
