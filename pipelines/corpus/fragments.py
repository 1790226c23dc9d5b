"""Units → fragments of parsed rows, streamed in bounded memory.

A fragment is a checkpoint within a unit, and has one score file. Its bounds depend only on the file and the settings, not on the
rest of the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from pipelines.corpus import original_columns
from pipelines.corpus.columns.row_mapping import ParsedRow, RowMapping, parse_row, rewards_of
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.files import InputFile, RawRow, Unit, refuse_changed
from pipelines.corpus.jsonl import json_rows
from pipelines.corpus.parquet import parquet_rows, parquet_schema
from pipelines.storage.files import is_local
from rm.conversations import TOOLS, Conversation, canonical_json, keys_of, prompt_key, unpack

TOOLS_TEXT = "tools_text"
FRAGMENT_BYTES = 64 * 2**20  # of row text; a fragment ends here even if it has fewer than `rows_per_fragment` rows

PromptGroup = tuple[Conversation, list[str]]
"""A prompt and some of its responses, as the model receives them."""


class Row(NamedTuple):
    """One input row."""

    number: int  # within its unit, from 0
    parsed: ParsedRow
    group_key: bytes | None  # 16 bytes; None if the prompt is unusable
    row_bytes: int
    held_bytes: int  # the bytes that it counts in a fragment
    seen_bytes: int  # of the unit's `input_bytes`, up to and including this row; approximate, for progress
    source: str | None
    carry: tuple[str | None, ...]
    original: RowValues  # the input columns that were read
    rewards: tuple[float | None, ...] | None = None  # from a column of the row


@dataclass(frozen=True)
class RawFragment:
    """The unparsed rows of a fragment."""

    index: int  # within its unit
    first: int  # number of its first row
    rows: list[RawRow]
    last: bool  # of its unit
    input_bytes: int  # its part of the unit's `input_bytes`; approximate, for progress

    def parse(self, mapping: RowMapping) -> Fragment:
        rows = [row_of(number, raw, mapping) for number, raw in enumerate(self.rows, start=self.first)]
        return Fragment(self.index, rows, self.last)


@dataclass(frozen=True)
class Fragment:
    """Consecutive rows of one unit."""

    index: int  # within its unit
    rows: list[Row]
    last: bool  # of its unit

    def message_keys(self) -> list[str]:
        """The keys in conversations besides roles and texts, sorted; with `tools_text` if tools are JSON text."""
        keys: set[str] = set()
        for row in self.rows:
            prompt = row.parsed.prompt
            if prompt is not None:
                keys |= keys_of(prompt).union(*(keys_of((), text) for text in row.parsed.responses if text is not None))
                if TOOLS in keys and prompt[0][0] == TOOLS and isinstance(unpack(prompt[0][1]), str):
                    keys.add(TOOLS_TEXT)
        return sorted(keys)

    def content_hash(self) -> str:
        """The xxh3-128 hash of all that a score file derives from the rows, in order; it shows whether an input has changed.

        It covers canonical prompts and responses, reasons, group keys, sources, carried columns and rewards from a column.
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


def read_fragments(file: InputFile, unit: Unit, mapping: RowMapping, **settings: Any) -> Iterator[Fragment]:
    """Stream a unit as fragments; `settings` are those of `read_raw_fragments`."""
    return (raw.parse(mapping) for raw in read_raw_fragments(file, unit, mapping, **settings))


