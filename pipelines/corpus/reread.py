"""Reads single rows of a unit again after selection; only the necessary columns are read, and only wanted rows are parsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.files import InputFile, RawRow, Unit
from pipelines.corpus.fragments import Row, row_of
from pipelines.corpus.jsonl import json_lines, parse_line
from pipelines.corpus.original_columns import without_views
from pipelines.corpus.parquet import batch_rows, refuse_doubled, without_missing
from pipelines.corpus.unreadable import reading_input
from pipelines.errors import InputError
from pipelines.storage.files import open_for_reading

_BATCH_ROWS = 64  # for rows of unknown size; see parquet.py
_BATCH_BYTES = 32 * 2**20
_JOINED_ROWS = 1024
_JOINED_BYTES = 8 * 2**20

RowNumbers = npt.NDArray[np.integer[Any]]
"""Ascending numbers of rows within a unit."""

TakenBatch = tuple[int, int, pa.RecordBatch]
"""(low, high, the rows `numbers[low:high]`), where `numbers` are the requested rows."""


def read_rows(
    file: InputFile,
    unit: Unit,
    mapping: RowMapping,
    numbers: RowNumbers,
    *,
    more_columns: Sequence[str] | None,
    max_row_bytes: int,
) -> Iterator[Row]:
    """Read the rows with these ascending numbers within the unit; fewer if the unit has become shorter.

    `original` has `more_columns` besides those that scoring reads; None means all columns. Raises `InputError` for a file
    that is missing or truncated.
    """
    if not len(numbers):
        return
    rows = (
        _parquet(file, unit, mapping, numbers, more_columns)
        if file.kind == "parquet"
        else _json(file, unit, numbers, max_row_bytes)
    )
    for number, row in rows:
        yield row_of(number, RawRow(row), mapping)


def _json(
    file: InputFile, unit: Unit, numbers: RowNumbers, max_row_bytes: int
) -> Iterator[tuple[int, RowValues | str]]:
    wanted = iter(numbers.tolist())
    next_wanted = next(wanted)
    for number, line in enumerate(json_lines(file, unit, max_row_bytes=max_row_bytes)):
        if number == next_wanted:
            yield number, "row_too_large" if line is None else parse_line(line)
            following = next(wanted, None)
            if following is None:
                return
            next_wanted = following


def _parquet(
    file: InputFile,
    unit: Unit,
    mapping: RowMapping,
    numbers: RowNumbers,
    more_columns: Sequence[str] | None,
) -> Iterator[tuple[int, RowValues | str]]:
    mapped, optional = mapping.columns(), mapping.optional()
    more = None if more_columns is None else [*more_columns, *sorted(optional)]
    row_numbers = numbers.tolist()
    for low, high, batch in take_batches(file, unit, numbers, mapping.needed_columns(), more_columns=more):
        names = without_missing(mapped, batch.schema.names, optional)
        yield from zip(row_numbers[low:high], batch_rows(batch, names, tools=mapping.tools), strict=True)


def take_batches(
    file: InputFile,
    unit: Unit,
    numbers: RowNumbers,
    columns: Sequence[str],
    *,
    more_columns: Sequence[str] | None = (),
    most_rows: int = _BATCH_ROWS,
) -> Iterator[TakenBatch]:
    """Read batches (low, high, the rows `numbers[low:high]` of a row group), each of bounded size.

    `numbers` ascend and may repeat; batches end early if the row group has become shorter. `more_columns` are read if the
    file has them; None means all its columns. At most `most_rows` rows are decoded at a time. Raises `InputError` for a file that
    is missing, truncated, or now lacks one of `columns`.
    """
    with reading_input(file.path), open_for_reading(file.path) as stream:
        parquet = pq.ParquetFile(stream, pre_buffer=False)
        names = parquet.schema_arrow.names
        known = set(names)
        missing = [name for name in columns if name not in known]
        if missing:
            raise InputError(
                f"input file {file.path} has lost its column {missing[0]!r} since it was scored; restore it and run again"
            )
        extra = [name for name in (names if more_columns is None else more_columns) if name in known]
        refuse_doubled(file, names, extra)
        group = parquet.metadata.row_group(unit.number)
        size = max(1, min(most_rows, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
        wanted = list(dict.fromkeys([*columns, *extra]))
        batches = parquet.iter_batches(size, row_groups=[unit.number], columns=wanted, use_threads=False)
        yield from _join(_take(batches, numbers))


def _take(batches: Iterator[pa.RecordBatch], numbers: RowNumbers) -> Iterator[TakenBatch]:
    """Take the rows with these numbers from batches that cover the row group from row 0."""
    first = 0
    for batch in batches:
        low, high = (int(at) for at in np.searchsorted(numbers, [first, first + batch.num_rows]))
        if low < high:
            kinds = without_views(batch.schema)
            batch = batch if kinds.equals(batch.schema) else batch.cast(kinds)
            yield low, high, batch.take(pa.array(numbers[low:high] - first))
        first += batch.num_rows
        if high == len(numbers):
            return


def _join(batches: Iterator[TakenBatch]) -> Iterator[TakenBatch]:
    """Join small batches: decoding few rows at a time saves memory, and processing many at a time saves calls."""
    held: list[pa.RecordBatch] = []
    start = end = size = 0
    for low, high, batch in batches:
        start, end, size = start if held else low, high, size + batch.nbytes
        held.append(batch)
        if end - start >= _JOINED_ROWS or size >= _JOINED_BYTES:
            yield start, end, pa.concat_batches(held)
            held, size = [], 0
    if held:
        yield start, end, pa.concat_batches(held)
