"""Which columns hold prompt and responses: detection from names and one sample row, and reading a row by the mapping.

Pure. A row that cannot be used becomes reasons, never an exception, so that its neighbours go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pipelines.config import Columns
from pipelines.errors import InputError
from rm.conversations import Conversation, UnusableError, from_messages, from_prompt, from_response, split_last

_PROMPT = ("prompt", "instruction", "question", "query")
_RESPONSE = ("response", "completion", "output", "answer")
_RESPONSES = ("responses", "completions", "candidates", "outputs", "generations", "samples")
_LARGEST = 3.4028234663852886e38  # of float32
_MESSAGES = ("messages", "conversations", "conversation")


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
        if self.reward is None:
            del fields["reward"]  # it is part of a fingerprint, and there was none before
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> RowMapping:
        listed = {key: tuple(fields[key]) for key in ("carry", "group_by")}
        return cls(**{**fields, **listed})


class Sample(NamedTuple):
    """One row as the rest of the pipeline sees it: a prompt and its responses, or reasons why not.

    `responses[k]` is None exactly where `reasons[k]` is set. A row without a usable prompt has `prompt` None and one
    reason per response that it would have had (at least one), so that every row is counted.
    """

    prompt: Conversation | None
    responses: list[str | None]
    reasons: list[str | None]


def resolve(
    names: Sequence[str],
    *,
    format: str,
    columns: Columns,
    carry: Sequence[str],
    group_by: Sequence[str],
    where: str,
    reward: str | None = None,
) -> RowMapping:
    """The mapping for a file with columns `names`; explicit `columns` win over detection.

    Raises `InputError` where a named column is missing, or nothing fits, with the `input.columns` to write.
    """
    given = {key: value for key, value in columns.model_dump().items() if value is not None}
    named = [(f"input.columns.{key}", name) for key, name in given.items()]
    named += [("input.carry", name) for name in carry] + [("input.group_by", name) for name in group_by]
    named += [("scores.column", reward)] if reward is not None else []
    for key, name in named:
        if name not in names:
            raise InputError(f"{key} is {name!r}, and {where} has no such column; name one of {', '.join(names)}")
    found = _detect(names, given) if format == "auto" else _by_format(format, names, given)
    if found is None:
        wanted = {
            "messages": "messages",
            "sharegpt": "messages",
            "prompt_response": "prompt and response",
            "responses_list": "prompt and responses",
            "alpaca": "prompt, input and response",
        }.get(format, "prompt and response (or responses, or messages)")
        raise InputError(
            f"{where} has columns {', '.join(names)}; cannot tell which hold {wanted}; "
            "name them, for example input.columns={prompt: COLUMN, response: COLUMN}"
        )
    unused = sorted(given.keys() - found.keys() - {"input", "system", "source"})
    if unused:
        raise InputError(
            f"input.columns.{unused[0]} is {given[unused[0]]!r}, and the format {found['format']} has no place for it; "
            "remove it, or set input.format"
        )
    found.update({key: given[key] for key in ("input", "system", "source") if key in given})
    if "source" not in found and "source" in names:
        found["source"] = "source"
    return RowMapping(**found, carry=tuple(carry), group_by=tuple(group_by), reward=reward)


def _detect(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str] | None:
    for format in ("messages", "responses_list", "alpaca", "prompt_response"):
        if "messages" in given and format != "messages":
            continue
        if given.keys() & {"prompt", "response", "responses"} and format == "messages":
            continue
        if "response" in given and format == "responses_list":
            continue
        if given.keys() & {"prompt", "response"} and "input" not in given and format == "alpaca":
            continue
        found = _by_format(format, names, given)
        if found is not None:
            return found
    return None


def _by_format(format: str, names: Sequence[str], given: Mapping[str, str]) -> dict[str, str] | None:
    def pick(key: str, candidates: Sequence[str]) -> str | None:
        return given.get(key) or next((name for name in candidates if name in names), None)

    if format in ("messages", "sharegpt"):
        wanted = {"messages": pick("messages", _MESSAGES)}
    elif format == "responses_list":
        wanted = {"prompt": pick("prompt", _PROMPT), "responses": pick("responses", _RESPONSES)}
    elif format == "alpaca":
        wanted = {
            "prompt": pick("prompt", ("instruction",)),
            "input": pick("input", ("input",)),
            "response": pick("response", ("output", "response")),
        }
    else:
        wanted = {"prompt": pick("prompt", _PROMPT), "response": pick("response", _RESPONSE)}
    found = {key: name for key, name in wanted.items() if name is not None}
    return {"format": format, **found} if len(found) == len(wanted) else None


def read_row(row: Mapping[str, Any], mapping: RowMapping) -> Sample:
    """The sample in a row (column → value). Never raises for what a row may hold."""
    values = list(_responses(row, mapping))
    try:
        prompt, values = _prompt(row, mapping, values)
    except UnusableError as error:
        return Sample(None, [None] * len(values), [error.reason] * len(values))
    responses: list[str | None] = []
    reasons: list[str | None] = []
    for value in values:
        try:
            responses.append(from_response(value))
            reasons.append(None)
        except UnusableError as error:
            responses.append(None)
            reasons.append(error.reason)
    return Sample(prompt, responses, reasons)


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
        return [None if mapping.response is None else row.get(mapping.response)]
    value = row.get(mapping.responses)
    return value if isinstance(value, list) and value else [value if isinstance(value, str) else None]


def _prompt(row: Mapping[str, Any], mapping: RowMapping, values: list[Any]) -> tuple[Conversation, list[Any]]:
    system, extra = (_optional_text(row, name) for name in (mapping.system, mapping.input))
    if mapping.messages is not None:
        prompt, response = split_last(from_messages(row.get(mapping.messages)))
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
