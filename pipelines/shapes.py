"""The columns of the output: one shape per data set, so that trainers that guess a format from names guess right. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines import originals
from pipelines.inputs import Row
from rm.conversations import to_messages

_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))


class Kept(NamedTuple):
    """A kept response, read again."""

    row: Row
    response_index: int
    reward: float
    prompt_id: str  # the prompt key in hex

    @property
    def text(self) -> str:
        text = self.row.sample.responses[self.response_index]
        assert text is not None
        return text


def schema_of(shape: str, original: pa.Schema) -> pa.Schema:
    """The output schema; `original` holds the input's columns and is used by the shape `original` alone."""
    if shape == "original":
        added = [("reward", pa.float32()), ("prompt_id", pa.string()), ("response_index", pa.int32())]
        prefix = ""
        while {prefix + name for name, _ in added} & set(original.names):
            prefix += "bestkept_"
        own = (field.with_nullable(True) for field in original)  # another file may lack the column
        return pa.schema([*own, *(pa.field(prefix + name, kind) for name, kind in added)])
    columns = {"messages": ["messages"], "prompt_completion": ["prompt", "completion"]}[shape]
    return pa.schema(
        [
            *(pa.field(name, _MESSAGES) for name in columns),
            pa.field("reward", pa.float32()),
            pa.field("prompt_id", pa.string()),
            pa.field("source", pa.string()),
        ]
    )


def to_table(kept: Sequence[Kept], schema: pa.Schema, shape: str) -> pa.Table:
    """Kept responses as a table of `schema`."""
    values = {name: column(item for item in kept) for name, column in _columns(schema, shape).items()}
    arrays = [originals.to_array(list(values[field.name]), field) for field in schema]
    plain = pa.schema([field.remove_metadata() for field in schema])
    return pa.table(arrays, schema=plain)


def _columns(schema: pa.Schema, shape: str) -> dict[str, Callable[[Any], Any]]:
    def each(value: Callable[[Kept], Any]) -> Callable[[Any], Any]:
        return lambda items: map(value, items)

    def original(name: str) -> Callable[[Any], Any]:
        return each(lambda item: item.row.original.get(name))

    if shape == "original":
        added = schema.names[-3:]
        return {
            **{name: original(name) for name in schema.names[:-3]},
            added[0]: each(lambda item: item.reward),
            added[1]: each(lambda item: item.prompt_id),
            added[2]: each(lambda item: item.response_index),
        }
    return {
        "messages": each(lambda item: to_messages(item.row.sample.prompt or (), item.text)),
        "prompt": each(lambda item: to_messages(item.row.sample.prompt or ())),
        "completion": each(lambda item: to_messages((), item.text)),
        "reward": each(lambda item: item.reward),
        "prompt_id": each(lambda item: item.prompt_id),
        "source": each(lambda item: item.row.source),
    }
