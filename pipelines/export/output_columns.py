"""The columns of the output: one shape per data set, so that trainers detect the right format from names. Pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines.config import RunConfig
from pipelines.corpus import Row, original_columns
from pipelines.corpus.fragments import TOOLS_TEXT
from pipelines.plan import Plan
from rm.conversations import JSON_KEYS, MESSAGE_KEYS, TOOLS, Conversation, to_messages, tools_in, unpack

_TOOLS = (TOOLS, TOOLS_TEXT)


def messages_type(keys: Collection[str]) -> pa.DataType:
    """The type of messages with some of `MESSAGE_KEYS`: texts as such, calls as JSON, since their arguments differ."""
    kinds = {name: pa.json_() if name in JSON_KEYS else pa.string() for name in MESSAGE_KEYS if name in keys}
    return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), *kinds.items()]))


class KeptResponse(NamedTuple):
    """A kept response, read again."""

    row: Row
    response_index: int
    reward: float
    prompt_id: str  # the prompt key in hex
    rank: int = 0
    margin: float | None = None  # None for the worst of its prompt
    rejected: str = ""  # of a pair: the other response and its reward
    rejected_reward: float = 0.0
    flipped: bool = False  # of a row of preferences: whether its sides are swapped

    @property
    def text(self) -> str:
        text = self.row.parsed.responses[self.response_index]
        assert text is not None
        return text


class Shape(NamedTuple):
    """The shape of an output, and its additional columns."""

    name: str
    include: tuple[str, ...] = ()  # columns of the input
    add: tuple[str, ...] = ()  # rank, margin, probability
    temperature: float | None = None
    message_keys: frozenset[str] = frozenset()  # keys of the conversations' messages beside role and text

    @classmethod
    def of(cls, config: RunConfig, plan: Plan) -> Shape:
        """Return the shape that `output` configures."""
        output = config.output
        return cls(output.shape, tuple(output.include_columns), tuple(output.add), plan.temperature)

    @property
    def more_columns(self) -> Sequence[str] | None:
        """The input columns to read in addition to those that scoring reads; None means all."""
        return None if self.name == "original" else self.include

    @property
    def has_input_columns(self) -> bool:
        """True if the output has columns of the input, so that their types are needed."""
        return self.name == "original" or bool(self.include)

    @property
    def columns(self) -> list[str]:
        """The columns that are not the input's, `add` left out."""
        has_tools = self.name != "original" and not self.message_keys.isdisjoint(_TOOLS)
        return [*COLUMNS[self.name], *([TOOLS] if has_tools else [])]

    def kind_of(self, column: str) -> pa.DataType:
        """The type of a column that is not the input's."""
        if column in _MESSAGE_COLUMNS:
            return messages_type(self.message_keys)
        if column == TOOLS:
            return pa.string() if TOOLS_TEXT in self.message_keys else pa.list_(pa.json_())
        return _KINDS[column]


_MESSAGE_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")
_KINDS = {
    "reward": pa.float32(),
    "chosen_reward": pa.float32(),
    "rejected_reward": pa.float32(),
    "prompt_id": pa.string(),
    "source": pa.string(),
    "response_index": pa.int32(),
    "rank": pa.int32(),
    "margin": pa.float32(),
    "probability": pa.float32(),
    "flipped": pa.bool_(),
}
COLUMNS = {
    "messages": ["messages", "reward", "prompt_id", "source"],
    "prompt_completion": ["prompt", "completion", "reward", "prompt_id", "source"],
    "preference": ["prompt", "chosen", "rejected", "chosen_reward", "rejected_reward", "prompt_id", "source"],
    "original": ["reward", "prompt_id", "response_index"],
}


def column_names(shape: Shape, original: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(columns of the input, our columns by their names in the output); `original` is the input's schema."""
    added = [*shape.columns, *shape.add]
    if shape.name == "original":
        prefix = ""
        while {prefix + name for name in added} & set(original):
            prefix += "bestkept_"
        return list(original), {prefix + name: name for name in added}
    return [name for name in shape.include if name not in added], {name: name for name in added}


def schema_of(shape: Shape, original: pa.Schema) -> pa.Schema:
    """The output schema; `original` is the input's schema. Raises `KeyError` if an included column is missing."""
    input_names, added_names = column_names(shape, original.names)
    kept = [original.field(name).with_nullable(True) for name in input_names]  # another file may lack the column
    added = [pa.field(name, shape.kind_of(column)) for name, column in added_names.items()]
    return pa.schema([*kept, *added] if shape.name == "original" else [*added, *kept])


def to_table(kept: Sequence[KeptResponse], schema: pa.Schema, shape: Shape) -> pa.Table:
    """Kept responses as a table of `schema`."""
    input_names = schema.names[: len(schema) - len(shape.columns) - len(shape.add)]
    _, added_names = column_names(shape, input_names)
    arrays = []
    for field in schema:
        column = added_names.get(field.name)
        values = [_VALUES[column](item, shape) if column else item.row.original.get(field.name) for item in kept]
        arrays.append(original_columns.to_array(values, field))
    return pa.table(arrays, schema=pa.schema([field.remove_metadata() for field in schema]))


def probability_of(margin: float | None, temperature: float | None) -> float | None:
    """The probability that a response is preferred to the next worse one; None if there is none."""
    if margin is None or temperature is None:
        return None
    return 1.0 / (1.0 + math.exp(min(700.0, -margin / temperature)))


def _tools(prompt: Conversation, *, as_text: bool) -> Any:
    if tools_in(prompt) is None:
        return None
    tools = unpack(prompt[0][1])
    return json.dumps(tools, ensure_ascii=False) if as_text and not isinstance(tools, str) else tools


_VALUES: dict[str, Callable[[KeptResponse, Shape], Any]] = {
    TOOLS: lambda item, shape: _tools(item.row.parsed.prompt or (), as_text=TOOLS_TEXT in shape.message_keys),
    "messages": lambda item, _: to_messages(item.row.parsed.prompt or (), item.text),
    "prompt": lambda item, _: to_messages(item.row.parsed.prompt or ()),
    "completion": lambda item, _: to_messages((), item.text),
    "chosen": lambda item, _: to_messages((), item.text),
    "rejected": lambda item, _: to_messages((), item.rejected),
    "reward": lambda item, _: item.reward,
    "chosen_reward": lambda item, _: item.reward,
    "rejected_reward": lambda item, _: item.rejected_reward,
    "prompt_id": lambda item, _: item.prompt_id,
    "source": lambda item, _: item.row.source,
    "response_index": lambda item, _: (item.row.parsed.order or range(item.response_index + 1))[item.response_index],
    "rank": lambda item, _: item.rank,
    "margin": lambda item, _: item.margin,
    "probability": lambda item, shape: probability_of(item.margin, shape.temperature),
    "flipped": lambda item, _: item.flipped,
}
