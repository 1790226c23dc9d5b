"""Input files → units → fragments of rows, streamed in bounded memory.

A unit is what one worker streams once: a Parquet row group, a byte range of plain JSONL, or one compressed JSONL file.
A fragment is the checkpoint inside it. Neither depends on anything but the file and the settings, so that a grown corpus
keeps the boundaries of its old files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines import originals
from pipelines.errors import InputError
from pipelines.schemas import RowMapping, Sample, read_row
from pipelines.storage.decompress import decompressed
from pipelines.storage.files import open_for_reading, reading
from rm.conversations import canonical_json, prompt_key

RANGE_BYTES = 64 * 2**20  # of plain JSONL per unit
FRAGMENT_BYTES = 64 * 2**20  # of row text per fragment, beside rows_per_fragment
_READ_BYTES = 1 << 20
_PARQUET_BATCH_ROWS = 512


class InputFile(NamedTuple):
    """One file of the frozen plan."""

    path: str  # full path or URL
    key: str  # path relative to the input's fixed root; what names and order derive from
    kind: str  # parquet | jsonl
    compression: str | None  # gz | zst
    size: int  # bytes
    version: str  # etag, generation or mtime


class Unit(NamedTuple):
    """What one worker streams once."""

    number: int  # within its file
    start: int  # Parquet: first row of the row group in its file; JSONL: first byte of the range
    end: int  # one past the last
    input_bytes: int  # of the stored file; for progress


class Row(NamedTuple):
    """One input row."""

    number: int  # within its unit, from 0
    sample: Sample
    group_key: bytes | None  # 16 bytes; None where the prompt is unusable
    row_bytes: int
    seen_bytes: int  # of the unit's `input_bytes`, this row included; approximate, for progress
    source: str | None
    carry: tuple[str | None, ...]
    original: Mapping[str, Any]


@dataclass(frozen=True)
class Fragment:
    """Consecutive rows of one unit: one score file."""

    index: int  # within its unit
    rows: list[Row]
    last: bool  # of its unit

    def content_hash(self) -> str:
        """xxh3-128 over the canonical prompts and responses, in order: whether an input still is what was scored."""
        digest = xxhash.xxh3_128()
        for row in self.rows:
            sample = row.sample
            digest.update(b"" if sample.prompt is None else canonical_json(sample.prompt))
            for response, reason in zip(sample.responses, sample.reasons, strict=True):
                digest.update(b"\0" + (response.encode() if response is not None else b"\1" + (reason or "").encode()))
            digest.update(b"\n")
        return digest.hexdigest()


_Raw = tuple[Mapping[str, Any] | str, int, int]  # row (or reason), its bytes, bytes of the unit seen so far


def kind_of(path: str) -> tuple[str, str | None] | None:
    """(kind, compression) by file name; None for a kind that cannot be read."""
    name, compression = path.lower(), None
    for suffix, label in ((".gz", "gz"), (".zst", "zst"), (".zstd", "zst")):
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), label
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "jsonl", compression
    if name.endswith((".parquet", ".pq")) and compression is None:
        return "parquet", None
    return None


def split_units(file: InputFile) -> list[Unit]:
    """The units of a file, in order; opens a Parquet footer, nothing else. Raises `InputError`."""
    if file.kind == "parquet":
        with reading(file.path), open_for_reading(file.path) as stream:
            metadata = pq.ParquetFile(stream).metadata
            units, first = [], 0
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                share = file.size * group.num_rows // max(1, metadata.num_rows)
                units.append(Unit(number, first, first + group.num_rows, share))
                first += group.num_rows
            return units
    if file.compression is not None:
        return [Unit(0, 0, file.size, file.size)]
    starts = range(0, file.size, RANGE_BYTES)
    return [
        Unit(number, start, min(start + RANGE_BYTES, file.size), min(RANGE_BYTES, file.size - start))
        for number, start in enumerate(starts)
    ]


def seekable(file: InputFile) -> bool:
    """Whether a unit of this file can be reached without streaming what lies before it."""
    return file.compression is None


def column_names(file: InputFile, *, max_row_bytes: int) -> list[str]:
    """The columns of a file: from its Parquet footer, or the keys of its first ten usable JSON lines."""
    if file.kind == "parquet":
        with reading(file.path), open_for_reading(file.path) as stream:
            return list(pq.read_schema(stream).names)
    names: dict[str, None] = {}
    unit = Unit(0, 0, file.size, file.size)
    for position, (value, *_) in enumerate(_json_rows(file, unit, max_row_bytes)):
        if isinstance(value, dict):
            names.update(dict.fromkeys(value))
        if position >= 9:
            break
    return list(names)


def read_fragments(
    file: InputFile,
    unit: Unit,
    mapping: RowMapping,
    *,
    rows_per_fragment: int,
    max_row_bytes: int,
    all_columns: bool = False,
) -> Iterator[Fragment]:
    """Stream a unit as fragments; an empty unit is one empty fragment. Every row group is decoded once.

    With `all_columns` the rows keep all their columns in `original`, else only what scoring reads.
    Raises `InputError` for a file that is gone, cut, or lacks a mapped column.
    """
    rows: list[Row] = []
    index = size = 0
    for row in _rows(file, unit, mapping, max_row_bytes, all_columns):
        if len(rows) == rows_per_fragment or size >= FRAGMENT_BYTES:
            yield Fragment(index, rows, last=False)
            rows, index, size = [], index + 1, 0
        rows.append(row)
        size += row.row_bytes
    yield Fragment(index, rows, last=True)


def original_schema(file: InputFile, fragment: Fragment) -> pa.Schema:
    """The types of the input's own columns: a Parquet file's, or what the fragment's JSON rows show."""
    if file.kind == "parquet":
        return _parquet_schema(file)
    return originals.infer([row.original for row in fragment.rows])


