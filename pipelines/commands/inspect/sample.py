"""A bounded sample of the input files: the first rows, rows from places spread over the rest, and the number of all rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from pipelines.corpus.files import InputFile, Unit, place_of, split_units
from pipelines.corpus.first_rows import readable_columns
from pipelines.corpus.jsonl import json_lines, json_rows, row_lines
from pipelines.corpus.parquet import batch_rows, refuse_doubled, refuse_missing, size_of
from pipelines.corpus.unreadable import reading_input
from pipelines.storage.files import open_for_reading

FIRST_ROWS = 2000
SPREAD = 8  # places after the first rows
ROWS_A_PLACE = 250
COUNTED_BYTES = 64 * 2**20  # of JSON lines, as stored; in larger inputs, rows are estimated
_PART_BYTES = 2**20
_OPENED_AT_ONCE = 8
_BATCH_ROWS = 16

FileUnit = tuple[InputFile, Unit]


class SampledRow(NamedTuple):
    """One row, or the reason why it cannot be read."""

    file: InputFile
    place: str  # in words
    value: Mapping[str, Any] | str


class SampledRows(NamedTuple):
    """The rows of the sample."""

    rows: list[SampledRow]
    whole: bool  # True if these are all rows of the files
    places: int  # after the first rows


class RowCount(NamedTuple):
    """The number of rows, exact or estimated."""

    rows: int
    exact: bool


def all_units(files: Sequence[InputFile]) -> list[FileUnit]:
    """Return the units of all files, in order; opens the footers of Parquet files. Raises `InputError`."""
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        return [(file, unit) for file, units in zip(files, pool.map(split_units, files), strict=True) for unit in units]


def sample_rows(units: Sequence[FileUnit], mapped: Sequence[str], *, max_row_bytes: int) -> SampledRows:
    """Return the first rows in order, and some from places spread evenly over the bytes that follow.

    An unreadable value replaces its row by the reason only in the columns `mapped`. Raises `InputError`, also for a Parquet file
    that lacks one of these columns.
    """
    rows: list[SampledRow] = []
    for at, (file, unit) in enumerate(units):
        for row, seen in _rows(file, unit, mapped, max_row_bytes):
            if len(rows) == FIRST_ROWS:
                begun = unit._replace(start=unit.start + seen, input_bytes=unit.input_bytes - seen)
                rest = [(file, begun)] if _is_divisible(file) and begun.input_bytes > 0 else []
                places = spread([*rest, *units[at + 1 :]])
                for piece in places:
                    rows += [row for row, _ in islice(_rows(*piece, mapped, max_row_bytes), ROWS_A_PLACE)]
                return SampledRows(rows, False, len(places))
            rows.append(row)
    return SampledRows(rows, True, 0)


def spread(units: Sequence[FileUnit]) -> list[FileUnit]:
    """Return parts of `units` that begin at the middles of `SPREAD` equal shares of their bytes; no two overlap.

    A row group or a compressed file can be read only from its beginning, and occurs only once.
    """
    total = sum(unit.input_bytes for _, unit in units)
    targets = [total * (2 * n + 1) // (2 * SPREAD) for n in range(SPREAD)]
    parts: list[FileUnit] = []
    first = 0
    for file, unit in units:
        inside = [target - first for target in targets if first <= target < first + unit.input_bytes]
        first += unit.input_bytes
        if not _is_divisible(file):
            parts += [(file, unit)] if inside else []
            continue
        ends = [*(unit.start + offset for offset in inside[1:]), unit.end]
        parts += [
            (file, Unit(unit.number, unit.start + offset, end, 0)) for offset, end in zip(inside, ends, strict=False)
        ]
    return parts


def count_rows(units: Sequence[FileUnit], *, max_row_bytes: int) -> RowCount:
    """Count the rows of all units: for Parquet from footers; for JSON lines fully up to `COUNTED_BYTES`, else in some parts."""
    if all(file.kind == "parquet" for file, _ in units):
        return RowCount(sum(unit.end - unit.start for _, unit in units), exact=True)
    total = sum(unit.input_bytes for _, unit in units)
    if total <= COUNTED_BYTES:
        lines = (1 for file, unit in units for _ in json_lines(file, unit, max_row_bytes=max_row_bytes))
        return RowCount(sum(lines), exact=True)
    parts = [_lines_in_part(file, unit, max_row_bytes) for file, unit in spread(units)]
    lines_seen, seen = (sum(part[n] for part in parts) for n in range(2))
    return RowCount(round(total * lines_seen / max(1, seen)), exact=False)


def _lines_in_part(file: InputFile, unit: Unit, max_row_bytes: int) -> tuple[int, int]:
    """Return (rows or line ends, stored bytes) of the beginning of a unit."""
    if file.compression is not None:
        rows = read = 0
        for _, _, seen in row_lines(file, unit, max_row_bytes=max_row_bytes):
            rows, read = rows + 1, seen
            if seen >= _PART_BYTES:
                break
        return rows, read
    with reading_input(file.path), open_for_reading(file.path) as stream:
        stream.seek(unit.start)
        data = stream.read(min(_PART_BYTES, unit.end - unit.start))
        return data.count(b"\n"), len(data)


def _is_divisible(file: InputFile) -> bool:
    return file.kind == "jsonl" and file.compression is None


def _rows(file: InputFile, unit: Unit, mapped: Sequence[str], max_row_bytes: int) -> Iterator[tuple[SampledRow, int]]:
    """Yield the rows of a unit, each with the number of the unit's bytes read so far."""
    if file.kind == "parquet":
        values = ((value, 0) for value in _parquet_rows(file, unit, mapped, max_row_bytes))
    else:
        raw = json_rows(file, unit, max_row_bytes=max_row_bytes)
        values = ((value, seen) for value, _, _, seen in raw)
    for number, (value, seen) in enumerate(values):
        yield SampledRow(file, place_of(file.path, unit.start, number), value), seen


def _parquet_rows(
    file: InputFile, unit: Unit, mapped: Sequence[str], max_row_bytes: int
) -> Iterator[Mapping[str, Any] | str]:
    with reading_input(file.path), open_for_reading(file.path) as stream:
        parquet = pq.ParquetFile(stream, pre_buffer=False)
        schema = parquet.schema_arrow
        refuse_missing(file, schema.names, mapped)
        refuse_doubled(file, schema.names, mapped)
        wanted = list(dict.fromkeys([*mapped, *readable_columns(parquet, numbers=True)]))
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[unit.number], columns=wanted, use_threads=False):
            for value in batch_rows(batch.select(wanted), list(mapped), decoded=wanted, tools="tools"):
                too_large = not isinstance(value, str) and sum(size_of(value[name]) for name in mapped) > max_row_bytes
                yield "row_too_large" if too_large else value
