"""Which columns hold prompt and responses, as a mapping, and reading a row by it. `detection` finds the mapping.

Pure. A row that cannot be used becomes reasons, never an exception, so that its neighbours go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rm.conversations import Conversation, UnusableError, from_hh, from_messages, from_prompt, from_response, split_last

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
    reward: str | None = None  # rewards that the corpus carries already
    field: str | None = None  # of each response, where responses are records: text, or message of an API's choices

    def columns(self) -> list[str]:
        """The input columns that scoring reads."""
        named = [
            self.messages,
            self.prompt,
            self.response,
            self.responses,
            self.input,
            self.system,
            self.source,
            self.reward,
        ]
        return list(dict.fromkeys([name for name in named if name is not None] + [*self.carry, *self.group_by]))

    def to_json(self) -> dict[str, Any]:
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        for name in ("reward", "field"):
            if fields[name] is None:
                del fields[name]  # they are part of a fingerprint, and there were none before
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> RowMapping:
        listed = {key: tuple(fields[key]) for key in ("carry", "group_by")}
        return cls(**{**fields, **listed})


class ParsedRow(NamedTuple):
    """One row as the rest of the pipeline sees it: a prompt and its responses, or reasons why not.

    `responses[k]` is None exactly where `reasons[k]` is set. A row without a usable prompt has `prompt` None and one
    reason per response that it would have had (at least one), so that every row is counted.
    """

    prompt: Conversation | None
    responses: list[str | None]
    reasons: list[str | None]


def read_row(row: Mapping[str, Any], mapping: RowMapping) -> ParsedRow:
    """The sample in a row (column → value). Never raises for what a row may hold."""
    values = list(_responses(row, mapping))
    try:
        prompt, values = _prompt(row, mapping, values)
    except UnusableError as error:
        return ParsedRow(None, [None] * len(values), [error.reason] * len(values))
    responses: list[str | None] = []
    reasons: list[str | None] = []
    for value in values:
        try:
            responses.append(from_response(value))
            reasons.append(None)
        except UnusableError as error:
            responses.append(None)
            reasons.append(error.reason)
    return ParsedRow(prompt, responses, reasons)


def rewards_of(row: Mapping[str, Any], mapping: RowMapping, count: int) -> list[float | None]:
    """The rewards that a row with `count` responses carries itself, None where there is no finite number."""
    value = row.get(mapping.reward or "")
    values = value if isinstance(value, list) else [value]
    if len(values) != count:
        return [None] * count
    return [_number(value) for value in values]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if abs(value) <= _LARGEST else None  # false for NaN, too
    except OverflowError:
        return None


def _responses(row: Mapping[str, Any], mapping: RowMapping) -> Sequence[Any]:
    if mapping.responses is None:
        values = [None if mapping.response is None else row.get(mapping.response)]
    else:
        value = row.get(mapping.responses)
        values = value if isinstance(value, list) and value else [value if isinstance(value, str) else None]
    return [_inner(value, mapping.field) for value in values]


def _inner(value: Any, field: str | None) -> Any:
    """A response as `from_response` takes it: out of its record, and a lone message as a list of one."""
    if field is not None and isinstance(value, Mapping):
        value = value.get(field)
    return [value] if isinstance(value, Mapping) and ("role" in value or "from" in value) else value


def _prompt(row: Mapping[str, Any], mapping: RowMapping, values: list[Any]) -> tuple[Conversation, list[Any]]:
    system, extra = (_optional_text(row, name) for name in (mapping.system, mapping.input))
    if mapping.messages is not None:
        read = from_hh if mapping.format == "hh" else from_messages
        prompt, response = split_last(read(row.get(mapping.messages)))
        if system is not None:
            prompt = from_prompt([{"role": r, "content": c} for r, c in prompt], system=system)
        return prompt, [response]
    value = row.get(mapping.prompt or "")
    if isinstance(value, str) and extra is not None and extra.strip():
        value = f"{value}\n\n{extra}"
    return from_prompt(value, system=system), values


def _optional_text(row: Mapping[str, Any], name: str | None) -> str | None:
    """The text in a column that may be absent or null. Raises `UnusableError` for any other type: it is not left out silently."""
    value = None if name is None else row.get(name)
    if value is not None and not isinstance(value, str):
        raise UnusableError("wrong_type")
    return value
