"""Units → fragments of canonical rows, streamed in bounded memory.

A fragment is the checkpoint inside a unit. Its bounds depend on the file and the settings alone, never on the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from pipelines.corpus import original_columns
from pipelines.corpus.columns.row_mapping import ParsedRow, RowMapping, parse_row, rewards_of
from pipelines.corpus.files import InputFile, Unit
from pipelines.corpus.jsonl import json_rows
from pipelines.corpus.parquet import parquet_rows, parquet_schema
from rm.conversations import Conversation, canonical_json, prompt_key

FRAGMENT_BYTES = 64 * 2**20  # of row text per fragment, beside rows_per_fragment

PromptGroup = tuple[Conversation, list[str]]
"""A prompt and some of its responses, as the model is given them."""


class Row(NamedTuple):
    """One input row."""

    number: int  # within its unit, from 0
    parsed: ParsedRow
    group_key: bytes | None  # 16 bytes; None where the prompt is unusable
    row_bytes: int
    held_bytes: int  # what it counts in a fragment
    seen_bytes: int  # of the unit's `input_bytes`, this row included; approximate, for progress
    source: str | None
    carry: tuple[str | None, ...]
    original: Mapping[str, Any]
    rewards: tuple[float | None, ...] | None = None  # that the row carries itself


@dataclass(frozen=True)
class Fragment:
    """Consecutive rows of one unit: one score file."""

    index: int  # within its unit
    rows: list[Row]
    last: bool  # of its unit

    def content_hash(self) -> str:
        """xxh3-128 over all that a score file derives from the rows, in order: whether an input still is what was scored.

        Canonical prompts and responses, reasons, group keys, sources and carried columns.
        """
        digest = xxhash.xxh3_128()
        for row in self.rows:
            parsed = row.parsed
            digest.update(b"" if parsed.prompt is None else canonical_json(parsed.prompt))
            for response, reason in zip(parsed.responses, parsed.reasons, strict=True):
                digest.update(b"\0" + (response.encode() if response is not None else b"\1" + (reason or "").encode()))
            digest.update(b"\2" + (row.group_key or b"") + json.dumps([row.source, *row.carry]).encode() + b"\n")
            if row.rewards is not None:
                digest.update(json.dumps(row.rewards).encode())
        return digest.hexdigest()


def read_fragments(
    file: InputFile,
    unit: Unit,
    mapping: RowMapping,
    *,
    rows_per_fragment: int,
    max_row_bytes: int,
) -> Iterator[Fragment]:
    """Stream a unit as fragments; an empty unit is one empty fragment. Every row group is decoded once.

    Raises `InputError` for a file that is gone, cut, or lacks a mapped column.
    """
    rows: list[Row] = []
    index = size = 0
    for row in _rows(file, unit, mapping, max_row_bytes):
        if len(rows) == rows_per_fragment or size >= FRAGMENT_BYTES:
            yield Fragment(index, rows, last=False)
            rows, index, size = [], index + 1, 0
        rows.append(row)
        size += row.held_bytes
    yield Fragment(index, rows, last=True)


def original_schema(file: InputFile, fragment: Fragment) -> pa.Schema:
    """The types of the input's own columns: a Parquet file's, or what the fragment's JSON rows show."""
    if file.kind == "parquet":
        return parquet_schema(file)
    return original_columns.infer([row.original for row in fragment.rows])


def _rows(file: InputFile, unit: Unit, mapping: RowMapping, max_row_bytes: int) -> Iterator[Row]:
    source = (
        parquet_rows(file, unit, mapping)
        if file.kind == "parquet"
        else json_rows(file, unit, max_row_bytes=max_row_bytes)
    )
    for number, (value, size, held, seen) in enumerate(source):
        too_large = not isinstance(value, str) and size > max_row_bytes
        yield row_of(number, "row_too_large" if too_large else value, mapping, size=size, held=held, seen=seen)


def row_of(
    number: int, value: Mapping[str, Any] | str, mapping: RowMapping, *, size: int = 0, held: int = 0, seen: int = 0
) -> Row:
    """The row in `value`, or one that is unusable for the reason that `value` names."""
    usable: Mapping[str, Any] = {} if isinstance(value, str) else value
    parsed = parse_row(value, mapping)
    return Row(
        number,
        parsed,
        _group_key(parsed, usable, mapping),
        size,
        held,
        seen,
        _text(usable.get(mapping.source)) if mapping.source else None,
        tuple(_text(usable.get(name)) for name in mapping.carry),
        usable,
        tuple(rewards_of(usable, mapping, len(parsed.responses))) if mapping.reward else None,
    )


def _group_key(parsed: ParsedRow, row: Mapping[str, Any], mapping: RowMapping) -> bytes | None:
    if parsed.prompt is None:
        return None
    if not mapping.group_by:
        return prompt_key(parsed.prompt)
    values = [row.get(name) for name in mapping.group_by]
    return xxhash.xxh3_128_digest(json.dumps(values, sort_keys=True, default=str).encode())


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # a lone surrogate cannot be stored
    if value is None:
        return None
    return json.dumps(value, sort_keys=True, default=str)


def groups_of(rows: Sequence[Row]) -> list[PromptGroup]:
    """The prompts of the rows that have a usable one, each with the row's usable responses."""
    return [
        (row.parsed.prompt, [text for text in row.parsed.responses if text is not None])
        for row in rows
        if row.parsed.prompt is not None
    ]
