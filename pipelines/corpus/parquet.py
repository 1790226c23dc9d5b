"""Decodes Parquet row groups into rows, once, in batches of bounded size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.files import InputFile, RawRow, Unit, open_input
from pipelines.corpus.nested_values import needs_restoring, restore
from pipelines.corpus.unreadable import UnreadableError
from pipelines.errors import InputError, join_names
from rm.conversations import DeepNestingError, decode_bytes

_READ_BYTES = 1 << 20
_BATCH_ROWS = 16  # a dictionary may repeat one value of many megabytes in every row; larger batches are no faster
_BATCH_BYTES = 32 * 2**20  # decoded at once, unless one row is larger
_LISTS = {pa.lib.Type_LIST, pa.lib.Type_LARGE_LIST, pa.lib.Type_FIXED_SIZE_LIST, pa.lib.Type_LIST_VIEW}
_BINARY = {pa.lib.Type_BINARY, pa.lib.Type_LARGE_BINARY, pa.lib.Type_BINARY_VIEW, pa.lib.Type_FIXED_SIZE_BINARY}
_NO_VALUE = (ValueError, OverflowError, KeyError)  # bad UTF-8, out of Python's range, unknown time zone


@lru_cache(maxsize=64)
def parquet_schema(file: InputFile, *, as_planned: bool = False) -> pa.Schema:
    """The types of a Parquet file's columns."""
    with open_input(file, as_planned=as_planned) as stream:
        return pq.read_schema(stream)


def parquet_rows(
    file: InputFile,
    unit: Unit,
    mapped: list[str],
    *,
    tools: str | None,
    as_planned: bool = False,
    beside: Sequence[str] = (),
    optional: Collection[str] = (),
) -> Iterator[RawRow]:
    """Read the columns `mapped` of a row group, of which the file may lack the `optional` ones. A row with a value that is not
    UTF-8 is rejected without its neighbours. The columns `beside`, or those with these fields, are also read, but neither count
    bytes nor cause a rejection."""
    with open_input(file, as_planned=as_planned) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False)
        known = set(parquet.schema_arrow.names)
        mapped = without_missing(mapped, known, optional)
        more = {name if name in known else name.partition(".")[0] for name in beside} - {*mapped}
        read = [*mapped, *sorted(more)]
        refuse_missing(file, parquet.schema_arrow.names, read)
        refuse_doubled(file, parquet.schema_arrow.names, read)
        group = parquet.metadata.row_group(unit.number)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
        seen = 0
        for batch in parquet.iter_batches(rows, row_groups=[unit.number], columns=read):
            for values in batch_rows(batch.select(read), mapped, tools=tools):
                seen += 1
                seen_bytes = unit.input_bytes * seen // max(1, unit.end - unit.start)
                size = 0 if isinstance(values, str) else sum(size_of(values[name]) for name in mapped)
                yield RawRow(values, size, size, seen_bytes)
        if seen != unit.end - unit.start:
            raise UnreadableError(
                f"input file {file.path} is damaged: its row group {unit.number} has {seen} rows and should have "
                f"{unit.end - unit.start}; write it again, or leave it out of input.path",
                "damaged",
            )


def refuse_types(file: InputFile, mapping: RowMapping) -> None:
    """Raise `InputError` if the type of a column does not fit the column's role, so that no row could have a usable value."""
    schema = parquet_schema(file)
    roles = ("prompt", "response", "responses", "messages", "system", "input")
    columns = [(name, f"the {role}", "text or messages") for role in roles if (name := getattr(mapping, role))]
    columns += [(mapping.reward, "the reward", "numbers, or lists of numbers")] if mapping.reward else []
    for name, role, expected in columns:
        if (kind := _type_at(schema, name)) is None:
            continue  # a missing or duplicate column has its own error
        scalar = kind
        while scalar.id in _LISTS or pa.types.is_dictionary(scalar):
            scalar = scalar.value_type
        numbers = pa.types.is_integer(scalar) or pa.types.is_floating(scalar) or pa.types.is_decimal(scalar)
        others = pa.types.is_boolean(scalar) or pa.types.is_temporal(scalar)
        fits = (numbers or pa.types.is_null(scalar)) if role == "the reward" else not (numbers or others)
        if not fits:
            raise InputError(
                f"input file {file.path}: column {name!r} contains {kind}, and {role} is {expected}; name another column, or "
                "convert this one"
            )


def _type_at(schema: pa.Schema, path: str) -> pa.DataType | None:
    """The type of a column, or of a field of records; None if there is none, or more than one."""
    if len(schema.get_all_field_indices(path)) == 1:
        return schema.field(path).type
    key, _, rest = path.partition(".")
    kind = _type_at(schema, key) if rest else None
    while kind is not None and kind.id in _LISTS:
        kind = kind.value_type
    return _type_at(pa.schema(list(kind)), rest) if kind is not None and pa.types.is_struct(kind) else None


