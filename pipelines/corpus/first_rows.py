"""The columns of a file and its first rows: what detection looks at. A bounded part is read, whatever the file's size."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.files import InputFile, Unit
from pipelines.corpus.jsonl import json_rows
from pipelines.corpus.parquet import batch_rows, parquet_schema
from pipelines.corpus.unreadable import reading_input
from pipelines.errors import InputError
from pipelines.storage.decompress import decompressed
from pipelines.storage.files import open_for_reading

_JSON_ROWS = 100
_PARQUET_ROWS = 16
_PEEK_BYTES = 1024
_HELD_BYTES = 32 * 2**20  # of rows; columns go on being collected


def column_names(file: InputFile, *, max_row_bytes: int) -> list[str]:
    """The columns of a file: from its Parquet footer, or the keys of its first usable JSON lines."""
    if file.kind == "parquet":
        return list(parquet_schema(file).names)
    return read_first_rows(file, max_row_bytes=max_row_bytes)[0]


def read_first_rows(file: InputFile, *, max_row_bytes: int) -> tuple[list[str], list[dict[str, Any]]]:
    """(columns, the first usable rows). Raises `UnreadableError`.

    Of a Parquet file, rows hold the columns with text, numbers, and lists or records of them; no binary ones.
    """
    if file.kind == "parquet":
        names = list(parquet_schema(file).names)
        return names, _parquet_rows(file)
    names_seen: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    usable = held = 0
    unit = Unit(0, 0, file.size, file.size)
    for position, (value, _, size, _) in enumerate(json_rows(file, unit, max_row_bytes=max_row_bytes)):
        if position == 0 and value in ("bad_json", "not_an_object") and (array := no_lines(file, array=True)):
            raise InputError(f"input file {file.path} cannot be read: {array}")
        if isinstance(value, dict):
            names_seen.update(dict.fromkeys(value))
            usable, held = usable + 1, held + size
            rows += [value] if held <= _HELD_BYTES else []
        if usable == _JSON_ROWS or position >= 100 * _JSON_ROWS:
            break
    return list(names_seen), rows


def no_lines(file: InputFile, *, array: bool = False) -> str | None:
    """What a JSON file without a usable line is instead, with the remedy; None for anything else. With `array`, arrays only:
    their last line may pass for a row."""
    if file.kind != "jsonl" or file.size == 0:
        return None
    with reading_input(file.path), open_for_reading(file.path) as stream:
        chunks = (
            iter([stream.read(_PEEK_BYTES)]) if file.compression is None else decompressed(stream, file.compression)
        )
        start = next(chunks, b"").lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith(b"["):
        return "it is a JSON array, and not one object a line; write it so: jq -c '.[]' FILE > FILE.jsonl"
    if start.startswith(b"{") and not array:
        return "its JSON objects go over several lines; write one a line: jq -c . FILE > FILE.jsonl"
    return None


def readable_columns(schema: pa.Schema) -> list[str]:
    """Columns with text, numbers, and lists or records of them, whose name stands for one column."""
    return [name for name in schema.names if schema.names.count(name) == 1 and _readable(schema.field(name).type)]


def _parquet_rows(file: InputFile) -> list[dict[str, Any]]:
    with reading_input(file.path), open_for_reading(file.path) as stream:
        parquet = pq.ParquetFile(stream, pre_buffer=False)
        readable = readable_columns(parquet.schema_arrow)
        groups = (n for n in range(parquet.metadata.num_row_groups) if parquet.metadata.row_group(n).num_rows)
        group = next(groups, None)
        if group is None or not readable:
            return []
        batch = next(parquet.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=readable, use_threads=False))
        return [dict(value) for value in batch_rows(batch.select(readable), readable) if not isinstance(value, str)]


def _readable(kind: pa.DataType) -> bool:
    """Whether values of this type may be text, or say that a column is none; embeddings and images are not worth reading."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return not pa.types.is_primitive(kind.value_type) and _readable(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_readable(kind.field(at).type) for at in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return _readable(kind.value_type)
    types = pa.types
    tests = (types.is_null, types.is_primitive, types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in tests)
