"""Parquet row groups → rows, decoded once, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.inputs.files import InputFile, RawRow, Unit
from pipelines.schemas import RowMapping
from pipelines.storage.files import open_for_reading, reading

_READ_BYTES = 1 << 20
_BATCH_ROWS = 512
_BATCH_BYTES = 32 * 2**20  # decoded at once, unless one row is larger


@lru_cache(maxsize=64)
def parquet_schema(file: InputFile) -> pa.Schema:
    """The types of the file's own columns."""
    with reading(file.path), open_for_reading(file.path) as stream:
        return pq.read_schema(stream)


def parquet_rows(file: InputFile, unit: Unit, mapping: RowMapping) -> Iterator[RawRow]:
    """The mapped columns of a row group's rows. A value that is not UTF-8 spoils its own row only."""
    with reading(file.path), open_for_reading(file.path) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False)
        missing = [name for name in mapping.columns() if name not in parquet.schema_arrow.names]
        if missing:
            raise InputError(
                f"input file {file.path} has no column {missing[0]!r} (it has {', '.join(parquet.schema_arrow.names)}); "
                "all files of input.path must have the same columns"
            )
        mapped = mapping.columns()
        group = parquet.metadata.row_group(unit.number)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
        seen = 0
        for batch in parquet.iter_batches(rows, row_groups=[unit.number], columns=mapped):
            for value in batch_rows(batch.select(mapped), mapped):
                seen += 1
                share = unit.input_bytes * seen // max(1, unit.end - unit.start)
                yield value, 0 if isinstance(value, str) else sum(map(_size, value.values())), share


def batch_rows(batch: pa.RecordBatch, mapped: list[str]) -> Iterator[Mapping[str, Any] | str]:
    """Rows of a batch; bad UTF-8 in a mapped column makes a row its reason, in other columns it is replaced: not ours to
    judge."""
    values = _rows(batch.select(mapped))
    others = [name for name in batch.schema.names if name not in mapped]
    if not others:
        yield from values
        return
    try:
        more: list[Mapping[str, Any]] = batch.select(others).to_pylist()
    except UnicodeDecodeError:
        more = [{name: _lenient(batch[name][at]) for name in others} for at in range(batch.num_rows)]
    for value, other in zip(values, more, strict=True):
        yield value if isinstance(value, str) else {**other, **value}


def _lenient(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode(errors="replace")


def _rows(batch: pa.RecordBatch) -> list[Mapping[str, Any] | str]:
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