def read_raw_fragments(
    file: InputFile,
    unit: Unit,
    mapping: RowMapping,
    *,
    rows_per_fragment: int,
    max_row_bytes: int,
    as_planned: bool = False,
    beside: Sequence[str] = (),
) -> Iterator[RawFragment]:
    """Stream a unit as fragments, decoding every row group once; an empty unit is one empty fragment. The columns `beside` are
    also read, but affect neither the bounds of fragments nor which rows are rejected.

    Raises `InputError` for a file that is missing, truncated, or lacks a mapped column. With `as_planned`, it is also raised if
    the file has changed since the plan (see `files.open_input`), before the first fragment that may come from the new content.
    """
    rows: list[RawRow] = []
    index = first = size = seen = 0
    may_change = as_planned and file.copy is None and is_local(file.path)  # while it is open
    raw_rows = read_raw_rows(
        file,
        unit,
        mapping.columns(),
        tools=mapping.tools,
        max_row_bytes=max_row_bytes,
        as_planned=as_planned,
        beside=beside,
        optional=mapping.optional(),
    )
    for raw in raw_rows:
        if len(rows) == rows_per_fragment or size >= FRAGMENT_BYTES:
            if may_change:
                refuse_changed(file)
            done = rows[-1].seen_bytes
            yield RawFragment(index, first, rows, last=False, input_bytes=done - seen)
            rows, index, first, size, seen = [], index + 1, first + len(rows), 0, done
        rows.append(raw)
        size += raw.held_bytes
    yield RawFragment(index, first, rows, last=True, input_bytes=unit.input_bytes - seen)


def original_schema(file: InputFile, fragment: Fragment) -> pa.Schema:
    """The types of the input's own columns: those of a planned Parquet file, or inferred from the fragment's JSON rows."""
    if file.kind == "parquet":
        return parquet_schema(file, as_planned=True)
    return original_columns.infer([row.original for row in fragment.rows])


def read_raw_rows(
    file: InputFile,
    unit: Unit,
    columns: list[str],
    *,
    tools: str | None,
    max_row_bytes: int,
    as_planned: bool = False,
    beside: Sequence[str] = (),
    optional: Collection[str] = (),
) -> Iterator[RawRow]:
    """Read the rows of a unit; from Parquet only `columns`, of which the `optional` ones may be missing. A row that is too large
    has that reason in place of values."""
    rows = (
        parquet_rows(file, unit, columns, tools=tools, as_planned=as_planned, beside=beside, optional=optional)
        if file.kind == "parquet"
        else json_rows(file, unit, max_row_bytes=max_row_bytes, as_planned=as_planned)
    )
    for raw in rows:
        too_large = not isinstance(raw.values, str) and raw.row_bytes > max_row_bytes
        yield raw._replace(values="row_too_large") if too_large else raw


def row_of(number: int, raw: RawRow, mapping: RowMapping) -> Row:
    """The parsed row with this number in its unit; an unreadable row is rejected."""
    original: RowValues = {} if isinstance(raw.values, str) else raw.values
    usable = mapping.with_paths(original)
    parsed = parse_row(raw.values, mapping)
    return Row(
        number,
        parsed,
        _group_key(parsed, usable, mapping),
        raw.row_bytes,
        raw.held_bytes,
        raw.seen_bytes,
        _text(usable.get(mapping.source)) if mapping.source else None,
        tuple(_text(usable.get(name)) for name in mapping.carry),
        original,
        tuple(rewards_of(usable, mapping, len(parsed.responses), parsed.order)) if mapping.reward else None,
    )


def _group_key(parsed: ParsedRow, row: RowValues, mapping: RowMapping) -> bytes | None:
    if parsed.prompt is None:
        return None
    if not mapping.group_by:
        return prompt_key(parsed.prompt)
    values = [row.get(name) for name in mapping.group_by]
    return xxhash.xxh3_128_digest(json.dumps(values, sort_keys=True, default=str).encode())


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # a lone surrogate cannot be stored
    if value is None:
        return None
    return json.dumps(value, sort_keys=True, default=str)


def groups_of(rows: Sequence[Row]) -> list[PromptGroup]:
    """The usable prompts of the rows, each with the row's usable responses."""
    return [
        (row.parsed.prompt, [text for text in row.parsed.responses if text is not None])
        for row in rows
        if row.parsed.prompt is not None
    ]
