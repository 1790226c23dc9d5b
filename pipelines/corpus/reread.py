"""Single rows of a unit, read again after selection: only row groups and columns that are needed, only wanted rows parsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.files import InputFile, Unit
from pipelines.corpus.fragments import Row, row_of
from pipelines.corpus.jsonl import json_lines, parse_line
from pipelines.corpus.parquet import batch_rows, refuse_doubled
from pipelines.corpus.unreadable import reading_input
from pipelines.errors import InputError
from pipelines.storage.files import open_for_reading

_BATCH_ROWS = 64  # where nothing is known of their sizes; see parquet.py
_BATCH_BYTES = 32 * 2**20
_JOINED_ROWS = 1024
_JOINED_BYTES = 8 * 2**20


def read_rows(
    file: InputFile,
    unit: Unit,
    mapping: RowMapping,
    numbers: npt.NDArray[np.integer[Any]],
    *,
    more_columns: Sequence[str] | None,
    max_row_bytes: int,
) -> Iterator[Row]:
    """The rows with these ascending numbers within the unit; fewer where it has fewer by now.

    `more_columns` are kept in `original` beside those that scoring reads; None means all columns. Raises `InputError` for a
    file that is gone or cut.
    """
    if not len(numbers):
        return
    values = (
        _parquet(file, unit, mapping, numbers, more_columns)
        if file.kind == "parquet"
        else _json(file, unit, numbers, max_row_bytes)
    )
    for number, value in values:
        yield row_of(number, value, mapping)


def _json(
    file: InputFile, unit: Unit, numbers: npt.NDArray[np.integer[Any]], max_row_bytes: int
) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
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
    numbers: npt.NDArray[np.integer[Any]],
    more_columns: Sequence[str] | None,
) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    mapped = mapping.columns()
    names = numbers.tolist()
    for low, high, batch in take_batches(file, unit, numbers, mapped, more_columns=more_columns):
        yield from zip(names[low:high], batch_rows(batch, mapped), strict=True)


def take_batches(
    file: InputFile,
    unit: Unit,
    numbers: npt.NDArray[np.integer[Any]],
    columns: Sequence[str],
    *,
    more_columns: Sequence[str] | None = (),
    most_rows: int = _BATCH_ROWS,
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """(low, high, the rows `numbers[low:high]` of a row group), for ascending numbers, which may repeat, in batches of bounded
    size; fewer where it has fewer rows by now. `more_columns` come along where the file has them; None means all that it has.
    At most `most_rows` rows are decoded at a time.

    Raises `InputError` for a file that is gone, cut, or lacks one of `columns` by now.
    """
    with reading_input(file.path), open_for_reading(file.path) as stream:
        parquet = pq.ParquetFile(stream, pre_buffer=False)
        there = parquet.schema_arrow.names
        missing = [name for name in columns if name not in there]
        if missing:
            raise InputError(
                f"input file {file.path} has lost its column {missing[0]!r} since it was scored; restore it and run again"
            )
        extra = [name for name in (there if more_columns is None else more_columns) if name in there]
        refuse_doubled(file, there, extra)
        group = parquet.metadata.row_group(unit.number)
        size = max(1, min(most_rows, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
        wanted = list(dict.fromkeys([*columns, *extra]))
        taken = _taken(parquet.iter_batches(size, row_groups=[unit.number], columns=wanted, use_threads=False), numbers)
        yield from _joined(taken)


def _taken(
    batches: Iterator[pa.RecordBatch], numbers: npt.NDArray[np.integer[Any]]
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    first = 0
    for batch in batches:
        low, high = (int(at) for at in np.searchsorted(numbers, [first, first + batch.num_rows]))
        if low < high:
            yield low, high, batch.take(pa.array(numbers[low:high] - first))
        first += batch.num_rows
        if high == len(numbers):
            return


def _joined(
    taken: Iterator[tuple[int, int, pa.RecordBatch]],
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """The same rows in fewer batches: what is decoded at a time must be small, what is worked on at a time must not."""
    held: list[pa.RecordBatch] = []
    start = end = size = 0
    for low, high, batch in taken:
        start, end, size = start if held else low, high, size + batch.nbytes
        held.append(batch)
        if end - start >= _JOINED_ROWS or size >= _JOINED_BYTES:
            yield start, end, pa.concat_batches(held)
            held, size = [], 0
    if held:
        yield start, end, pa.concat_batches(held)


__all__ = ["read_rows", "take_batches"]
