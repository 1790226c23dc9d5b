"""The columns of a file and its first rows, for detection. Reads a bounded part of a file of any size."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.files import InputFile, Unit
from pipelines.corpus.jsonl import json_rows
from pipelines.corpus.parquet import batch_rows, holds_bytes, parquet_schema
from pipelines.corpus.unreadable import reading_input
from pipelines.errors import InputError
from pipelines.storage.decompress import decompress
from pipelines.storage.files import open_for_reading

_JSON_ROWS = 100
_PARQUET_ROWS = 16
_PEEK_BYTES = 1024
_SMALL_BYTES = 64 * 2**10  # binary values that are larger on average are images or audio
_FEW_NUMBERS = 2**10  # bytes; longer lists of numbers are embeddings
_HELD_BYTES = 32 * 2**20  # of rows kept; column names are also collected from later rows


def column_names(file: InputFile, *, max_row_bytes: int) -> list[str]:
    """The columns of a file: those of its Parquet footer, or the keys of its first usable JSON lines."""
    if file.kind == "parquet":
        return list(parquet_schema(file).names)
    return read_first_rows(file, max_row_bytes=max_row_bytes)[0]


def read_first_rows(file: InputFile, *, max_row_bytes: int) -> tuple[list[str], list[RowValues]]:
    """Read (columns, the first usable rows). Raises `UnreadableError`.

    Rows of a Parquet file have only the columns with text, numbers, and lists or records of these, and binary columns with small
    values, which may be text.
    """
    if file.kind == "parquet":
        names = list(parquet_schema(file).names)
        return names, _parquet_rows(file)
    names_seen: dict[str, None] = {}
    rows: list[RowValues] = []
    usable = held_bytes = 0
    unit = Unit(0, 0, file.size, file.size)
    for position, row in enumerate(json_rows(file, unit, max_row_bytes=max_row_bytes)):
        if position == 0 and row.values in ("bad_json", "not_an_object") and (problem := no_lines(file, array=True)):
            raise InputError(f"input file {file.path} cannot be read: {problem}")
        if not isinstance(row.values, str):
            names_seen.update(dict.fromkeys(row.values))
            usable, held_bytes = usable + 1, held_bytes + row.held_bytes
            rows += [row.values] if held_bytes <= _HELD_BYTES else []
        if usable == _JSON_ROWS or position >= 100 * _JSON_ROWS:
            break
    return list(names_seen), rows


def first_reason(file: InputFile, *, max_row_bytes: int) -> str | None:
    """The reason why the first row of a JSON file cannot be read; None if it can, or if there is no row."""
    rows = (
        json_rows(file, Unit(0, 0, file.size, file.size), max_row_bytes=max_row_bytes)
        if file.kind == "jsonl"
        else iter(())
    )
    values = next((row.values for row in rows), None)
    return values if isinstance(values, str) else None


def no_lines(file: InputFile, *, array: bool = False) -> str | None:
    """The layout of a JSON file that does not have one object per line, with the remedy; None for any other file. With `array`,
    only arrays are reported, since their last line may look like a row."""
    if file.kind != "jsonl" or file.size == 0 or file.layout is not None:
        return None
    with reading_input(file.path), open_for_reading(file.path) as stream:
        chunks = iter([stream.read(_PEEK_BYTES)]) if file.compression is None else decompress(stream, file.compression)
        start = next(chunks, b"").lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith(b"["):
        return (
            "it is a JSON array, not one object per line; name it .json, or convert it: jq -c '.[]' FILE > FILE.jsonl"
        )
    if start.startswith(b"{") and not array:
        return "its JSON objects span several lines; write one per line: jq -c . FILE > FILE.jsonl"
    return None


def readable_columns(parquet: pq.ParquetFile, *, numbers: bool = False) -> list[str]:
    """The columns with unique names that contain text, numbers, small binary values, or lists or records of these; with
    `numbers`, also short lists of numbers, such as grades of responses."""
    schema = parquet.schema_arrow
    counts = Counter(schema.names)
    kinds = {field.name: field.type for field in schema if counts[field.name] == 1}
    mean_bytes = _mean_bytes(parquet.metadata) if numbers or any(map(holds_bytes, kinds.values())) else {}
    return [
        name
        for name, kind in kinds.items()
        if (_readable(kind) and not (holds_bytes(kind) and mean_bytes.get(name, 0.0) > _SMALL_BYTES))
        or (
            numbers
            and _is_list(kind)
            and mean_bytes.get(name, 0.0) <= _FEW_NUMBERS
            and pa.types.is_primitive(kind.value_type)
        )
    ]


def _mean_bytes(metadata: pq.FileMetaData) -> dict[str, float]:
    """The mean size of each column's values in the first row group that has rows."""
    sizes: dict[str, float] = {}
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    group = next((group for group in groups if group.num_rows), None)
    if group is None:
        return sizes
    for number in range(group.num_columns):
        chunk = group.column(number)
        parts = chunk.path_in_schema.split(".")
        for count in range(1, len(parts) + 1):  # a name may contain dots
            name = ".".join(parts[:count])
            sizes[name] = sizes.get(name, 0.0) + chunk.total_uncompressed_size / group.num_rows
    return sizes


def _parquet_rows(file: InputFile) -> list[RowValues]:
    with reading_input(file.path), open_for_reading(file.path) as stream:
        parquet = pq.ParquetFile(stream, pre_buffer=False)
        readable = readable_columns(parquet)
        groups = (n for n in range(parquet.metadata.num_row_groups) if parquet.metadata.row_group(n).num_rows)
        group = next(groups, None)
        if group is None or not readable:
            return []
        batch = next(parquet.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=readable, use_threads=False))
        return [
            values
            for values in batch_rows(batch.select(readable), readable, tools="tools")
            if not isinstance(values, str)
        ]


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _readable(kind: pa.DataType) -> bool:
    """Return whether values of this type may show the role of a column; embeddings do not."""
    if _is_list(kind):
        return not pa.types.is_primitive(kind.value_type) and _readable(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_readable(kind.field(at).type) for at in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return _readable(kind.value_type)
    if isinstance(kind, pa.JsonType):
        return True
    types = pa.types
    tests = (types.is_null, types.is_primitive, types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in tests) or holds_bytes(kind)