def without_missing(names: Sequence[str], known: Collection[str], optional: Collection[str]) -> list[str]:
    """The `names` without the `optional` ones that are not `known`."""
    return [name for name in names if name in known or name not in optional]


def refuse_missing(file: InputFile, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise `InputError` if a wanted column is not among the file's `names`."""
    known = set(names)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise InputError(
            f"input file {file.path} has no column {missing[0]!r} (it has {join_names(names)}); "
            "all files of input.path must have the same columns"
        )


def refuse_doubled(file: InputFile, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise `InputError` if the name of a wanted column occurs twice among the file's `names`."""
    counts = Counter(names)
    doubled = [name for name in wanted if counts[name] > 1]
    if doubled:
        raise InputError(
            f"input file {file.path} has {counts[doubled[0]]} columns named {doubled[0]!r}, and it is unclear which is "
            "meant; rename all but one of them"
        )


def batch_rows(
    batch: pa.RecordBatch, mapped: list[str], *, decoded: Sequence[str] | None = None, tools: str | None = None
) -> Iterator[RowValues | str]:
    """The rows of a batch, or the reasons why they are rejected.

    A row is rejected if a value of a mapped column is not UTF-8 (`bad_utf8`) or cannot be represented in Python, such as a date
    in the year 30000 (`bad_value`). In other columns, which scoring does not read, such values are replaced. Binary values of
    the columns `decoded`, by default the mapped ones, become text if they are UTF-8, and are otherwise unchanged. JSON is
    parsed, and objects in messages and in `tools` lose the keys that only other rows have (see `restore`).
    """
    names = mapped if decoded is None else decoded
    schema = batch.schema
    binary = [name for name in names if holds_bytes(schema.field(name).type)]
    nested = {
        name: schema.field(name).type
        for name in schema.names
        if needs_restoring(schema.field(name).type, name == tools)
    }
    for row in _batch_rows(batch, mapped):
        if isinstance(row, str) or not (binary or nested):
            yield row
            continue
        try:
            whole = {name: restore(row[name], kind, inside=name == tools) for name, kind in nested.items()}
        except ValueError as error:
            yield "deep_nesting" if isinstance(error, DeepNestingError) else "bad_json"
            continue
        yield {**row, **whole, **{name: decode_bytes(whole.get(name, row[name])) for name in binary}}


def holds_bytes(kind: pa.DataType) -> bool:
    """Return whether values of a type are bytes, or lists or records with bytes."""
    if pa.types.is_struct(kind):
        return any(holds_bytes(kind.field(at).type) for at in range(kind.num_fields))
    if kind.id in _LISTS or pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    return kind.id in _BINARY


def _batch_rows(batch: pa.RecordBatch, mapped: list[str]) -> Iterator[RowValues | str]:
    values = _rows(batch.select(mapped))
    read = set(mapped)
    others = [name for name in batch.schema.names if name not in read]
    if not others:
        yield from values
        return
    try:
        more: list[RowValues] = batch.select(others).to_pylist()
    except _NO_VALUE:
        columns = list(zip(others, batch.select(others).columns, strict=True))
        more = [{name: _lenient(column[at]) for name, column in columns} for at in range(batch.num_rows)]
    for row, other in zip(values, more, strict=True):
        yield row if isinstance(row, str) else {**other, **row}


def _lenient(scalar: pa.Scalar) -> Any:
    """A value with bad UTF-8 replaced; a date or time out of Python's range is the number in the file."""
    try:
        return scalar.as_py()
    except _NO_VALUE:
        if isinstance(scalar, pa.DictionaryScalar):
            return _lenient(scalar.value)
        if isinstance(scalar, pa.StructScalar):
            if len(set(scalar.type.names)) < scalar.type.num_fields:
                raise InputError(
                    "an input column is a struct with two fields of the same name; rename one of them"
                ) from None
            return {name: _lenient(scalar[name]) for name in scalar.type.names}
        if isinstance(scalar, pa.MapScalar):
            return [(_lenient(pair[0]), _lenient(pair[1])) for pair in scalar.values]
        if isinstance(scalar, pa.ListScalar):
            return [_lenient(value) for value in scalar.values]
        if isinstance(scalar, pa.BinaryScalar):
            return scalar.as_buffer().to_pybytes().decode(errors="replace")
        return scalar.value


def _rows(batch: pa.RecordBatch) -> list[RowValues | str]:
    values: list[RowValues | str] = []
    try:
        values += batch.to_pylist()
    except _NO_VALUE:  # one bad value must not reject its neighbours
        for position in range(batch.num_rows):
            try:
                values += batch.slice(position, 1).to_pylist()
            except UnicodeDecodeError:
                values.append("bad_utf8")
            except _NO_VALUE:
                values.append("bad_value")
    return values


def size_of(value: object) -> int:
    """The bytes of text in a value, nested values included; any other scalar counts 8."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="replace"))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return sum(size_of(item) for item in value)
    if isinstance(value, dict):
        return sum(size_of(item) for item in value.values())
    return 8