@lru_cache(maxsize=64)
def _parquet_schema(file: InputFile) -> pa.Schema:
    with reading(file.path), open_for_reading(file.path) as stream:
        return pq.read_schema(stream)


def _rows(file: InputFile, unit: Unit, mapping: RowMapping, max_row_bytes: int, all_columns: bool) -> Iterator[Row]:
    source = (
        _parquet_rows(file, unit, mapping, all_columns)
        if file.kind == "parquet"
        else _json_rows(file, unit, max_row_bytes)
    )
    for number, (value, size, seen) in enumerate(source):
        if isinstance(value, str):
            sample = Sample(None, [None], [value])
        elif size > max_row_bytes:
            sample = Sample(None, [None], ["row_too_large"])
        else:
            sample = read_row(value, mapping)
        usable: Mapping[str, Any] = {} if isinstance(value, str) else value
        yield Row(
            number,
            sample,
            _group_key(sample, usable, mapping),
            size,
            seen,
            _text(usable.get(mapping.source)) if mapping.source else None,
            tuple(_text(usable.get(name)) for name in mapping.carry),
            usable,
        )


def _group_key(sample: Sample, row: Mapping[str, Any], mapping: RowMapping) -> bytes | None:
    if sample.prompt is None:
        return None
    if not mapping.group_by:
        return prompt_key(sample.prompt)
    values = [row.get(name) for name in mapping.group_by]
    return xxhash.xxh3_128_digest(json.dumps(values, sort_keys=True, default=str).encode())


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def _parquet_rows(file: InputFile, unit: Unit, mapping: RowMapping, all_columns: bool) -> Iterator[_Raw]:
    with reading(file.path), open_for_reading(file.path) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False)
        missing = [name for name in mapping.columns() if name not in parquet.schema_arrow.names]
        if missing:
            raise InputError(
                f"input file {file.path} has no column {missing[0]!r} (it has {', '.join(parquet.schema_arrow.names)}); "
                "all files of input.path must have the same columns"
            )
        columns = None if all_columns else mapping.columns()
        seen = 0
        for batch in parquet.iter_batches(_PARQUET_BATCH_ROWS, row_groups=[unit.number], columns=columns):
            for value in _batch_rows(batch):
                seen += 1
                share = unit.input_bytes * seen // max(1, unit.end - unit.start)
                yield value, 0 if isinstance(value, str) else sum(map(_size, value.values())), share


def _batch_rows(batch: pa.RecordBatch) -> list[Mapping[str, Any] | str]:
    values: list[Mapping[str, Any] | str] = []
    try:
        values += batch.to_pylist()
    except UnicodeDecodeError:  # one bad value must not take its neighbours along
        for position in range(batch.num_rows):
            try:
                values += batch.slice(position, 1).to_pylist()
            except UnicodeDecodeError:
                values.append("bad_utf8")
    return values


def _size(value: Any) -> int:
    """Bytes of text in a value, nested ones included; other scalars count 8."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="replace"))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return sum(_size(item) for item in value)
    if isinstance(value, dict):
        return sum(_size(item) for item in value.values())
    return 8


def _json_rows(file: InputFile, unit: Unit, max_row_bytes: int) -> Iterator[_Raw]:
    """(row, its bytes) per line; a line that is no JSON object comes as its reason."""
    with reading(file.path), open_for_reading(file.path) as stream:
        for line, size in _lines(stream, file, unit, max_row_bytes):
            if line is None:
                yield "row_too_large", size, stream.tell() - unit.start
            elif line.strip():
                yield _parse(line), size, stream.tell() - unit.start


def _parse(line: bytes) -> Mapping[str, Any] | str:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return "bad_utf8"
    except ValueError:
        return "bad_json"
    except RecursionError:
        return "deep_nesting"
    return value if isinstance(value, dict) else "not_an_object"


def _lines(stream: BinaryIO, file: InputFile, unit: Unit, limit: int) -> Iterator[tuple[bytes | None, int]]:
    """(line or None where it is longer than `limit`, its bytes), for lines whose first byte lies in the unit."""
    if file.compression is not None:
        chunks = decompressed(stream, file.compression)
        position, end = 0, None
    else:
        position, end = unit.start, unit.end
        if position > 0:  # a line that starts exactly here follows a newline at position - 1
            position -= 1
        stream.seek(position)
        chunks = iter(lambda: stream.read(_READ_BYTES), b"")
    skipping = position != unit.start
    parts: list[bytes] = []
    size = 0
    line_start = position
    for chunk in chunks:
        begin = 0
        while (newline := chunk.find(b"\n", begin)) >= 0:
            if not skipping:
                size += newline - begin
                parts.append(chunk[begin:newline])
                yield (b"".join(parts) if size <= limit else None), size
            skipping, parts, size = False, [], 0
            begin = newline + 1
            line_start = position + begin
            if end is not None and line_start >= end:
                return
        rest = len(chunk) - begin
        if not skipping:
            size += rest
            if size <= limit:
                parts.append(chunk[begin:])
            else:
                parts = []
        position += len(chunk)
    if size and not skipping:
        yield (b"".join(parts) if size <= limit else None), size
